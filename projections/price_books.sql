-- Every version of every price book, whole: usage is rated by the version that a run names.
CREATE TABLE price_books (
    tenant_id      text         NOT NULL,
    version        integer      NOT NULL CHECK (version > 0),
    effective_at   timestamptz  NOT NULL,
    meter_keys     text[]       NOT NULL,
    plan_keys      text[]       NOT NULL,
    coupon_codes   text[]       NOT NULL,
    published_at   timestamptz  NOT NULL,
    sequence       bigint       NOT NULL,
    body           bytea        NOT NULL,  -- the event PriceBookPublished, Avro
    PRIMARY KEY (tenant_id, version)
);
