-- Prepared rows of backfills are found by their tenant first, as all rows are: what projections/usage_backfill.sql makes now.
DO $$
DECLARE
    home text;
BEGIN
    FOR home IN SELECT n.nspname FROM pg_namespace n
                 WHERE n.nspname ~ '^usage_g[0-9]+$'
                   AND to_regclass(format('%I.usage_backfill_value', n.nspname)) IS NOT NULL LOOP
        EXECUTE format('ALTER TABLE %I.usage_backfill_value DROP CONSTRAINT usage_backfill_value_pkey,'
                       ' ADD PRIMARY KEY (tenant_id, partition, backfill_offset, series, record_offset, batch_index)',
                       home);
    END LOOP;
END
$$;
