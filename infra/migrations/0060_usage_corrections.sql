-- Generations of usage that were made before events could be voided and amended: what projections/usage.sql makes now.
DO $$
DECLARE
    home text;
BEGIN
    FOR home IN SELECT nspname FROM pg_namespace
                 WHERE nspname ~ '^usage_g[0-9]+$' AND to_regclass(format('%I.usage_value', nspname)) IS NOT NULL LOOP
        EXECUTE format('ALTER TABLE %I.usage_value ADD COLUMN IF NOT EXISTS voided_offset bigint', home);
        EXECUTE format('ALTER TABLE %I.usage_identity ADD COLUMN IF NOT EXISTS amended_content uuid,'
                       ' ADD COLUMN IF NOT EXISTS amended_at timestamptz,'
                       ' ADD COLUMN IF NOT EXISTS voided_offset bigint', home);
        EXECUTE format('ALTER TABLE %I.usage_fate ADD COLUMN IF NOT EXISTS voided bigint NOT NULL DEFAULT 0,'
                       ' ADD COLUMN IF NOT EXISTS amended bigint NOT NULL DEFAULT 0,'
                       ' ADD COLUMN IF NOT EXISTS repeated bigint NOT NULL DEFAULT 0', home);
        EXECUTE format('ALTER TABLE %I.usage_window DROP CONSTRAINT IF EXISTS usage_window_events_check,'
                       ' ADD CONSTRAINT usage_window_events_check CHECK (events >= 0)', home);
        EXECUTE format('ALTER TABLE %I.usage_rejected DROP CONSTRAINT IF EXISTS usage_rejected_events_check,'
                       ' ADD CONSTRAINT usage_rejected_events_check CHECK (events >= 0)', home);
    END LOOP;
END
$$;
