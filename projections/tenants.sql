-- One row per tenant: how it bills, what its clock says, and how far its events have been applied.
CREATE TABLE tenants (
    tenant_id              text         PRIMARY KEY,
    name                   text         NOT NULL,
    currency               char(3)      NOT NULL,
    zone                   text         NOT NULL,              -- IANA
    test_clock             timestamptz,                        -- the tenant's present; NULL: the real clock
    invoice_grace_minutes  integer      NOT NULL,
    payment_terms_days     integer      NOT NULL,
    retry_days             integer[]    NOT NULL,
    number_prefix          text         NOT NULL,
    usage_oldest_days      integer      NOT NULL,
    usage_ahead_minutes    integer      NOT NULL,
    registered_at          timestamptz  NOT NULL,
    last_sequence          bigint       NOT NULL CHECK (last_sequence > 0)  -- read your own writes: wait for it
);
