-- What decides about a key and a call; the counters beside it stay silent. A new key needs no
-- notice: nobody remembers that a key is unknown.
CREATE TRIGGER enhanced_api_keys_change_notice
    AFTER UPDATE OF key_hash, salt, key_prefix, user_id, tenant_id, scopes, allowed_servers,
        allowed_methods, ip_whitelist, rate_limit_per_hour, rate_limit_per_day, is_active,
        expires_at, is_locked, locked_until
    ON enhanced_api_keys FOR EACH ROW
    WHEN ((OLD.key_hash, OLD.salt, OLD.key_prefix, OLD.user_id, OLD.tenant_id, OLD.scopes,
           OLD.allowed_servers, OLD.allowed_methods, OLD.ip_whitelist, OLD.rate_limit_per_hour,
           OLD.rate_limit_per_day, OLD.is_active, OLD.expires_at, OLD.is_locked, OLD.locked_until)
          IS DISTINCT FROM
          (NEW.key_hash, NEW.salt, NEW.key_prefix, NEW.user_id, NEW.tenant_id, NEW.scopes,
           NEW.allowed_servers, NEW.allowed_methods, NEW.ip_whitelist, NEW.rate_limit_per_hour,
           NEW.rate_limit_per_day, NEW.is_active, NEW.expires_at, NEW.is_locked, NEW.locked_until))
    EXECUTE FUNCTION registry_change_notice_v1('id');
CREATE TRIGGER enhanced_api_keys_change_notice_delete
    AFTER DELETE ON enhanced_api_keys FOR EACH ROW
    EXECUTE FUNCTION registry_change_notice_v1('id');
CREATE TRIGGER enhanced_api_keys_change_notice_truncate
    AFTER TRUNCATE ON enhanced_api_keys FOR EACH STATEMENT
    EXECUTE FUNCTION registry_change_notice_v1();

CREATE TRIGGER api_keys_change_notice
    AFTER UPDATE OF key_hash, user_id, tenant_id, scopes, is_active, expires_at
    ON api_keys FOR EACH ROW
    WHEN ((OLD.key_hash, OLD.user_id, OLD.tenant_id, OLD.scopes, OLD.is_active, OLD.expires_at)
          IS DISTINCT FROM
          (NEW.key_hash, NEW.user_id, NEW.tenant_id, NEW.scopes, NEW.is_active, NEW.expires_at))
    EXECUTE FUNCTION registry_change_notice_v1('id');
CREATE TRIGGER api_keys_change_notice_delete
    AFTER DELETE ON api_keys FOR EACH ROW
    EXECUTE FUNCTION registry_change_notice_v1('id');
CREATE TRIGGER api_keys_change_notice_truncate
    AFTER TRUNCATE ON api_keys FOR EACH STATEMENT
    EXECUTE FUNCTION registry_change_notice_v1();

CREATE TRIGGER users_change_notice
    AFTER UPDATE OF is_active ON users FOR EACH ROW
    WHEN (OLD.is_active IS DISTINCT FROM NEW.is_active)
    EXECUTE FUNCTION registry_change_notice_v1('id');

CREATE TRIGGER server_access_control_change_notice
    AFTER UPDATE OF server_id, user_id, tenant_id, api_key_id, can_proxy, allowed_methods,
        denied_methods, access_start_time, access_end_time, allowed_days, allowed_hours, timezone,
        is_active
    ON server_access_control FOR EACH ROW
    WHEN ((OLD.server_id, OLD.user_id, OLD.tenant_id, OLD.api_key_id, OLD.can_proxy,
           OLD.allowed_methods, OLD.denied_methods, OLD.access_start_time, OLD.access_end_time,
           OLD.allowed_days, OLD.allowed_hours, OLD.timezone, OLD.is_active)
          IS DISTINCT FROM
          (NEW.server_id, NEW.user_id, NEW.tenant_id, NEW.api_key_id, NEW.can_proxy,
           NEW.allowed_methods, NEW.denied_methods, NEW.access_start_time, NEW.access_end_time,
           NEW.allowed_days, NEW.allowed_hours, NEW.timezone, NEW.is_active))
    EXECUTE FUNCTION registry_change_notice_v1('server_id');
CREATE TRIGGER server_access_control_change_notice_rows
    AFTER INSERT OR DELETE ON server_access_control FOR EACH ROW
    EXECUTE FUNCTION registry_change_notice_v1('server_id');
CREATE TRIGGER server_access_control_change_notice_truncate
    AFTER TRUNCATE ON server_access_control FOR EACH STATEMENT
    EXECUTE FUNCTION registry_change_notice_v1();
