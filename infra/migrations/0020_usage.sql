-- Versions of usage_changed: outside the generations, so that a rebuilt one never shows an older version as newer.
CREATE SEQUENCE app.usage_change;

GRANT USAGE ON SEQUENCE app.usage_change TO tallybook_worker;
