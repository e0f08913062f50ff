-- What a customer may use: one row per feature and subscription that grants it. A grant that ended stays, revoked, so
-- that whoever publishes changes sees it end.
CREATE TABLE entitlements (
    tenant_id        text         NOT NULL,
    customer_id      text         NOT NULL,
    feature          text         NOT NULL,
    subscription_id  text         NOT NULL,
    kind             text         NOT NULL CHECK (kind IN ('boolean', 'metered')),
    meter            text,
    limit_quantity   numeric,                -- per billing period
    limit_kind       text         NOT NULL CHECK (limit_kind IN ('hard', 'soft')),
    when_unknown     text         NOT NULL CHECK (when_unknown IN ('closed', 'open')),
    book_version     integer      NOT NULL,  -- price book that defines the meter
    period_start     timestamptz  NOT NULL,  -- of the current period, whose usage counts
    period_end       timestamptz  NOT NULL,
    revoked_at       timestamptz,            -- NULL: granted
    version          bigint       NOT NULL,  -- sequence of the tenant's event that changed it last
    PRIMARY KEY (tenant_id, customer_id, feature, subscription_id),
    CHECK ((kind = 'metered') = (meter IS NOT NULL AND limit_quantity IS NOT NULL))
);

CREATE INDEX entitlements_by_version      ON entitlements (tenant_id, version);
CREATE INDEX entitlements_of_subscription ON entitlements (tenant_id, subscription_id);
CREATE INDEX entitlements_by_meter        ON entitlements (tenant_id, customer_id, meter) WHERE revoked_at IS NULL;
