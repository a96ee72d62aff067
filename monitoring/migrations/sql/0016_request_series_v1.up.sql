-- The calls of a window as a series over time. Called by: the admin's charts, the REST summaries.
-- Spans of five minutes, or of an hour where a step is made of hours, and the deltas that are not
-- in them yet: the rows of the log are never read. The newest step is not over yet.
CREATE FUNCTION request_series(tenant uuid, since timestamptz, until timestamptz, step interval)
RETURNS TABLE (
    bucket timestamptz,
    requests bigint,
    errors bigint,
    avg_duration_ms double precision,
    p50_duration_ms double precision,
    p95_duration_ms double precision,
    p99_duration_ms double precision
)
LANGUAGE sql STABLE PARALLEL SAFE SECURITY INVOKER ROWS 60 AS $$
    WITH parts AS MATERIALIZED (
        SELECT
            date_bin(step, r.bucket, since) AS slot,
            r.requests, r.errors, r.sum_ms, r.bins, r.counts
        FROM request_rollups r
        WHERE r.tenant_id = tenant
          AND r.minutes = CASE WHEN step < '1 hour' THEN 5 ELSE 60 END
          AND r.bucket >= since AND r.bucket < until
        UNION ALL
        SELECT
            date_bin(step, d.bucket, since),
            d.requests, d.errors, d.sum_ms, d.bins, d.counts
        FROM request_rollup_deltas d
        WHERE d.tenant_id = tenant AND d.bucket >= since AND d.bucket < until
    ),
    totals AS (
        SELECT
            p.slot,
            sum(p.requests)::bigint AS requests,
            sum(p.errors)::bigint AS errors,
            sum(p.sum_ms) AS sum_ms
        FROM parts p
        GROUP BY p.slot
    ),
    ladder AS (
        SELECT
            b.slot, b.bin,
            sum(b.requests) OVER (PARTITION BY b.slot ORDER BY b.bin) AS up_to,
            sum(b.requests) OVER (PARTITION BY b.slot) AS all_of_them
        FROM (
            SELECT p.slot, h.bin, sum(h.requests) AS requests
            FROM parts p
            CROSS JOIN LATERAL unnest(p.bins, p.counts) AS h (bin, requests)
            GROUP BY p.slot, h.bin
        ) b
    ),
    percentiles AS (
        SELECT
            l.slot,
            min(l.bin) FILTER (WHERE l.up_to >= 0.50 * l.all_of_them) AS p50,
            min(l.bin) FILTER (WHERE l.up_to >= 0.95 * l.all_of_them) AS p95,
            min(l.bin) FILTER (WHERE l.up_to >= 0.99 * l.all_of_them) AS p99
        FROM ladder l
        GROUP BY l.slot
    )
    SELECT
        g.slot,
        coalesce(t.requests, 0),
        coalesce(t.errors, 0),
        t.sum_ms / nullif(t.requests, 0),
        request_bin_ms(p.p50),
        request_bin_ms(p.p95),
        request_bin_ms(p.p99)
    FROM generate_series(since, until - interval '1 microsecond', step) AS g (slot)
    LEFT JOIN totals t ON t.slot = g.slot
    LEFT JOIN percentiles p ON p.slot = g.slot
    ORDER BY g.slot
$$;
COMMENT ON FUNCTION request_series(uuid, timestamptz, timestamptz, interval) IS
    'One row a step from since up to and without until, also where there were no calls: of a tenant or (zero UUID) of all. since and step must be whole multiples of five minutes, and of an hour where step is hours. Counts are exact; percentiles, of the nearest rank, within 2 %; durations in milliseconds, NULL without calls.';
