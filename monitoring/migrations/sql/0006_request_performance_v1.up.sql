-- The calls of the last hours, of one tenant or of all. Called by: get_request_performance_summary,
-- the REST summaries, the admin's first page. The window ends with the statement, not with the
-- transaction, so that a transaction sees the rows that it wrote.
CREATE FUNCTION request_performance(tenant uuid, hours integer)
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
        f.requests,
        f.requests - f.errors,
        f.errors,
        f.errors::double precision / nullif(f.requests, 0),
        f.sum_ms / nullif(f.requests, 0),
        f.p50_ms,
        f.p95_ms,
        f.p99_ms,
        f.max_ms,
        f.requests / (hours * 60.0::double precision)
    FROM request_figures(tenant, summary_window_start(hours), statement_timestamp()) f
    -- Refuses hours <= 0 whatever the plan.
    WHERE summary_window_start(hours) IS NOT NULL
$$;
COMMENT ON FUNCTION request_performance(uuid, integer) IS
    'The columns of get_request_performance_summary over the calls of one tenant, or with the zero UUID of all tenants together.';
