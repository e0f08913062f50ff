-- Usage, as far as each partition of usage.events is applied. A position is (partition, record_offset, batch_index).

-- Spares a table that grows without end. Every page that a vacuum of new rows or a survey (ANALYZE) is the first to read
-- it marks, and a marked page is written again, once whole into the WAL. So: no vacuum of what was only added to, which
-- serves index-only scans that nobody makes; a survey of a tenth of the pages, when the table has doubled. What is
-- deleted or changed is vacuumed as ever, as are rows before they are too old for Postgres.
CREATE FUNCTION usage_only_grows(grown regclass) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('ALTER TABLE %s SET (autovacuum_vacuum_insert_threshold = -1, autovacuum_analyze_scale_factor = 1)',
                   grown);
    EXECUTE (SELECT format('ALTER TABLE %s ', grown)
                    || string_agg(format('ALTER COLUMN %I SET STATISTICS 10', attname), ', ')
               FROM pg_attribute
              WHERE attrelid = grown AND attnum > 0 AND NOT attisdropped);
END
$$;
REVOKE ALL ON FUNCTION usage_only_grows FROM PUBLIC;

-- Every counted event, once. The primary key is the exact dedupe: whoever comes second finds it taken.
-- Duplicates and conflicts leave no row here; `usage_fate` counts them. Rows go when their age at the end of the
-- partition exceeds what the tenant accepts (`usage_pruned`).
-- The identity leads the key: ids that tell their time (UUIDv7) then lie side by side, and a new one meets a page that
-- is in memory, however many older ones there are.
CREATE TABLE usage_identity (
    identity       uuid        NOT NULL,  -- 128 bits of (source, id); of an id that tells its time, the time first
    content        uuid        NOT NULL,  -- 128-bit hash of all else: tells a duplicate from a conflict
    record_offset  bigint      NOT NULL,
    event_time     timestamptz NOT NULL,
    appended_at    timestamptz NOT NULL,  -- of its record, by the broker's clock
    partition      integer     NOT NULL,
    batch_index    integer     NOT NULL,
    tenant_id      text        NOT NULL,
    customer_id    text        NOT NULL,
    -- Of an amended event time, customer, offset and index are those of its last amendment; `content` stays the first.
    amended_content uuid,                 -- as amended last; null: never
    amended_at      timestamptz,          -- append of the last amendment; null: never
    voided_offset   bigint,               -- of the record that voided it; null: it counts
    PRIMARY KEY (identity, tenant_id)
) PARTITION BY HASH (identity);

-- How identities are made (`services.usage_identity`): of another scheme, copies of one event would not meet.
COMMENT ON TABLE usage_identity IS '2';

DO $$
BEGIN
    FOR remainder IN 0..7 LOOP
        EXECUTE format('CREATE TABLE usage_identity_%1$s PARTITION OF usage_identity'
                       ' FOR VALUES WITH (MODULUS 8, REMAINDER %1$s)', remainder);
        PERFORM usage_only_grows(format('usage_identity_%s', remainder)::regclass);
    END LOOP;
END
$$;

-- What a value belongs to, as one integer. Dimension names travel with their values: a meter may change its dimensions.
CREATE TABLE usage_series (
    tenant_id         text    NOT NULL,
    series            bigint  GENERATED ALWAYS AS IDENTITY,
    customer_id       text    NOT NULL,
    meter             text    NOT NULL,
    dimension_names   text[]  NOT NULL,
    dimension_values  text[]  NOT NULL,
    PRIMARY KEY (tenant_id, series),
    UNIQUE (tenant_id, customer_id, meter, dimension_names, dimension_values)
);

-- What each counted event contributes to each meter that it feeds. Decides every quantity.
-- By months of the event: `usage_month` makes them. `series` is one tenant's, so the index needs no tenant.
CREATE TABLE usage_value (
    tenant_id      text         NOT NULL,
    series         bigint       NOT NULL,
    event_time     timestamptz  NOT NULL,
    number         numeric,               -- 26 digits before and 12 after the point; null for a thing counted once
    text_value     text,                  -- the thing counted; null for a number
    partition      integer      NOT NULL,
    record_offset  bigint       NOT NULL,
    batch_index    integer      NOT NULL,
    voided_offset  bigint,                -- from this offset of the partition on it does not count; null: it does
    counts_from    bigint                 -- it counts from this offset on, by a backfill; null: from its own on
) PARTITION BY RANGE (event_time);
CREATE INDEX usage_value_by_time ON usage_value (series, event_time);

-- Sums of usage_value by hour of the event and partition: a speed-up. A window counts for a cut only if all of it lies
-- below; the two offsets say so. What is voided is taken out and counts as a change at the offset of the void. By
-- months, as the values.
CREATE TABLE usage_window (
    tenant_id     text        NOT NULL,
    series        bigint      NOT NULL,
    hour          timestamptz NOT NULL,
    partition     integer     NOT NULL,
    events        bigint      NOT NULL CHECK (events >= 0),  -- 0: all of them are voided
    total         numeric,                  -- null, like the next two, for things counted once
    lowest        numeric,
    highest       numeric,
    first_offset  bigint      NOT NULL,
    last_offset   bigint      NOT NULL CHECK (last_offset >= first_offset),
    PRIMARY KEY (series, hour, partition, tenant_id)
) PARTITION BY RANGE (hour);

