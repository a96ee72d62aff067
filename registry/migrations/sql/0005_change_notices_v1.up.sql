-- Tells every gateway process that a row which it may hold in memory has changed: channel
-- 'gateway_changes', text '<table>.<column>=<value>' for each column that the trigger names, or
-- the table's name alone after TRUNCATE. PostgreSQL sends equal texts of a transaction once.
-- NOTIFY takes a lock at commit that all of the cluster's notifying transactions share, so these
-- triggers fire for the columns that decide about calls and never for counters or gauges.
-- Called by: the triggers <table>_change_notice… of registry, security and gateway.
CREATE FUNCTION registry_change_notice_v1() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    label text;
BEGIN
    IF TG_LEVEL = 'STATEMENT' THEN
        PERFORM pg_notify('gateway_changes', TG_TABLE_NAME);
        RETURN NULL;
    END IF;
    FOREACH label IN ARRAY TG_ARGV LOOP
        IF TG_OP <> 'INSERT' THEN
            PERFORM pg_notify(
                'gateway_changes', TG_TABLE_NAME || '.' || label || '=' || (to_jsonb(OLD) ->> label));
        END IF;
        IF TG_OP <> 'DELETE' THEN
            PERFORM pg_notify(
                'gateway_changes', TG_TABLE_NAME || '.' || label || '=' || (to_jsonb(NEW) ->> label));
        END IF;
    END LOOP;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION registry_change_notice_v1() IS
    'Tells the gateways by NOTIFY gateway_changes that a row which decides about calls has changed.';

CREATE TRIGGER tenants_change_notice
    AFTER UPDATE OF status, slug, settings ON tenants FOR EACH ROW
    WHEN ((OLD.status, OLD.slug, OLD.settings) IS DISTINCT FROM (NEW.status, NEW.slug, NEW.settings))
    EXECUTE FUNCTION registry_change_notice_v1('id');

-- By the slug as well: a new server may stand before a shared one of the same slug.
CREATE TRIGGER mcp_servers_change_notice
    AFTER UPDATE OF tenant_id, slug, is_enabled, endpoint_url, transport_type, credentials
    ON mcp_servers FOR EACH ROW
    WHEN ((OLD.tenant_id, OLD.slug, OLD.is_enabled, OLD.endpoint_url, OLD.transport_type,
           OLD.credentials)
          IS DISTINCT FROM
          (NEW.tenant_id, NEW.slug, NEW.is_enabled, NEW.endpoint_url, NEW.transport_type,
           NEW.credentials))
    EXECUTE FUNCTION registry_change_notice_v1('id', 'slug');
CREATE TRIGGER mcp_servers_change_notice_rows
    AFTER INSERT OR DELETE ON mcp_servers FOR EACH ROW
    EXECUTE FUNCTION registry_change_notice_v1('id', 'slug');
CREATE TRIGGER mcp_servers_change_notice_truncate
    AFTER TRUNCATE ON mcp_servers FOR EACH STATEMENT
    EXECUTE FUNCTION registry_change_notice_v1();

-- A tool decides about calls only while it is switched off.
CREATE TRIGGER server_tools_change_notice
    AFTER UPDATE OF server_id, name, is_enabled, schema_hash ON server_tools FOR EACH ROW
    WHEN ((OLD.server_id, OLD.name, OLD.is_enabled, OLD.schema_hash <> '')
          IS DISTINCT FROM
          (NEW.server_id, NEW.name, NEW.is_enabled, NEW.schema_hash <> ''))
    EXECUTE FUNCTION registry_change_notice_v1('server_id');
CREATE TRIGGER server_tools_change_notice_insert
    AFTER INSERT ON server_tools FOR EACH ROW WHEN (NOT NEW.is_enabled)
    EXECUTE FUNCTION registry_change_notice_v1('server_id');
CREATE TRIGGER server_tools_change_notice_delete
    AFTER DELETE ON server_tools FOR EACH ROW WHEN (NOT OLD.is_enabled)
    EXECUTE FUNCTION registry_change_notice_v1('server_id');
CREATE TRIGGER server_tools_change_notice_truncate
    AFTER TRUNCATE ON server_tools FOR EACH STATEMENT
    EXECUTE FUNCTION registry_change_notice_v1();
