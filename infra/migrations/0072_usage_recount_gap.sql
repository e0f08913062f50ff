-- Parts of the usage log that retention took before they were counted a second time. What the second count holds of their
-- hours is not all there was, so these are not compared with `usage_fate`.
CREATE TABLE app.usage_recount_gap (
    partition     integer     NOT NULL,
    first_offset  bigint      NOT NULL,
    next_offset   bigint      NOT NULL CHECK (next_offset > first_offset),  -- the first that the log still had
    since         timestamptz,  -- first hour it may reach into; null: every hour before `until`
    until         timestamptz,  -- hour of the first record behind it, which may not be whole; null: none came yet
    PRIMARY KEY (partition, first_offset)
);

GRANT SELECT, INSERT, UPDATE, DELETE ON app.usage_recount_gap TO tallybook_worker;
