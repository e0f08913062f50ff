-- Generations of usage that were made before sums by day followed: what projections/usage_rollup.sql makes now.
DO $$
DECLARE
    home  text;
    named text;
BEGIN
    FOR home IN SELECT nspname FROM pg_namespace
                 WHERE nspname ~ '^usage_g[0-9]+$' AND to_regclass(format('%I.usage_value', nspname)) IS NOT NULL
                   AND to_regclass(format('%I.usage_rolled', nspname)) IS NULL LOOP
        EXECUTE format('CREATE TABLE %I.usage_day (tenant_id text NOT NULL, series bigint NOT NULL, day date NOT NULL,'
                       ' partition integer NOT NULL, events bigint[] NOT NULL, total numeric[],'
                       ' PRIMARY KEY (series, day, partition, tenant_id)) WITH (fillfactor = 70)', home);
        EXECUTE format('CREATE TABLE %I.usage_total (tenant_id text NOT NULL, meter text NOT NULL,'
                       ' dimension_names text[] NOT NULL, dimension_values text[] NOT NULL, day date NOT NULL,'
                       ' partition integer NOT NULL, events bigint[] NOT NULL, total numeric[],'
                       ' PRIMARY KEY (tenant_id, meter, day, dimension_names, dimension_values, partition))'
                       ' WITH (fillfactor = 70)', home);
        EXECUTE format('CREATE TABLE %I.usage_rolled (tenant_id text PRIMARY KEY DEFAULT '''' CHECK (tenant_id = ''''),'
                       ' until timestamptz NOT NULL, following timestamptz NOT NULL CHECK (following >= until),'
                       ' partitions integer[] NOT NULL, offsets bigint[] NOT NULL)', home);
        EXECUTE format('INSERT INTO %I.usage_rolled VALUES ('''', ''-infinity'', ''-infinity'', ''{}'', ''{}'')', home);
        EXECUTE format('CREATE POLICY everybody ON %I.usage_rolled FOR SELECT TO tallybook_api USING (true)', home);
        EXECUTE format('CREATE INDEX IF NOT EXISTS usage_value_by_day ON %I.usage_value USING brin (event_time)'
                       ' WITH (pages_per_range = 64, autosummarize = on)', home);
        FOREACH named IN ARRAY ARRAY['usage_day', 'usage_total', 'usage_rolled'] LOOP
            EXECUTE format('ALTER TABLE %I.%I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', home, named);
            EXECUTE format('CREATE POLICY all_tenants ON %I.%I TO tallybook_worker USING (true) WITH CHECK (true)',
                           home, named);
            EXECUTE format('CREATE POLICY own_tenant ON %I.%I FOR SELECT TO tallybook_api'
                           ' USING (tenant_id = nullif(current_setting(''app.tenant'', true), ''''))', home, named);
            EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I.%I TO tallybook_worker', home, named);
            EXECUTE format('GRANT SELECT ON %I.%I TO tallybook_api', home, named);
        END LOOP;
    END LOOP;
END
$$;
