-- What is to be collected: one row per invoice with an amount due, and one per attempt at a provider.
CREATE TABLE payments (
    tenant_id        text         NOT NULL,
    invoice_id       text         NOT NULL,
    customer_id      text         NOT NULL,
    currency         char(3)      NOT NULL,
    amount_minor     bigint       NOT NULL CHECK (amount_minor > 0),
    state            text         NOT NULL
                     CHECK (state IN ('due', 'pending', 'unknown', 'declined', 'collected', 'exhausted')),
    attempt          integer      NOT NULL CHECK (attempt >= 0),  -- the next or present one; 0: paid outside
    provider         text         NOT NULL,
    next_attempt_at  timestamptz,                                 -- by the tenant's clock; NULL: none is planned
    reference        text,                                        -- the provider's name for the payment
    settled_at       timestamptz,
    sequence         bigint       NOT NULL,                       -- of the payment's last event
    PRIMARY KEY (tenant_id, invoice_id)
);

CREATE INDEX payments_unsettled
    ON payments (tenant_id, state, invoice_id)
 WHERE state <> 'collected';

CREATE TABLE payment_attempts (
    tenant_id     text         NOT NULL,
    invoice_id    text         NOT NULL,
    attempt       integer      NOT NULL CHECK (attempt > 0),
    key           text         NOT NULL,  -- idempotency key at the provider
    provider      text         NOT NULL,
    currency      char(3)      NOT NULL,
    amount_minor  bigint       NOT NULL,
    state         text         NOT NULL CHECK (state IN ('pending', 'unknown', 'declined', 'succeeded')),
    decline_kind  text,
    decline_code  text,
    detail        text,                   -- what came instead of an answer
    reference     text,
    started_at    timestamptz  NOT NULL,  -- first use of the key, wall clock
    answered_at   timestamptz,            -- by the tenant's clock
    retry_at      timestamptz,
    PRIMARY KEY (tenant_id, invoice_id, attempt)
);
