-- Servers by health, and all of them. Called by: operators in psql.
-- A session that is limited to a tenant gets what that tenant sees.
DROP FUNCTION get_server_health_summary();
CREATE FUNCTION get_server_health_summary()
RETURNS TABLE (
    health_status text,
    servers bigint,
    avg_response_time double precision,
    success_rate double precision,
    stale_checks bigint,
    open_breakers bigint,
    last_health_check timestamptz
)
LANGUAGE sql STABLE PARALLEL SAFE SECURITY INVOKER ROWS 6 AS $$
    SELECT h.*
    FROM server_health(nullif(current_setting('gateway.tenant_id', true), '')::uuid) h
$$;
COMMENT ON FUNCTION get_server_health_summary() IS
    'One row a health status that occurs, then one row all: servers, their mean response time (milliseconds) and success rate (0 to 1), how many were not checked in the last 5 minutes, open circuit breakers, the newest check. Of the servers that the tenant in gateway.tenant_id sees, without it of all.';
