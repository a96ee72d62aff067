-- What one tenant used in the last hours, in one row, from the rollups. Called by: the REST
-- summaries, operators in psql.
-- Servers, tools and users are counted from their hours. Each says when within the hour it was
-- seen first and last, which tells whether it was seen in the part that the window covers.
DROP FUNCTION get_tenant_usage_summary(text, integer);
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
    WITH asked AS MATERIALIZED (
        SELECT
            resolve_tenant(get_tenant_usage_summary.tenant) AS tenant_id,
            summary_window_start(get_tenant_usage_summary.hours) AS since,
            statement_timestamp() AS until
    ),
    used AS (
        SELECT u.server_id, u.tool_name
        FROM asked a
        CROSS JOIN LATERAL (
            SELECT r.server_id, r.tool_name
            FROM request_usage r
            WHERE r.tenant_id = a.tenant_id AND r.bucket > a.since - interval '1 hour'
              AND r.bucket < a.until AND r.last_seen >= a.since AND r.first_seen < a.until
            UNION ALL
            SELECT d.server_id, d.tool_name
            FROM request_usage_deltas d
            WHERE d.tenant_id = a.tenant_id AND d.bucket > a.since - interval '1 hour'
              AND d.bucket < a.until AND d.last_seen >= a.since AND d.first_seen < a.until
        ) u
        GROUP BY u.server_id, u.tool_name
    ),
    callers AS (
        SELECT c.user_id
        FROM asked a
        CROSS JOIN LATERAL (
            SELECT r.user_id
            FROM request_users r
            WHERE r.tenant_id = a.tenant_id AND r.bucket > a.since - interval '1 hour'
              AND r.bucket < a.until AND r.last_seen >= a.since AND r.first_seen < a.until
            UNION ALL
            SELECT d.user_id
            FROM request_user_deltas d
            WHERE d.tenant_id = a.tenant_id AND d.bucket > a.since - interval '1 hour'
              AND d.bucket < a.until AND d.last_seen >= a.since AND d.first_seen < a.until
        ) c
        GROUP BY c.user_id
    )
    SELECT
        a.tenant_id,
        f.requests,
        f.requests - f.errors,
        f.errors,
        f.errors::double precision / nullif(f.requests, 0),
        f.sum_ms / nullif(f.requests, 0),
        f.p95_ms,
        (SELECT count(*) FROM callers),
        (
            SELECT count(DISTINCT u.server_id) FROM used u
            WHERE u.server_id <> '00000000-0000-0000-0000-000000000000'
        ),
        (SELECT count(*) FROM used u WHERE u.tool_name <> ''),
        f.bytes_out,
        (
            SELECT count(*) FROM enhanced_api_keys k
            WHERE k.tenant_id = a.tenant_id AND k.is_active
              AND (k.expires_at IS NULL OR k.expires_at > statement_timestamp())
        ) + (
            SELECT count(*) FROM api_keys k
            WHERE k.tenant_id = a.tenant_id AND k.is_active
              AND (k.expires_at IS NULL OR k.expires_at > statement_timestamp())
        ),
        (SELECT count(*) FROM mcp_servers m WHERE m.tenant_id = a.tenant_id)
    FROM asked a
    CROSS JOIN LATERAL request_figures(a.tenant_id, a.since, a.until) f
$$;
COMMENT ON FUNCTION get_tenant_usage_summary(text, integer) IS
    'Exactly one row for the tenant with this id or slug over the last hours: counts, error_rate (0 to 1, failed is status >= 400), durations in milliseconds, response bytes; keys (both kinds, switched on and not expired) and servers as they are now. Counts, sums and the average are exact, unique_users, servers_used and tools_used are counted exactly from hourly rollups, p95_duration_ms is within 2 %. An unknown tenant is an error.';
