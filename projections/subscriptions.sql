-- A customer on a plan, with its current period and the instant at which something is next to be done about it.
CREATE TABLE subscriptions (
    tenant_id           text         NOT NULL,
    subscription_id     text         NOT NULL,
    customer_id         text         NOT NULL,
    plan                text         NOT NULL,  -- in force; the first one before the start
    price_book_version  integer      NOT NULL,
    add_ons             jsonb        NOT NULL DEFAULT '{}',  -- in force: key -> quantity
    currency            char(3)      NOT NULL,
    status              text         NOT NULL CHECK (status IN ('scheduled', 'active', 'ended')),
    zone                text         NOT NULL,
    anchor              text         NOT NULL,  -- local date-time without offset
    interval            text         NOT NULL,  -- ISO 8601 duration
    alignment           text         NOT NULL,
    starts_at           timestamptz  NOT NULL,
    period_start        timestamptz,            -- of the current period; NULL before the start
    period_end          timestamptz,            -- exclusive
    trial_ends_at       timestamptz,            -- NULL without a trial
    ends_at             timestamptz,            -- agreed at the start, or set by a cancellation
    ended_at            timestamptz,
    next_boundary       timestamptz,            -- activate then (scheduled), close then (active); NULL when ended
    sequence            bigint       NOT NULL,  -- of the subscription's last event
    PRIMARY KEY (tenant_id, subscription_id),
    CHECK ((status = 'ended') = (next_boundary IS NULL))
);

-- Changes of what rates a subscription, from when they take effect until the period before them is closed.
CREATE TABLE subscription_changes (
    tenant_id           text         NOT NULL,
    subscription_id     text         NOT NULL,
    effective_at        timestamptz  NOT NULL,
    sequence            bigint       NOT NULL,  -- of the event; at equal instants the later one counts
    kind                text         NOT NULL CHECK (kind IN ('plan', 'version', 'add_on')),
    plan                text,                   -- NULL for an add-on
    price_book_version  integer,
    add_on              text,                   -- NULL for a plan or version
    quantity            integer,                -- 0: removed
    PRIMARY KEY (tenant_id, subscription_id, effective_at, sequence),
    CHECK ((kind = 'add_on') = (add_on IS NOT NULL)),
    CHECK ((kind = 'add_on') = (plan IS NULL))
);

CREATE INDEX subscriptions_due
    ON subscriptions (tenant_id, next_boundary)
 WHERE next_boundary IS NOT NULL;

CREATE INDEX subscriptions_of_customer
    ON subscriptions (tenant_id, customer_id, subscription_id);
