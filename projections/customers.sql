-- Who pays, and how. Names and addresses are a profile elsewhere (app.customer_profile), not in the log.
CREATE TABLE customers (
    tenant_id      text         NOT NULL,
    customer_id    text         NOT NULL,
    provider       text         NOT NULL,  -- of the payment method
    payment_token  text         NOT NULL,  -- the provider's name for it; empty for manual
    jurisdiction   text         NOT NULL,  -- where taxed; empty for the tenant's own rates
    created_at     timestamptz  NOT NULL,
    sequence       bigint       NOT NULL,  -- of the customer's last event
    PRIMARY KEY (tenant_id, customer_id)
);

CREATE TABLE customer_coupons (
    tenant_id      text         NOT NULL,
    customer_id    text         NOT NULL,
    coupon         text         NOT NULL,
    redeemed_at    timestamptz  NOT NULL,
    invoices       integer      NOT NULL DEFAULT 0,  -- on which it gave a discount
    PRIMARY KEY (tenant_id, customer_id, coupon)
);

-- What customers pay for a plan instead of its prices; a row that changes nothing took them back.
CREATE TABLE customer_prices (
    tenant_id      text         NOT NULL,
    customer_id    text         NOT NULL,
    plan           text         NOT NULL,
    currency       char(3)      NOT NULL,
    set_at         timestamptz  NOT NULL,
    sequence       bigint       NOT NULL,
    body           bytea        NOT NULL,  -- the event PriceOverrideSet, Avro
    PRIMARY KEY (tenant_id, customer_id, plan, currency)
);

CREATE TABLE customer_credits (
    tenant_id      text         NOT NULL,
    customer_id    text         NOT NULL,
    currency       char(3)      NOT NULL,
    minor          bigint       NOT NULL CHECK (minor >= 0),  -- unused credit, of grants and of negative invoices
    PRIMARY KEY (tenant_id, customer_id, currency)
);

CREATE TABLE customer_grants (
    tenant_id      text         NOT NULL,
    customer_id    text         NOT NULL,
    grant_id       text         NOT NULL,
    currency       char(3)      NOT NULL,
    amount_minor   bigint       NOT NULL CHECK (amount_minor > 0),
    left_minor     bigint       NOT NULL CHECK (left_minor BETWEEN 0 AND amount_minor),
    priority       integer      NOT NULL,  -- lower numbers are spent first
    kind           text         NOT NULL CHECK (kind IN ('granted', 'purchased')),
    expires_at     timestamptz,            -- NULL for never
    reason         text         NOT NULL,
    granted_at     timestamptz  NOT NULL,
    PRIMARY KEY (tenant_id, customer_id, grant_id)
);
