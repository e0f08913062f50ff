-- The control record that each tenant's usage is measured by, as the meter publisher sent it last.
CREATE TABLE app.meter_set (
    tenant_id  text    PRIMARY KEY,
    version    bigint  NOT NULL,  -- sequence of the tenant event that it publishes
    control    bytea   NOT NULL   -- UsageControl, Avro
);

ALTER TABLE app.meter_set ENABLE ROW LEVEL SECURITY;
ALTER TABLE app.meter_set FORCE ROW LEVEL SECURITY;

CREATE POLICY all_tenants ON app.meter_set
    TO tallybook_worker USING (true) WITH CHECK (true);

GRANT SELECT, INSERT, UPDATE, DELETE ON app.meter_set TO tallybook_worker;
