-- Over how many partitions each tenant's usage is spread, as the meter publisher told the usage log: for all who send
-- usage, and for the scheduler, who closes a period at the end of each of them. Append-only. No row: one partition.
CREATE TABLE app.usage_spread (
    tenant_id       text         NOT NULL,
    effective_from  timestamptz  NOT NULL,  -- time of the event
    partitions      integer      NOT NULL CHECK (partitions > 0),
    PRIMARY KEY (tenant_id, effective_from)
);

ALTER TABLE app.usage_spread ENABLE ROW LEVEL SECURITY;
ALTER TABLE app.usage_spread FORCE ROW LEVEL SECURITY;

CREATE POLICY all_tenants ON app.usage_spread
    TO tallybook_worker USING (true) WITH CHECK (true);
CREATE POLICY own_tenant ON app.usage_spread
    FOR SELECT TO tallybook_api
 USING (tenant_id = nullif(current_setting('app.tenant', true), ''));

GRANT SELECT, INSERT ON app.usage_spread TO tallybook_worker;
GRANT SELECT ON app.usage_spread TO tallybook_api;
