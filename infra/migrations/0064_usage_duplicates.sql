-- Generations of usage that were made before copies were told one by one: what projections/usage_duplicates.sql makes
-- now. It knows the copies that come from here on; those of before are there after a rebuild.
DO $$
DECLARE
    home text;
BEGIN
    FOR home IN SELECT nspname FROM pg_namespace
                 WHERE nspname ~ '^usage_g[0-9]+$' AND to_regclass(format('%I.usage_identity', nspname)) IS NOT NULL
                   AND to_regclass(format('%I.usage_duplicate', nspname)) IS NULL LOOP
        EXECUTE format('CREATE TABLE %I.usage_duplicate (tenant_id text NOT NULL, identity uuid NOT NULL,'
                       ' partition integer NOT NULL, record_offset bigint NOT NULL, batch_index integer NOT NULL,'
                       ' appended_at timestamptz NOT NULL,'
                       ' PRIMARY KEY (tenant_id, identity, partition, record_offset, batch_index))', home);
        EXECUTE format('CREATE INDEX usage_duplicate_by_time ON %I.usage_duplicate USING brin (appended_at)'
                       ' WITH (pages_per_range = 32)', home);
        EXECUTE format('ALTER TABLE %I.usage_duplicate ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', home);
        EXECUTE format('CREATE POLICY all_tenants ON %I.usage_duplicate TO tallybook_worker'
                       ' USING (true) WITH CHECK (true)', home);
        EXECUTE format('CREATE POLICY own_tenant ON %I.usage_duplicate FOR SELECT TO tallybook_api'
                       ' USING (tenant_id = nullif(current_setting(''app.tenant'', true), ''''))', home);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I.usage_duplicate TO tallybook_worker', home);
        EXECUTE format('GRANT SELECT ON %I.usage_duplicate TO tallybook_api', home);
    END LOOP;
END
$$;
