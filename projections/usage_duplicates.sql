-- Copies of counted events, by position: `usage_fate` counts them, these rows tell each. An event without copies costs
-- nothing here; a row goes when no copy of what was appended then is accepted any more (`usage_pruned`).
CREATE TABLE usage_duplicate (
    tenant_id      text        NOT NULL,
    identity       uuid        NOT NULL,  -- of the event that counted, as in usage_identity
    partition      integer     NOT NULL,
    record_offset  bigint      NOT NULL,
    batch_index    integer     NOT NULL,
    appended_at    timestamptz NOT NULL,  -- of the copy, by the broker's clock
    PRIMARY KEY (tenant_id, identity, partition, record_offset, batch_index)
);

-- By time at next to no cost for the writer: rows are appended in about this order.
CREATE INDEX usage_duplicate_by_time ON usage_duplicate USING brin (appended_at) WITH (pages_per_range = 32);
