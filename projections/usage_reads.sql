-- Indexes for those who look at usage from outside; no writer and no invoice needs them.

-- By time at next to no cost for the writer: event times mostly follow the order in which rows are appended.
CREATE INDEX usage_identity_by_time ON usage_identity USING brin (event_time) WITH (pages_per_range = 32);

CREATE INDEX usage_series_by_meter ON usage_series (tenant_id, meter, customer_id);

CREATE INDEX usage_rejected_by_event ON usage_rejected (tenant_id, source, event_id);
CREATE INDEX usage_rejected_by_time ON usage_rejected (tenant_id, appended_at, partition, record_offset, batch_index);
