DROP FUNCTION get_server_health_summary();

-- Servers by health, and all of them. Called by: the REST summaries, operators in psql.
-- One pass over mcp_servers; GROUPING SETS gives the row 'all' even when there is no server.
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
    GROUP BY GROUPING SETS ((m.health_status), ())
    ORDER BY grouping(m.health_status), m.health_status
$$;
COMMENT ON FUNCTION get_server_health_summary() IS
    'One row a health status that occurs, then one row all: servers, their mean response time (milliseconds) and success rate (0 to 1), how many were not checked in the last 5 minutes, open circuit breakers, the newest check.';
