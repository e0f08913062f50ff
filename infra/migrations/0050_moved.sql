-- Tells who waits that a projection moved, once per transaction, when it commits.
CREATE FUNCTION app.tell_moved() RETURNS trigger
    LANGUAGE plpgsql AS
$$
BEGIN
    PERFORM pg_notify('tallybook_moved', '');
    RETURN NULL;
END
$$;

CREATE TRIGGER tell_moved
    AFTER INSERT OR UPDATE ON app.checkpoint
    FOR EACH STATEMENT EXECUTE FUNCTION app.tell_moved();

CREATE TRIGGER tell_moved
    AFTER UPDATE ON app.generation
    FOR EACH STATEMENT EXECUTE FUNCTION app.tell_moved();
