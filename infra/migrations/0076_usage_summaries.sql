-- Tells the index by time of a generation of usage (`usage_value_by_day`) what its newest pages hold. Of pages that it does
-- not know, all are read for each answer; autovacuum would tell it, but forgets most of what is written in a hurry.
CREATE FUNCTION app.usage_summarize(home text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    index regclass;
    month regclass;
BEGIN
    IF home !~ '^usage_g[0-9]+$' THEN
        RAISE EXCEPTION '% is no generation of usage', home;
    END IF;
    FOR index, month IN
        SELECT c.oid, i.indrelid
          FROM pg_class c
          JOIN pg_am a ON a.oid = c.relam
          JOIN pg_index i ON i.indexrelid = c.oid
         WHERE c.relnamespace = to_regnamespace(home) AND c.relkind = 'i' AND a.amname = 'brin'
    LOOP
        -- Who waited for a vacuum would end it after a second, each time. It tells the index itself, and an analysis is short.
        BEGIN
            EXECUTE format('LOCK TABLE %s IN SHARE UPDATE EXCLUSIVE MODE NOWAIT', month);
            PERFORM brin_summarize_new_values(index);
        EXCEPTION WHEN lock_not_available THEN
            NULL;
        END;
    END LOOP;
END
$$;
REVOKE ALL ON FUNCTION app.usage_summarize FROM PUBLIC;
GRANT EXECUTE ON FUNCTION app.usage_summarize TO tallybook_worker;
