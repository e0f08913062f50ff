-- The journal: one row per event and account that it moves. Debits are positive, credits negative.
CREATE TABLE ledger_entries (
    tenant_id    text         NOT NULL,
    sequence     bigint       NOT NULL,  -- of the event
    account      text         NOT NULL,
    currency     char(3)      NOT NULL,
    minor        bigint       NOT NULL CHECK (minor <> 0),
    event_type   text         NOT NULL,
    invoice_id   text,                   -- NULL for credit that was granted or expired
    customer_id  text         NOT NULL,
    occurred_at  timestamptz  NOT NULL,
    PRIMARY KEY (tenant_id, sequence, account, currency)
);

CREATE INDEX ledger_entries_of_invoice ON ledger_entries (tenant_id, invoice_id);

-- The books balance after each statement, whoever wrote it and whatever it wrote.
CREATE FUNCTION refuse_unbalanced_entry() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    unbalanced record;
BEGIN
    SELECT e.tenant_id, e.sequence, e.currency, sum(e.minor) AS minor
      INTO unbalanced
      FROM ledger_entries e
     WHERE (e.tenant_id, e.sequence) IN (SELECT w.tenant_id, w.sequence FROM written w)
     GROUP BY e.tenant_id, e.sequence, e.currency
    HAVING sum(e.minor) <> 0
     LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'unbalanced: event % of % is off by % % (minor units)',
              unbalanced.sequence, unbalanced.tenant_id, unbalanced.minor, unbalanced.currency
              USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER balanced_when_written
 AFTER INSERT ON ledger_entries
       REFERENCING NEW TABLE AS written
   FOR EACH STATEMENT EXECUTE FUNCTION refuse_unbalanced_entry();

CREATE TRIGGER balanced_when_changed
 AFTER UPDATE ON ledger_entries
       REFERENCING NEW TABLE AS written
   FOR EACH STATEMENT EXECUTE FUNCTION refuse_unbalanced_entry();

CREATE TRIGGER balanced_when_removed
 AFTER DELETE ON ledger_entries
       REFERENCING OLD TABLE AS written
   FOR EACH STATEMENT EXECUTE FUNCTION refuse_unbalanced_entry();

CREATE VIEW trial_balance WITH (security_invoker = true) AS
SELECT tenant_id,
       currency,
       account,
       coalesce(sum(minor) FILTER (WHERE minor > 0), 0)::bigint  AS debit_minor,
       coalesce(-sum(minor) FILTER (WHERE minor < 0), 0)::bigint AS credit_minor,
       sum(minor)::bigint                                        AS balance_minor
  FROM ledger_entries
 GROUP BY tenant_id, currency, account;
