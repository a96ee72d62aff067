-- Requests of the last hours, in one row, from the rollups. Called by: operators in psql.
-- A session that is limited to a tenant gets the figures of that tenant.
DROP FUNCTION get_request_performance_summary(integer);
CREATE FUNCTION get_request_performance_summary(hours integer DEFAULT 24)
RETURNS TABLE (
    total_requests bigint,
    successful_requests bigint,
    failed_requests bigint,
    error_rate double precision,
    avg_duration_ms double precision,
    p50_duration_ms double precision,
    p95_duration_ms double precision,
    p99_duration_ms double precision,
    max_duration_ms double precision,
    requests_per_minute double precision
)
LANGUAGE sql STABLE PARALLEL SAFE SECURITY INVOKER ROWS 1 AS $$
    SELECT p.*
    FROM request_performance(
        coalesce(
            nullif(current_setting('gateway.tenant_id', true), '')::uuid,
            '00000000-0000-0000-0000-000000000000'
        ),
        hours
    ) p
$$;
COMMENT ON FUNCTION get_request_performance_summary(integer) IS
    'Exactly one row over the last hours: counts, error_rate (0 to 1, failed is status >= 400), durations in milliseconds; NULL where there is nothing to average. Of the tenant that gateway.tenant_id names, without it of all. Counts, averages and the maximum are exact, percentiles within 2 %.';
