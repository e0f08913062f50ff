-- Tells the index by time of a generation of usage (`usage_value_by_day`) what its newest pages hold. Of pages that it does
-- not know, all are read for each answer; autovacuum would tell it, but forgets most of what is written in a hurry.
CREATE FUNCTION app.usage_summarize(home text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF home !~ '^usage_g[0-9]+$' THEN
        RAISE EXCEPTION '% is no generation of usage', home;
    END IF;
    PERFORM brin_summarize_new_values(c.oid::regclass)
       FROM pg_class c
       JOIN pg_am a ON a.oid = c.relam
      WHERE c.relnamespace = to_regnamespace(home) AND c.relkind = 'i' AND a.amname = 'brin';
END
$$;
REVOKE ALL ON FUNCTION app.usage_summarize FROM PUBLIC;
GRANT EXECUTE ON FUNCTION app.usage_summarize TO tallybook_worker;
