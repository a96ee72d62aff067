-- The edges of a window: what of it does not fill five minutes, from the log itself, in the form of
-- a rollup. Called by: request_figures.
-- plpgsql, because its statement is planned with the times at hand: only the partitions that hold
-- them are opened. Within LANGUAGE sql every partition would be planned and locked.
CREATE FUNCTION request_log_part(tenant uuid, since timestamptz, until timestamptz)
RETURNS TABLE (
    requests bigint,
    errors bigint,
    sum_ms double precision,
    max_ms double precision,
    bytes_in bigint,
    bytes_out bigint,
    bins smallint[],
    counts bigint[]
)
LANGUAGE plpgsql STABLE PARALLEL SAFE SECURITY INVOKER ROWS 1 AS $$
#variable_conflict use_column
BEGIN
    IF since >= until THEN
        RETURN;
    END IF;
    IF tenant = '00000000-0000-0000-0000-000000000000' THEN
        RETURN QUERY
        SELECT
            sum(s.n)::bigint, sum(s.failed)::bigint, sum(s.ms), max(s.longest),
            sum(s.received)::bigint, sum(s.sent)::bigint, array_agg(s.bin), array_agg(s.n)
        FROM (
            SELECT
                request_duration_bin(request_duration_ms(r.duration_ms)) AS bin,
                count(*) AS n, count(*) FILTER (WHERE r.status_code >= 400) AS failed,
                sum(request_duration_ms(r.duration_ms)) AS ms,
                max(request_duration_ms(r.duration_ms)) AS longest,
                sum(r.request_size_bytes) AS received, sum(r.response_size_bytes) AS sent
            FROM request_logs r
            WHERE r.request_time >= since AND r.request_time < until
            GROUP BY 1
        ) s
        HAVING count(*) > 0;
    ELSE
        RETURN QUERY
        SELECT
            sum(s.n)::bigint, sum(s.failed)::bigint, sum(s.ms), max(s.longest),
            sum(s.received)::bigint, sum(s.sent)::bigint, array_agg(s.bin), array_agg(s.n)
        FROM (
            SELECT
                request_duration_bin(request_duration_ms(r.duration_ms)) AS bin,
                count(*) AS n, count(*) FILTER (WHERE r.status_code >= 400) AS failed,
                sum(request_duration_ms(r.duration_ms)) AS ms,
                max(request_duration_ms(r.duration_ms)) AS longest,
                sum(r.request_size_bytes) AS received, sum(r.response_size_bytes) AS sent
            FROM request_logs r
            WHERE r.tenant_id = tenant AND r.request_time >= since AND r.request_time < until
            GROUP BY 1
        ) s
        HAVING count(*) > 0;
    END IF;
END
$$;
COMMENT ON FUNCTION request_log_part(uuid, timestamptz, timestamptz) IS
    'The calls from since up to and without until, of a tenant or (zero UUID) of all, as one row of the form of request_rollups; no row when there are none. Meant for a few minutes: it reads the log itself.';
