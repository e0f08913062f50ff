-- Backfills of meters, by the control record of the partition that asks for one. While `pending` nothing is changed
-- that anybody reads; a switch then makes all of it count from the record's offset on, in one transaction.
CREATE TABLE usage_backfill (
    tenant_id      text         NOT NULL,
    partition      integer      NOT NULL,
    record_offset  bigint       NOT NULL,  -- of the control record: events before it are counted again
    version        bigint       NOT NULL,
    control        bytea        NOT NULL,  -- the record as it came
    meter          text         NOT NULL,
    begins_at      timestamptz  NOT NULL,  -- event times from here on,
    ends_at        timestamptz  NOT NULL,  -- and before
    appended_at    timestamptz  NOT NULL,  -- of the control record; identities are kept for it until it is done
    state          text         NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'done', 'failed')),
    detail         text         NOT NULL DEFAULT '',  -- why it failed
    first_offset   bigint,                 -- of the first event to be counted again; null: not begun
    next_offset    bigint,                 -- up to which the log is read again
    events         bigint       NOT NULL DEFAULT 0,   -- counted again so far
    unmeasured     bigint       NOT NULL DEFAULT 0,   -- of those, that the definition cannot measure: they add nothing
    PRIMARY KEY (tenant_id, partition, record_offset)
);
CREATE INDEX usage_backfill_pending ON usage_backfill (partition, record_offset) WHERE state = 'pending';

-- What events contribute by the new definition, until the switch; empty but while a backfill is pending.
CREATE TABLE usage_backfill_value (
    tenant_id        text         NOT NULL,
    partition        integer      NOT NULL,
    backfill_offset  bigint       NOT NULL,
    series           bigint       NOT NULL,
    record_offset    bigint       NOT NULL,
    batch_index      integer      NOT NULL,
    event_time       timestamptz  NOT NULL,
    number           numeric,
    text_value       text,
    PRIMARY KEY (tenant_id, partition, backfill_offset, series, record_offset, batch_index)
);
