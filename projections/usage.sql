-- Usage, as far as each partition of usage.events is applied. A position is (partition, record_offset, batch_index).

-- Every counted event, once. The primary key is the exact dedupe: whoever comes second finds it taken.
-- Duplicates and conflicts leave no row here; `usage_fate` counts them.
CREATE TABLE usage_identity (
    tenant_id      text        NOT NULL,
    identity       uuid        NOT NULL,  -- 128-bit hash of (source, id)
    content        uuid        NOT NULL,  -- 128-bit hash of all else: tells a duplicate from a conflict
    partition      integer     NOT NULL,
    record_offset  bigint      NOT NULL,
    batch_index    integer     NOT NULL,
    customer_id    text        NOT NULL,
    event_time     timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, identity)
);

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
CREATE TABLE usage_value (
    tenant_id      text            NOT NULL,
    series         bigint          NOT NULL,
    event_time     timestamptz     NOT NULL,
    number         numeric(38,12),           -- null for a thing counted once (unique)
    text_value     text,                     -- the thing counted; null for a number
    partition      integer         NOT NULL,
    record_offset  bigint          NOT NULL,
    batch_index    integer         NOT NULL
);
CREATE INDEX usage_value_by_time ON usage_value (tenant_id, series, event_time);

-- Sums of usage_value by hour of the event and partition: a speed-up. A window counts for a cut only if all of it lies
-- below; the two offsets say so.
CREATE TABLE usage_window (
    tenant_id     text        NOT NULL,
    series        bigint      NOT NULL,
    hour          timestamptz NOT NULL,
    partition     integer     NOT NULL,
    events        bigint      NOT NULL CHECK (events > 0),
    total         numeric,                  -- null, like the next two, for things counted once
    lowest        numeric(38,12),
    highest       numeric(38,12),
    first_offset  bigint      NOT NULL,
    last_offset   bigint      NOT NULL CHECK (last_offset >= first_offset),
    PRIMARY KEY (tenant_id, series, hour, partition)
);

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
    PRIMARY KEY (tenant_id, hour, partition),
    CHECK (received = counted + duplicate + conflict + rejected)
);

-- Refused usage by position; the original bytes are in usage.rejected.
CREATE TABLE usage_rejected (
    tenant_id      text        NOT NULL,  -- empty where a record does not tell
    partition      integer     NOT NULL,
    record_offset  bigint      NOT NULL,
    batch_index    integer     NOT NULL,  -- -1: the whole record
    events         integer     NOT NULL CHECK (events > 0),
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
    tenant_id      text    NOT NULL,
    partition      integer NOT NULL,
    version        bigint  NOT NULL,
    control        bytea   NOT NULL,  -- the record as it came
    record_offset  bigint  NOT NULL,
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
