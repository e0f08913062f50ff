-- Who may speak for a tenant. The secret is shown once and never stored; 256 random bits need no slow hash.
CREATE TABLE app.api_key (
    tenant_id      text        NOT NULL,
    key_id         text        NOT NULL CHECK (key_id ~ '^[0-9a-z]{12}$'),
    name           text        NOT NULL DEFAULT '',
    secret_sha256  bytea       NOT NULL CHECK (length(secret_sha256) = 32),
    created_at     timestamptz NOT NULL DEFAULT now(),
    revoked_at     timestamptz,
    PRIMARY KEY (tenant_id, key_id)
);
-- A key comes before its tenant is known, so its id alone must find it.
CREATE UNIQUE INDEX api_key_id ON app.api_key (key_id);

-- What is known of a customer as a person: kept out of the log, so that it can be erased.
CREATE TABLE app.customer_profile (
    tenant_id    text        NOT NULL,
    customer_id  text        NOT NULL,
    name         text        NOT NULL DEFAULT '',
    email        text        NOT NULL DEFAULT '',
    written_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, customer_id)
);

-- Signs page cursors; made here, so that every instance of the API has the same and no setting is needed.
CREATE TABLE app.api_signing_key (
    purpose  text   PRIMARY KEY,
    secret   bytea  NOT NULL CHECK (length(secret) = 32)
);
INSERT INTO app.api_signing_key (purpose, secret)
VALUES ('cursor', sha256(convert_to(gen_random_uuid()::text || gen_random_uuid()::text, 'UTF8')));

ALTER TABLE app.api_key ENABLE ROW LEVEL SECURITY;
ALTER TABLE app.api_key FORCE ROW LEVEL SECURITY;
ALTER TABLE app.customer_profile ENABLE ROW LEVEL SECURITY;
ALTER TABLE app.customer_profile FORCE ROW LEVEL SECURITY;

CREATE POLICY all_tenants ON app.api_key
    TO tallybook_worker USING (true) WITH CHECK (true);
-- The API sees the one key that was presented to it, and through it the tenant.
CREATE POLICY presented_key ON app.api_key
   FOR SELECT TO tallybook_api
 USING (key_id = nullif(current_setting('app.api_key', true), ''));

CREATE POLICY all_tenants ON app.customer_profile
    TO tallybook_worker USING (true) WITH CHECK (true);
CREATE POLICY own_tenant ON app.customer_profile
    TO tallybook_api
 USING (tenant_id = nullif(current_setting('app.tenant', true), ''))
  WITH CHECK (tenant_id = nullif(current_setting('app.tenant', true), ''));

GRANT SELECT, INSERT, UPDATE, DELETE ON app.api_key, app.customer_profile TO tallybook_worker;
GRANT SELECT ON app.api_key TO tallybook_api;
GRANT SELECT, INSERT, UPDATE ON app.customer_profile TO tallybook_api;
GRANT SELECT ON app.api_signing_key TO tallybook_api;