-- Makes the tables of the month that begins on `first`, if they are missing: workers own nothing and call this.
-- Attaching, other than creating in place, lets readers and writers of other months go on.
CREATE FUNCTION usage_month(first date) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    suffix text := to_char(first, 'YYYY_MM');
    home   text := current_schema();
    parent text;
BEGIN
    IF first <> date_trunc('month', first) THEN
        RAISE EXCEPTION '% does not begin a month', first;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended(home || '.usage_month', 0));
    FOREACH parent IN ARRAY ARRAY['usage_value', 'usage_window'] LOOP
        CONTINUE WHEN to_regclass(format('%I.%I', home, parent || '_' || suffix)) IS NOT NULL;
        EXECUTE format('CREATE TABLE %1$I.%2$I (LIKE %1$I.%3$I INCLUDING ALL)', home, parent || '_' || suffix, parent);
        -- Reached through its parent only, and by its policies: nobody else has any right here.
        EXECUTE format('ALTER TABLE %I.%I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY',
                       home, parent || '_' || suffix);
        EXECUTE format('ALTER TABLE %1$I.%3$I ATTACH PARTITION %1$I.%2$I FOR VALUES FROM (%4$L) TO (%5$L)',
                       home, parent || '_' || suffix, parent,
                       first::timestamp AT TIME ZONE 'UTC', (first + interval '1 month') AT TIME ZONE 'UTC');
        -- Once, before anybody uses them: later it would wait for a vacuum, or end it.
        IF parent = 'usage_value' THEN
            PERFORM usage_only_grows(format('%I.%I', home, parent || '_' || suffix)::regclass);
        ELSE
            -- Windows are added to for an hour: room on their pages keeps new versions there, out of the index.
            EXECUTE format('ALTER TABLE %I.%I SET (fillfactor = 50)', home, parent || '_' || suffix);
        END IF;
    END LOOP;
END
$$;
REVOKE ALL ON FUNCTION usage_month FROM PUBLIC;
GRANT EXECUTE ON FUNCTION usage_month TO tallybook_worker;

-- What became of all events appended in an hour. Nobody is lost: the check is promise 1, `unmatched` is within counted.
CREATE TABLE usage_fate (
    tenant_id  text        NOT NULL,  -- empty where a record does not tell
    hour       timestamptz NOT NULL,  -- of the append, by the broker's clock
    partition  integer     NOT NULL,
    received   bigint      NOT NULL,
    counted    bigint      NOT NULL,
    duplicate  bigint      NOT NULL,
    conflict   bigint      NOT NULL,
    rejected   bigint      NOT NULL,
    -- Corrections appended in the hour; they are no events, and what they correct stays `counted`.
    voided     bigint      NOT NULL DEFAULT 0,
    amended    bigint      NOT NULL DEFAULT 0,
    repeated   bigint      NOT NULL DEFAULT 0,  -- changed nothing
    PRIMARY KEY (tenant_id, hour, partition),
    CHECK (received = counted + duplicate + conflict + rejected)
);

-- Refused usage by position; the original bytes are in usage.rejected.
CREATE TABLE usage_rejected (
    tenant_id      text        NOT NULL,  -- empty where a record does not tell
    partition      integer     NOT NULL,
    record_offset  bigint      NOT NULL,
    batch_index    integer     NOT NULL,  -- -1: the whole record
    events         integer     NOT NULL CHECK (events >= 0),  -- 0: a correction
    reason         text        NOT NULL,
    detail         text        NOT NULL,
    field          text        NOT NULL,
    source         text,
    event_id       text,
    appended_at    timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, partition, record_offset, batch_index)
);

-- The control record by which a partition measures a tenant's usage.
CREATE TABLE usage_control (
    tenant_id      text        NOT NULL,
    partition      integer     NOT NULL,
    version        bigint      NOT NULL,
    control        bytea       NOT NULL,  -- the record as it came
    record_offset  bigint      NOT NULL,
    registered_at  timestamptz NOT NULL,  -- append of the first control record of the tenant in the partition
    accepted_from  timestamptz,           -- events before are rejected, however wide the bounds are now
    PRIMARY KEY (tenant_id, partition)
);

-- How far identities are pruned: those appended before are gone or going, and no copy of them is accepted any more.
CREATE TABLE usage_pruned (
    tenant_id  text        NOT NULL,
    partition  integer     NOT NULL,
    before     timestamptz NOT NULL,  -- a whole hour (UTC), so that `usage_fate` tells how many were counted
    swept      timestamptz NOT NULL DEFAULT '-infinity',  -- `before`, once all of them are gone
    PRIMARY KEY (tenant_id, partition)
);

-- What was measured last, for those who publish current usage. Read it with `usage_read.changed`.
CREATE TABLE usage_changed (
    tenant_id    text    NOT NULL,
    customer_id  text    NOT NULL,
    meter        text    NOT NULL,
    version      bigint  NOT NULL DEFAULT nextval('app.usage_change'),  -- grows with each change, in every generation
    changed_in   xid8    NOT NULL DEFAULT pg_current_xact_id(),
    PRIMARY KEY (tenant_id, customer_id, meter)
);
CREATE INDEX usage_changed_by_transaction ON usage_changed (changed_in);
