-- Every invoice to be made and made, with all its inputs but the quantities.
CREATE TABLE runs (
    tenant_id           text         NOT NULL,
    invoice_id          text         NOT NULL,
    subscription_id     text         NOT NULL,
    customer_id         text         NOT NULL,
    reason              text         NOT NULL,
    currency            char(3)      NOT NULL,
    plan                text         NOT NULL,
    price_book_version  integer      NOT NULL,
    rating_engine       text         NOT NULL,
    arrears_start       timestamptz,            -- period whose usage is billed; NULL at a subscription's start
    arrears_end         timestamptz,
    advance_start       timestamptz,            -- period whose fees are billed; NULL at a subscription's end
    advance_end         timestamptz,
    cut_until           timestamptz  NOT NULL,  -- event time, exclusive
    state               text         NOT NULL CHECK (state IN ('awaited', 'issued', 'omitted')),
    fixed_at            timestamptz  NOT NULL,  -- by the tenant's clock
    sequence            bigint       NOT NULL,  -- of the event that fixed it
    issued_sequence     bigint,                 -- of InvoiceFinalized or InvoiceOmitted; NULL while awaited
    body                bytea        NOT NULL,  -- that event (SubscriptionActivated, BillingPeriodClosed), Avro
    PRIMARY KEY (tenant_id, invoice_id)
);

CREATE INDEX runs_awaited
    ON runs (tenant_id, sequence)
 WHERE state = 'awaited';
