-- Invoices to be made, one row per run in the log. Written once by the invoicing consumer, never rebuilt.
--
--   waiting <--- claimed ---> done
--      ^            |
--      +- unpark - parked
CREATE TABLE app.invoice_job (
    tenant_id        text         NOT NULL,
    invoice_id       text         NOT NULL,
    sequence         bigint       NOT NULL,             -- of the event with the run: jobs of a tenant go in this order
    subscription_id  text         NOT NULL,
    customer_id      text         NOT NULL,
    event            bytea        NOT NULL,             -- SubscriptionActivated or BillingPeriodClosed, as in the log
    state            text         NOT NULL DEFAULT 'waiting'
                     CHECK (state IN ('waiting', 'claimed', 'done', 'parked')),
    detail           text         NOT NULL DEFAULT '',  -- what it waits for, or why it was parked
    tries            integer      NOT NULL DEFAULT 0,   -- times it was claimed; who gives it back names its own number
    not_before       timestamptz  NOT NULL DEFAULT clock_timestamp(),  -- end of a lease or of a pause
    written_at       timestamptz  NOT NULL DEFAULT clock_timestamp(),
    done_at          timestamptz,
    PRIMARY KEY (tenant_id, invoice_id),
    UNIQUE (tenant_id, sequence)
);

CREATE INDEX invoice_job_open
    ON app.invoice_job (tenant_id, sequence)
 WHERE state IN ('waiting', 'claimed');

CREATE INDEX invoice_job_parked
    ON app.invoice_job (tenant_id, sequence)
 WHERE state = 'parked';

ALTER TABLE app.invoice_job ENABLE ROW LEVEL SECURITY;
ALTER TABLE app.invoice_job FORCE ROW LEVEL SECURITY;

CREATE POLICY all_tenants ON app.invoice_job
    TO tallybook_worker USING (true) WITH CHECK (true);
CREATE POLICY own_tenant ON app.invoice_job
   FOR SELECT TO tallybook_api
 USING (tenant_id = nullif(current_setting('app.tenant', true), ''));

GRANT SELECT, INSERT, UPDATE, DELETE ON app.invoice_job TO tallybook_worker;
GRANT SELECT ON app.invoice_job TO tallybook_api;
