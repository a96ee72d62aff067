-- The calls of any window in one row. Called by: the summaries of requests, performance_monitoring.
-- Days, then hours, then five minutes, then the log itself for what is left at both ends; to
-- these the deltas that are not in the rollups yet. One statement is one snapshot: the worker's
-- moving is seen whole or not at all, so that the counts are exact at every moment.
CREATE FUNCTION request_figures(tenant uuid, since timestamptz, until timestamptz)
RETURNS TABLE (
    requests bigint,
    errors bigint,
    sum_ms double precision,
    max_ms double precision,
    bytes_in bigint,
    bytes_out bigint,
    p50_ms double precision,
    p95_ms double precision,
    p99_ms double precision
)
LANGUAGE sql STABLE PARALLEL SAFE SECURITY INVOKER ROWS 1 AS $$
    WITH asked AS MATERIALIZED (
        -- Where short spans are pruned, the window begins with the longer one that holds its start;
        -- where the log's own rows are gone (0 minutes), with the five minutes.
        SELECT
            request_figures.tenant AS tenant_id,
            CASE
                WHEN w.since < (SELECT h.kept_since FROM request_rollup_horizons h WHERE h.minutes = 60)
                    THEN date_bin('1 day', w.since, '2000-01-01 00:00:00+00')
                WHEN w.since < (SELECT h.kept_since FROM request_rollup_horizons h WHERE h.minutes = 5)
                    THEN date_bin('1 hour', w.since, '2000-01-01 00:00:00+00')
                WHEN w.since < (SELECT h.kept_since FROM request_rollup_horizons h WHERE h.minutes = 0)
                    THEN date_bin('5 minutes', w.since, '2000-01-01 00:00:00+00')
                ELSE w.since
            END AS since,
            w.until
        FROM (VALUES (request_figures.since, request_figures.until)) AS w (since, until)
    ),
    -- The first and last whole span of each length: s* rounded up, u* rounded down.
    spans AS MATERIALIZED (
        SELECT
            a.tenant_id, a.since, a.until,
            date_bin('5 minutes', a.since + interval '299.999999 s', '2000-01-01 00:00:00+00') AS s5,
            date_bin('5 minutes', a.until, '2000-01-01 00:00:00+00') AS u5,
            date_bin('1 hour', a.since + interval '3599.999999 s', '2000-01-01 00:00:00+00') AS s60,
            date_bin('1 hour', a.until, '2000-01-01 00:00:00+00') AS u60,
            date_bin('1 day', a.since + interval '86399.999999 s', '2000-01-01 00:00:00+00') AS s1440,
            date_bin('1 day', a.until, '2000-01-01 00:00:00+00') AS u1440
        FROM asked a
    ),
    parts AS MATERIALIZED (
        -- OFFSET 0: five look-ups in the primary key, whatever the statistics say of the tables.
        SELECT
            r.requests, r.errors, r.sum_ms, r.max_ms, r.bytes_in, r.bytes_out, r.bins, r.counts
        FROM spans s
        CROSS JOIN LATERAL (
            VALUES
                (1440::smallint, s.s1440, s.u1440),
                (60, s.s60, least(s.s1440, s.u60)),
                (60, greatest(s.u1440, s.s1440), s.u60),
                (5, s.s5, least(s.s60, s.u5)),
                (5, greatest(s.u60, s.s60), s.u5)
        ) AS tier (minutes, since, until)
        CROSS JOIN LATERAL (
            SELECT k.*
            FROM request_rollups k
            WHERE k.tenant_id = s.tenant_id AND k.minutes = tier.minutes
              AND k.bucket >= tier.since AND k.bucket < tier.until
            OFFSET 0
        ) r
        UNION ALL
        SELECT
            d.requests, d.errors, d.sum_ms, d.max_ms, d.bytes_in, d.bytes_out, d.bins, d.counts
        FROM spans s
        JOIN request_rollup_deltas d
            ON d.tenant_id = s.tenant_id AND d.bucket >= s.s5 AND d.bucket < s.u5
        UNION ALL
        SELECT
            e.requests, e.errors, e.sum_ms, e.max_ms, e.bytes_in, e.bytes_out, e.bins, e.counts
        FROM spans s
        CROSS JOIN LATERAL (
            SELECT * FROM request_log_part(s.tenant_id, s.since, least(s.s5, s.until))
            UNION ALL
            SELECT * FROM request_log_part(s.tenant_id, greatest(s.u5, s.s5), s.until)
        ) e
    ),
    totals AS MATERIALIZED (
        SELECT
            coalesce(sum(p.requests), 0)::bigint AS requests,
            coalesce(sum(p.errors), 0)::bigint AS errors,
            coalesce(sum(p.sum_ms), 0) AS sum_ms,
            max(p.max_ms) AS max_ms,
            coalesce(sum(p.bytes_in), 0)::bigint AS bytes_in,
            coalesce(sum(p.bytes_out), 0)::bigint AS bytes_out
        FROM parts p
    ),
    ladder AS MATERIALIZED (
        SELECT b.bin, sum(b.requests) OVER (ORDER BY b.bin) AS up_to
        FROM (
            SELECT h.bin, sum(h.requests) AS requests
            FROM parts p
            CROSS JOIN LATERAL unnest(p.bins, p.counts) AS h (bin, requests)
            GROUP BY h.bin
        ) b
    ),
    -- As percentile_cont has it: between the two calls beside the place share * (n - 1).
    percentiles AS MATERIALIZED (
        SELECT ARRAY(
            SELECT least(
                t.max_ms,
                request_bin_ms(n.below)
                    + (c.place - floor(c.place))::double precision
                    * (request_bin_ms(n.above) - request_bin_ms(n.below))
            )
            FROM totals t
            CROSS JOIN LATERAL (
                SELECT share * (t.requests - 1) AS place
                FROM unnest(ARRAY[0.50, 0.95, 0.99]) AS share
            ) c
            CROSS JOIN LATERAL (
                SELECT
                    min(l.bin) FILTER (WHERE l.up_to > floor(c.place)) AS below,
                    min(l.bin) FILTER (WHERE l.up_to > ceil(c.place)) AS above
                FROM ladder l
            ) n
            ORDER BY c.place
        ) AS ms
    )
    SELECT
        t.requests, t.errors, t.sum_ms, t.max_ms, t.bytes_in, t.bytes_out,
        p.ms[1], p.ms[2], p.ms[3]
    FROM totals t
    CROSS JOIN percentiles p
$$;
COMMENT ON FUNCTION request_figures(uuid, timestamptz, timestamptz) IS
    'Exactly one row over the calls from since up to and without until, of a tenant or (zero UUID) of all: counts, sums and the maximum exact, percentiles (as percentile_cont) within 2 % of the exact ones; NULL where there is nothing. Durations in milliseconds. Where request_rollup_horizons says that short spans or the rows of the log are gone, the window begins with the five minutes, hour or day that holds since.';
