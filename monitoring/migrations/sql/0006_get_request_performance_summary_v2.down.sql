DROP FUNCTION get_request_performance_summary(integer);

-- Requests of the last hours, in one row. Called by: the REST summaries, operators in psql.
-- One SELECT in LANGUAGE sql, so that the planner inlines it and sees the time range; both ends
-- are bounded, or later partitions would stay in the plan. The window ends with the statement,
-- not with the transaction, so that a transaction sees the rows that it wrote.
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
    SELECT
        s.total,
        s.total - s.failed,
        s.failed,
        s.failed::double precision / nullif(s.total, 0),
        s.average,
        s.percentiles[1],
        s.percentiles[2],
        s.percentiles[3],
        s.longest,
        s.total / (hours * 60.0::double precision)
    FROM (
        SELECT
            count(*) AS total,
            count(*) FILTER (WHERE r.status_code >= 400) AS failed,
            avg(r.duration_ms) AS average,
            percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY r.duration_ms)
                AS percentiles,
            max(r.duration_ms) AS longest
        FROM request_logs r
        WHERE r.request_time >= summary_window_start(hours)
          AND r.request_time < statement_timestamp()
    ) s
    -- Refuses hours <= 0 whatever the plan: over an empty table the conditions above never run.
    WHERE summary_window_start(hours) IS NOT NULL
$$;
COMMENT ON FUNCTION get_request_performance_summary(integer) IS
    'Exactly one row over the last hours: counts, error_rate (0 to 1, failed is status >= 400), durations in milliseconds; NULL where there is nothing to average.';
