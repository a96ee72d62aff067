DROP FUNCTION get_tenant_usage_summary(text, integer);

-- What one tenant used in the last hours, in one row. Called by: the REST summaries, operators
-- in psql. The index on (tenant_id, request_time) serves it.
CREATE FUNCTION get_tenant_usage_summary(tenant text, hours integer DEFAULT 24)
RETURNS TABLE (
    tenant_id uuid,
    total_requests bigint,
    successful_requests bigint,
    failed_requests bigint,
    error_rate double precision,
    avg_duration_ms double precision,
    p95_duration_ms double precision,
    unique_users bigint,
    servers_used bigint,
    tools_used bigint,
    bytes_out bigint,
    active_api_keys bigint,
    registered_servers bigint
)
LANGUAGE sql STABLE PARALLEL SAFE SECURITY INVOKER ROWS 1 AS $$
    SELECT
        resolve_tenant(tenant),
        s.total,
        s.total - s.failed,
        s.failed,
        s.failed::double precision / nullif(s.total, 0),
        s.average,
        s.p95,
        s.users,
        s.servers,
        s.tools,
        s.bytes,
        (
            SELECT count(*) FROM enhanced_api_keys k
            WHERE k.tenant_id = resolve_tenant(tenant) AND k.is_active
              AND (k.expires_at IS NULL OR k.expires_at > statement_timestamp())
        ) + (
            SELECT count(*) FROM api_keys k
            WHERE k.tenant_id = resolve_tenant(tenant) AND k.is_active
              AND (k.expires_at IS NULL OR k.expires_at > statement_timestamp())
        ),
        (SELECT count(*) FROM mcp_servers m WHERE m.tenant_id = resolve_tenant(tenant))
    FROM (
        SELECT
            count(*) AS total,
            count(*) FILTER (WHERE r.status_code >= 400) AS failed,
            avg(r.duration_ms) AS average,
            percentile_cont(0.95) WITHIN GROUP (ORDER BY r.duration_ms) AS p95,
            count(DISTINCT r.user_id) AS users,
            count(DISTINCT r.target_server_id) AS servers,
            count(DISTINCT (r.target_server_id, r.tool_name)) FILTER (WHERE r.tool_name <> '')
                AS tools,
            coalesce(sum(r.response_size_bytes), 0)::bigint AS bytes
        FROM request_logs r
        WHERE r.tenant_id = resolve_tenant(tenant)
          AND r.request_time >= summary_window_start(hours)
          AND r.request_time < statement_timestamp()
    ) s
    -- Refuses hours <= 0 whatever the plan: over an empty table the conditions above never run.
    WHERE summary_window_start(hours) IS NOT NULL
$$;
COMMENT ON FUNCTION get_tenant_usage_summary(text, integer) IS
    'Exactly one row for the tenant with this id or slug over the last hours: counts, error_rate (0 to 1, failed is status >= 400), durations in milliseconds, response bytes; keys (both kinds, switched on and not expired) and servers as they are now. An unknown tenant is an error.';
