-- Parts of hard limits that were promised and are not counted as usage yet. Cannot be rebuilt: nobody else knows them.
--
--   held ---> committed (names the usage event to come) ---> over when that event is counted, or by time
--    +------> released, or over by time
CREATE TABLE app.reservation (
    tenant_id       text            NOT NULL,
    reservation_id  text            NOT NULL,
    customer_id     text            NOT NULL,
    feature         text            NOT NULL,
    quantity        numeric(38,12)  NOT NULL CHECK (quantity > 0),
    ttl             interval        NOT NULL CHECK (ttl > interval '0'),
    state           text            NOT NULL DEFAULT 'held' CHECK (state IN ('held', 'committed', 'released')),
    granted_at      timestamptz     NOT NULL DEFAULT clock_timestamp(),
    expires_at      timestamptz     NOT NULL,  -- by the database's clock
    source          text,                      -- of the usage event that uses it up
    event_id        text,
    PRIMARY KEY (tenant_id, reservation_id),
    CHECK ((state = 'committed') = (source IS NOT NULL AND event_id IS NOT NULL))
);

CREATE INDEX reservation_of_feature
    ON app.reservation (tenant_id, customer_id, feature, expires_at)
 WHERE state <> 'released';

ALTER TABLE app.reservation ENABLE ROW LEVEL SECURITY;
ALTER TABLE app.reservation FORCE ROW LEVEL SECURITY;

CREATE POLICY all_tenants ON app.reservation
    TO tallybook_worker USING (true) WITH CHECK (true);
CREATE POLICY own_tenant ON app.reservation
    TO tallybook_api
 USING (tenant_id = nullif(current_setting('app.tenant', true), ''))
  WITH CHECK (tenant_id = nullif(current_setting('app.tenant', true), ''));

GRANT SELECT, INSERT, UPDATE, DELETE ON app.reservation TO tallybook_worker, tallybook_api;
