-- Issued invoices. `body` is the whole document; columns and the tables below are for lists, sums and searches.
CREATE TABLE invoices (
    tenant_id             text         NOT NULL,
    invoice_id            text         NOT NULL,
    number                text         NOT NULL,
    serial                bigint       NOT NULL CHECK (serial > 0),  -- gapless per tenant
    subscription_id       text         NOT NULL,
    customer_id           text         NOT NULL,
    reason                text         NOT NULL,
    plan                  text         NOT NULL,
    price_book_version    integer      NOT NULL,
    rating_engine         text         NOT NULL,
    period_start          timestamptz  NOT NULL,  -- of the usage it bills, or of the fees if it bills no usage
    period_end            timestamptz  NOT NULL,
    currency              char(3)      NOT NULL,
    subtotal_minor        bigint       NOT NULL,  -- minor units (ISO 4217), as all below
    discount_minor        bigint       NOT NULL,
    tax_minor             bigint       NOT NULL,
    total_minor           bigint       NOT NULL,
    credit_applied_minor  bigint       NOT NULL CHECK (credit_applied_minor >= 0),
    amount_due_minor      bigint       NOT NULL CHECK (amount_due_minor >= 0),
    status                text         NOT NULL CHECK (status IN ('open', 'paid')),
    issued_at             timestamptz  NOT NULL,
    due_at                timestamptz  NOT NULL,
    paid_at               timestamptz,
    paid_minor            bigint,                 -- zero if nothing was due; NULL while open
    seller                text         NOT NULL,
    sequence              bigint       NOT NULL,  -- of InvoiceFinalized
    canonical_hash        bytea        NOT NULL CHECK (octet_length(canonical_hash) = 32),  -- SHA-256 of the document
    body                  bytea        NOT NULL,  -- InvoiceFinalized, Avro
    PRIMARY KEY (tenant_id, invoice_id),
    UNIQUE (tenant_id, serial),
    UNIQUE (tenant_id, number),
    CHECK ((status = 'paid') = (paid_at IS NOT NULL)),
    CHECK (total_minor = subtotal_minor - discount_minor + tax_minor)
);

CREATE INDEX invoices_of_customer     ON invoices (tenant_id, customer_id, serial);
CREATE INDEX invoices_of_subscription ON invoices (tenant_id, subscription_id, serial);
CREATE INDEX invoices_by_status       ON invoices (tenant_id, status, serial);

CREATE TABLE invoice_lines (
    tenant_id       text         NOT NULL,
    invoice_id      text         NOT NULL,
    line            integer      NOT NULL CHECK (line > 0),  -- 1, 2, 3, ... as printed
    kind            text         NOT NULL,
    charge          text         NOT NULL,
    description     text         NOT NULL,
    period_start    timestamptz  NOT NULL,
    period_end      timestamptz  NOT NULL,
    quantity        numeric,                                 -- NULL for fees
    currency        char(3)      NOT NULL,
    amount_minor    bigint       NOT NULL,                   -- before discounts
    discount_minor  bigint       NOT NULL,
    explanation     text         NOT NULL,                   -- the arithmetic
    PRIMARY KEY (tenant_id, invoice_id, line)
);

CREATE TABLE invoice_discounts (
    tenant_id     text     NOT NULL,
    invoice_id    text     NOT NULL,
    coupon        text     NOT NULL,
    currency      char(3)  NOT NULL,
    amount_minor  bigint   NOT NULL CHECK (amount_minor > 0),
    PRIMARY KEY (tenant_id, invoice_id, coupon)
);

CREATE TABLE invoice_taxes (
    tenant_id      text     NOT NULL,
    invoice_id     text     NOT NULL,
    tax            integer  NOT NULL CHECK (tax > 0),  -- 1, 2, 3, ... as printed
    code           text     NOT NULL,
    jurisdiction   text     NOT NULL,
    percent        numeric  NOT NULL,
    inclusive      boolean  NOT NULL,
    currency       char(3)  NOT NULL,
    base_minor     bigint   NOT NULL,  -- what is taxed
    amount_minor   bigint   NOT NULL,
    PRIMARY KEY (tenant_id, invoice_id, tax)
);
