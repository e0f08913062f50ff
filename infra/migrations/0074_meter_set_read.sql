-- A tenant may ask the API what counting again by its newest definitions would change.
CREATE POLICY own_tenant ON app.meter_set
    FOR SELECT TO tallybook_api
 USING (tenant_id = nullif(current_setting('app.tenant', true), ''));

GRANT SELECT ON app.meter_set TO tallybook_api;
