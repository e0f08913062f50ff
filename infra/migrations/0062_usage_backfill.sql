-- Generations of usage that were made before meters could be backfilled: what projections/usage.sql and
-- projections/usage_backfill.sql make now.
DO $$
DECLARE
    home  text;
    made  text;
BEGIN
    FOR home IN SELECT nspname FROM pg_namespace
                 WHERE nspname ~ '^usage_g[0-9]+$' AND to_regclass(format('%I.usage_value', nspname)) IS NOT NULL LOOP
        EXECUTE format('ALTER TABLE %I.usage_value ADD COLUMN IF NOT EXISTS counts_from bigint', home);
        CONTINUE WHEN to_regclass(format('%I.usage_backfill', home)) IS NOT NULL;
        EXECUTE format($make$
            CREATE TABLE %1$I.usage_backfill (
                tenant_id      text         NOT NULL,
                partition      integer      NOT NULL,
                record_offset  bigint       NOT NULL,
                version        bigint       NOT NULL,
                control        bytea        NOT NULL,
                meter          text         NOT NULL,
                begins_at      timestamptz  NOT NULL,
                ends_at        timestamptz  NOT NULL,
                appended_at    timestamptz  NOT NULL,
                state          text         NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'done', 'failed')),
                detail         text         NOT NULL DEFAULT '',
                first_offset   bigint,
                next_offset    bigint,
                events         bigint       NOT NULL DEFAULT 0,
                unmeasured     bigint       NOT NULL DEFAULT 0,
                PRIMARY KEY (tenant_id, partition, record_offset)
            );
            CREATE INDEX usage_backfill_pending ON %1$I.usage_backfill (partition, record_offset)
             WHERE state = 'pending';
            CREATE TABLE %1$I.usage_backfill_value (
                partition        integer      NOT NULL,
                backfill_offset  bigint       NOT NULL,
                series           bigint       NOT NULL,
                record_offset    bigint       NOT NULL,
                batch_index      integer      NOT NULL,
                event_time       timestamptz  NOT NULL,
                number           numeric,
                text_value       text,
                tenant_id        text         NOT NULL,
                PRIMARY KEY (partition, backfill_offset, series, record_offset, batch_index)
            )
        $make$, home);
        FOREACH made IN ARRAY ARRAY['usage_backfill', 'usage_backfill_value'] LOOP
            EXECUTE format($protect$
                ALTER TABLE %1$I.%2$I ENABLE ROW LEVEL SECURITY;
                ALTER TABLE %1$I.%2$I FORCE ROW LEVEL SECURITY;
                CREATE POLICY all_tenants ON %1$I.%2$I TO tallybook_worker USING (true) WITH CHECK (true);
                CREATE POLICY own_tenant ON %1$I.%2$I FOR SELECT TO tallybook_api
                 USING (tenant_id = nullif(current_setting('app.tenant', true), ''));
                GRANT SELECT, INSERT, UPDATE, DELETE ON %1$I.%2$I TO tallybook_worker;
                GRANT SELECT ON %1$I.%2$I TO tallybook_api
            $protect$, home, made);
        END LOOP;
    END LOOP;
END
$$;
