-- Usage events in the log by tenant, hour of the append and partition, counted by a process of its own that knows nothing
-- of the aggregator. Compared with `usage_fate` once both have passed; its places are in app.consumer_offset.
CREATE TABLE app.usage_received (
    tenant_id     text        NOT NULL,  -- empty where a record does not tell
    hour          timestamptz NOT NULL,  -- of the append, by the broker's clock
    partition     integer     NOT NULL,
    events        bigint      NOT NULL CHECK (events > 0),
    first_offset  bigint      NOT NULL,
    last_offset   bigint      NOT NULL CHECK (last_offset >= first_offset),
    PRIMARY KEY (tenant_id, hour, partition)
);
CREATE INDEX usage_received_by_hour ON app.usage_received (hour);

ALTER TABLE app.usage_received ENABLE ROW LEVEL SECURITY;
ALTER TABLE app.usage_received FORCE ROW LEVEL SECURITY;

CREATE POLICY all_tenants ON app.usage_received
    TO tallybook_worker USING (true) WITH CHECK (true);

GRANT SELECT, INSERT, UPDATE, DELETE ON app.usage_received TO tallybook_worker;
