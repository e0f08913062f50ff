-- Sums of usage_value by day (UTC), for answers that take in much usage: a speed-up, as usage_window is. No writer makes
-- them: they follow in the background, an hour at a time (`usage_rollup`), and until they do the windows answer.
-- Each array holds running sums: of the day's first slot, of its first two, ... of all of it.

-- Of each series; 48 slots of half an hour.
CREATE TABLE usage_day (
    tenant_id  text      NOT NULL,
    series     bigint    NOT NULL,
    day        date      NOT NULL,
    partition  integer   NOT NULL,
    events     bigint[]  NOT NULL,
    total      numeric[],           -- null for things counted once
    PRIMARY KEY (series, day, partition, tenant_id)
) WITH (fillfactor = 70);

-- Of all customers together; 96 slots of a quarter of an hour, for zones whose offset is no whole hour.
CREATE TABLE usage_total (
    tenant_id         text      NOT NULL,
    meter             text      NOT NULL,
    dimension_names   text[]    NOT NULL,
    dimension_values  text[]    NOT NULL,
    day               date      NOT NULL,
    partition         integer   NOT NULL,
    events            bigint[]  NOT NULL,
    total             numeric[],
    PRIMARY KEY (tenant_id, meter, day, dimension_names, dimension_values, partition)
) WITH (fillfactor = 70);

-- How far the sums go, in one row.
CREATE TABLE usage_rolled (
    tenant_id   text        PRIMARY KEY DEFAULT '' CHECK (tenant_id = ''),  -- empty: of all
    until       timestamptz NOT NULL,  -- a whole hour: the sums hold all of the time before, and are read
    following   timestamptz NOT NULL CHECK (following >= until),  -- they will go so far: writers add what is before
    partitions  integer[]   NOT NULL,  -- when `following` was set they stood at `offsets`; what lies below there, from
    offsets     bigint[]    NOT NULL   -- `until` on, is not in the sums yet
);
INSERT INTO usage_rolled VALUES ('', '-infinity', '-infinity', '{}', '{}');
CREATE POLICY everybody ON usage_rolled FOR SELECT TO tallybook_api USING (true);

-- An hour's values, without an index that costs the writer anything: they mostly follow the order of time.
CREATE INDEX usage_value_by_day ON usage_value USING brin (event_time) WITH (pages_per_range = 64, autosummarize = on);
