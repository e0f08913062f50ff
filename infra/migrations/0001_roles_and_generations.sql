-- Roles belong to the server: another database of it may have made them already.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'tallybook_worker') THEN
        CREATE ROLE tallybook_worker LOGIN NOBYPASSRLS;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'tallybook_api') THEN
        CREATE ROLE tallybook_api LOGIN NOBYPASSRLS;
    END IF;
END
$$;

GRANT USAGE ON SCHEMA app TO tallybook_worker, tallybook_api;

-- Which generation of a projection set everybody writes and reads; flipped by one update at the end of a rebuild.
CREATE TABLE app.generation (
    projection_set  text        PRIMARY KEY CHECK (projection_set ~ '^[a-z][a-z0-9_]*$'),
    current         integer     NOT NULL CHECK (current > 0),
    newest          integer     NOT NULL CHECK (newest >= current),  -- the next rebuild makes newest + 1
    switched_at     timestamptz NOT NULL DEFAULT now()
);

-- How far a projection has applied a partition; moves in the transaction that wrote the rows.
CREATE TABLE app.checkpoint (
    projection   text        NOT NULL,
    generation   integer     NOT NULL,
    topic        text        NOT NULL,
    partition    integer     NOT NULL CHECK (partition >= 0),
    next_offset  bigint      NOT NULL CHECK (next_offset >= 0),
    moved_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (projection, generation, topic, partition)
);

-- The same for consumers whose rows are never rebuilt: outbox, invoicing, usage intake.
CREATE TABLE app.consumer_offset (
    consumer     text        NOT NULL,
    topic        text        NOT NULL,
    partition    integer     NOT NULL CHECK (partition >= 0),
    next_offset  bigint      NOT NULL CHECK (next_offset >= 0),
    moved_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, topic, partition)
);

-- The fencing token of a singleton: a deposed leader's writes compare it and fail.
CREATE TABLE app.lease (
    name      text        PRIMARY KEY,
    token     bigint      NOT NULL CHECK (token > 0),
    taken_at  timestamptz NOT NULL DEFAULT now()
);

GRANT SELECT, INSERT, UPDATE, DELETE
   ON app.generation, app.checkpoint, app.consumer_offset, app.lease
   TO tallybook_worker;
GRANT SELECT ON app.generation, app.checkpoint TO tallybook_api;
GRANT SELECT ON app.schema_migration TO tallybook_worker, tallybook_api;
