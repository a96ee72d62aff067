-- Servers by health, and all of them: those that one tenant sees, or everything. Called by:
-- get_server_health_summary, the REST summaries.
-- One pass over mcp_servers; GROUPING SETS gives the row 'all' even when there is no server.
CREATE FUNCTION server_health(tenant uuid)
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
    SELECT
        CASE WHEN grouping(m.health_status) = 1 THEN 'all' ELSE m.health_status END::text,
        count(m.id),
        avg(m.avg_response_time),
        avg(m.success_rate),
        count(m.id) FILTER (
            WHERE m.last_health_check IS NULL
               OR m.last_health_check < statement_timestamp() - interval '5 minutes'
        ),
        coalesce(sum(b.open), 0)::bigint,
        max(m.last_health_check)
    FROM mcp_servers m
    LEFT JOIN (
        SELECT c.server_id, count(*) AS open
        FROM circuit_breakers c
        WHERE c.state = 'open'
        GROUP BY c.server_id
    ) b ON b.server_id = m.id
    WHERE server_health.tenant IS NULL OR m.tenant_id = server_health.tenant OR m.tenant_id IS NULL
    GROUP BY GROUPING SETS ((m.health_status), ())
    ORDER BY grouping(m.health_status), m.health_status
$$;
COMMENT ON FUNCTION server_health(uuid) IS
    'The rows of get_server_health_summary over the servers of one tenant and the shared ones; NULL: over all servers.';
