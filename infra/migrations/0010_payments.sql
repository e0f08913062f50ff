-- What is to be collected: one row per invoice and attempt. Written by the outbox writer from the log, never rebuilt;
-- a payment worker only takes a row, gives it back, or parks it.
--
--   manual <--- payment method ---> due --- PaymentAttemptStarted ---> started --- outcome ---> closed
--                                    +------ refused for good -----> parked <---------+
CREATE TABLE app.payment_outbox (
    tenant_id      text         NOT NULL,
    invoice_id     text         NOT NULL,
    attempt        integer      NOT NULL CHECK (attempt > 0),
    customer_id    text         NOT NULL,
    provider       text         NOT NULL,
    due_at         timestamptz  NOT NULL,            -- by the tenant's clock
    state          text         NOT NULL CHECK (state IN ('manual', 'due', 'started', 'parked', 'closed')),
    detail         text         NOT NULL DEFAULT '', -- why it waits, was parked or was closed
    tries          integer      NOT NULL DEFAULT 0,  -- times it was taken; who gives it back names its own number
    not_before     timestamptz  NOT NULL DEFAULT clock_timestamp(),  -- end of a lease or of a pause, by the real clock
    -- From PaymentAttemptStarted; the provider is asked with these and nothing else.
    key            text,
    currency       char(3),
    amount_minor   bigint       CHECK (amount_minor > 0),
    token          text,
    started_at     timestamptz,                      -- first use of the key, by the real clock
    written_at     timestamptz  NOT NULL DEFAULT clock_timestamp(),
    closed_at      timestamptz,
    PRIMARY KEY (tenant_id, invoice_id, attempt),
    CHECK (state <> 'started' OR num_nulls(key, currency, amount_minor, token, started_at) = 0),
    CHECK ((state = 'closed') = (closed_at IS NOT NULL))
);

CREATE INDEX payment_outbox_open
    ON app.payment_outbox (not_before)
 WHERE state IN ('due', 'started');

CREATE INDEX payment_outbox_of_customer
    ON app.payment_outbox (tenant_id, customer_id)
 WHERE state IN ('due', 'manual');

CREATE INDEX payment_outbox_parked
    ON app.payment_outbox (tenant_id, invoice_id)
 WHERE state = 'parked';

ALTER TABLE app.payment_outbox ENABLE ROW LEVEL SECURITY;
ALTER TABLE app.payment_outbox FORCE ROW LEVEL SECURITY;

CREATE POLICY all_tenants ON app.payment_outbox
    TO tallybook_worker USING (true) WITH CHECK (true);
CREATE POLICY own_tenant ON app.payment_outbox
   FOR SELECT TO tallybook_api
 USING (tenant_id = nullif(current_setting('app.tenant', true), ''));

GRANT SELECT, INSERT, UPDATE, DELETE ON app.payment_outbox TO tallybook_worker;
GRANT SELECT ON app.payment_outbox TO tallybook_api;
