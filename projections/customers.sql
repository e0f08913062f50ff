-- Who pays, and how. Names and addresses are a profile elsewhere (app.customer_profile), not in the log.
CREATE TABLE customers (
    tenant_id      text         NOT NULL,
    customer_id    text         NOT NULL,
    provider       text         NOT NULL,  -- of the payment method
    payment_token  text         NOT NULL,  -- the provider's name for it; empty for manual
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
    minor          bigint       NOT NULL CHECK (minor >= 0),  -- unused credit
    PRIMARY KEY (tenant_id, customer_id, currency)
);
