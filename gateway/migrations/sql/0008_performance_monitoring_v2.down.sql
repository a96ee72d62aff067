DROP VIEW performance_monitoring;

-- The dashboard, one row a metric and subject; alert rules name its metrics. Called by: the REST
-- API, operators in psql.
-- Subject 'all' is the whole gateway, or the worst of its parts where a sum would mean nothing;
-- single servers, tables and statements follow where they stand out. Nothing here needs rights
-- beyond SELECT on this view: what a role may not see of other sessions is NULL.
CREATE VIEW performance_monitoring AS
WITH recent AS (
    SELECT
        count(*) AS requests,
        count(*) FILTER (WHERE r.status_code >= 400) AS failed,
        percentile_cont(0.95) WITHIN GROUP (ORDER BY r.duration_ms) AS p95
    FROM request_logs r
    WHERE r.request_time >= statement_timestamp() - interval '5 minutes'
      AND r.request_time < statement_timestamp()
),
servers AS (
    SELECT m.id, coalesce(t.slug || '/', '') || m.slug AS subject
    FROM mcp_servers m
    LEFT JOIN tenants t ON t.id = m.tenant_id
),
breakers AS (
    SELECT c.server_id, count(*) AS open
    FROM circuit_breakers c
    WHERE c.state = 'open'
    GROUP BY c.server_id
),
pools AS (
    SELECT p.server_id, max(100.0 * p.active_connections / p.max_size) AS used
    FROM connection_pools p
    WHERE p.active_connections > 0
    GROUP BY p.server_id
),
queues AS (
    SELECT q.server_id, sum(q.current_size) AS depth, max(q.max_size) AS room
    FROM request_queues q
    WHERE q.current_size > 0
    GROUP BY q.server_id
),
statements AS (
    SELECT s.query_id, s.window_mean_ms, s.taken_at
    FROM statement_snapshots s
    WHERE s.taken_at > statement_timestamp() - interval '3 hours'
      AND s.taken_at = (SELECT max(newest.taken_at) FROM statement_snapshots newest)
      AND s.window_mean_ms IS NOT NULL
),
tables AS (
    SELECT
        t.relname::text AS table_name,
        sum(s.n_live_tup) AS live,
        sum(s.n_dead_tup) AS dead,
        sum(s.seq_tup_read) AS by_scan,
        sum(s.idx_tup_fetch) AS by_index
    FROM pg_stat_all_tables s
    JOIN pg_class t ON t.oid = coalesce(pg_partition_root(s.relid)::oid, s.relid)
    WHERE t.relnamespace = (
        SELECT own.relnamespace FROM pg_class own WHERE own.oid = 'circuit_breakers'::regclass
    )
    GROUP BY t.relname
),
-- Small tables are read whole, and rightly so; they also grow by leaps that mean nothing.
large AS (
    SELECT
        t.table_name,
        100.0 * t.by_index / nullif(t.by_index + t.by_scan, 0) AS index_usage,
        t.by_index,
        t.by_scan
    FROM tables t
    WHERE t.live > 10000
),
growth AS (
    SELECT d.table_name, d.growth_30d_percent AS percent
    FROM database_size_summary d
    WHERE d.total_size >= 10 * 1024 * 1024
),
figures (place, metric, subject, value, unit, threshold, critical, low_is_bad, measured_at) AS (
    SELECT 1, 'requests_per_minute', 'all', requests / 5.0, 'requests/min', NULL::numeric,
           NULL::numeric, false, statement_timestamp()
    FROM recent
    UNION ALL
    SELECT 2, 'error_rate', 'all', failed::double precision / nullif(requests, 0), 'ratio', 0.05,
           0.25, false, statement_timestamp()
    FROM recent
    UNION ALL
    SELECT 3, 'p95_duration_ms', 'all', p95, 'ms', 1000, 5000, false, statement_timestamp()
    FROM recent
    UNION ALL
    SELECT 4, 'open_breakers', 'all', coalesce(sum(open), 0), 'breakers', 0, NULL, false,
           statement_timestamp()
    FROM breakers
    UNION ALL
    SELECT 4, 'open_breakers', s.subject, b.open, 'breakers', 0, NULL, false,
           statement_timestamp()
    FROM breakers b JOIN servers s ON s.id = b.server_id
    UNION ALL
    SELECT 5, 'pool_utilisation_percent', 'all', coalesce(max(used), 0), 'percent', 85, 100, false,
           statement_timestamp()
    FROM pools
    UNION ALL
    SELECT 5, 'pool_utilisation_percent', s.subject, p.used, 'percent', 85, 100, false,
           statement_timestamp()
    FROM pools p JOIN servers s ON s.id = p.server_id
    UNION ALL
    SELECT 6, 'queue_depth', 'all', coalesce(sum(depth), 0), 'requests', NULL, NULL, false,
           statement_timestamp()
    FROM queues
    UNION ALL
    SELECT 6, 'queue_depth', s.subject, q.depth, 'requests', 0.5 * q.room, 0.9 * q.room, false,
           statement_timestamp()
    FROM queues q JOIN servers s ON s.id = q.server_id
    UNION ALL
    SELECT 7, 'slow_statement_ms', 'all', max(window_mean_ms), 'ms', 1000, 10000, false,
           coalesce(max(taken_at), statement_timestamp())
    FROM statements
    UNION ALL
    SELECT 7, 'slow_statement_ms', query_id::text, window_mean_ms, 'ms', 1000, 10000, false,
           taken_at
    FROM statements WHERE window_mean_ms > 1000
    UNION ALL
    SELECT 8, 'index_usage_percent', 'all',
           100.0 * sum(by_index) / nullif(sum(by_index) + sum(by_scan), 0), 'percent', 80, NULL,
           true, statement_timestamp()
    FROM large
    UNION ALL
    SELECT 8, 'index_usage_percent', table_name, index_usage, 'percent', 80, NULL, true,
           statement_timestamp()
    FROM large WHERE index_usage < 80
    UNION ALL
    SELECT 9, 'table_growth_percent', 'all', max(percent), 'percent', 20, NULL, false,
           statement_timestamp()
    FROM growth
    UNION ALL
    SELECT 9, 'table_growth_percent', table_name, percent, 'percent', 20, NULL, false,
           statement_timestamp()
    FROM growth WHERE percent > 20
    UNION ALL
    SELECT 10, 'database_connections', 'all', sum(numbackends), 'connections',
           0.8 * current_setting('max_connections')::integer,
           0.95 * current_setting('max_connections')::integer, false, statement_timestamp()
    FROM pg_stat_database
    UNION ALL
    SELECT 11, 'cache_hit_ratio', 'all',
           blks_hit::double precision / nullif(blks_hit + blks_read, 0), 'ratio', 0.9, NULL, true,
           statement_timestamp()
    FROM pg_stat_database WHERE datname = current_database()
    UNION ALL
    SELECT 12, 'index_hit_ratio', 'all',
           sum(idx_blks_hit)::double precision
               / nullif(sum(idx_blks_hit) + sum(idx_blks_read), 0),
           'ratio', 0.9, NULL, true, statement_timestamp()
    FROM pg_statio_user_indexes
    UNION ALL
    SELECT 13, 'dead_rows', 'all', coalesce(sum(dead), 0), 'rows',
           10000 + 0.2 * coalesce(sum(live), 0), NULL, false, statement_timestamp()
    FROM tables
    UNION ALL
    SELECT 13, 'dead_rows', table_name, dead, 'rows', 10000 + 0.2 * live, NULL, false,
           statement_timestamp()
    FROM tables WHERE dead > 10000 + 0.2 * live
    UNION ALL
    SELECT 14, 'longest_transaction_seconds', 'all',
           CASE WHEN pg_has_role('pg_read_all_stats', 'USAGE')
               THEN coalesce(max(extract(epoch FROM statement_timestamp() - a.xact_start)), 0)
               ELSE max(extract(epoch FROM statement_timestamp() - a.xact_start))
           END,
           's', 60, 600, false, statement_timestamp()
    FROM pg_stat_activity a
    WHERE a.datname = current_database() AND a.pid <> pg_backend_pid()
    UNION ALL
    SELECT 15, 'replication_lag_seconds', coalesce(nullif(application_name, ''), pid::text),
           extract(epoch FROM replay_lag), 's', 10, 60, false, statement_timestamp()
    FROM pg_stat_replication
    UNION ALL
    SELECT 15, 'replication_lag_seconds', 'this standby',
           extract(epoch FROM statement_timestamp() - pg_last_xact_replay_timestamp()), 's', 10,
           60, false, statement_timestamp()
    WHERE pg_is_in_recovery()
    UNION ALL
    SELECT 16, 'database_size_bytes', 'all', pg_database_size(current_database()), 'bytes', NULL,
           NULL, false, statement_timestamp()
)
SELECT
    metric,
    subject,
    value::double precision AS value,
    unit,
    threshold::double precision AS threshold,
    CASE
        WHEN NOT low_is_bad AND value >= critical THEN 'critical'
        WHEN NOT low_is_bad AND value > threshold THEN 'warning'
        WHEN low_is_bad AND value < threshold THEN 'warning'
        ELSE 'ok'
    END AS status,
    measured_at
FROM figures
ORDER BY place, subject <> 'all', value DESC NULLS LAST, subject;

COMMENT ON VIEW performance_monitoring IS
    'One row a metric and subject, measured now; all first, then the servers, tables and statements that stand out.';
COMMENT ON COLUMN performance_monitoring.metric IS
    'The name that performance_alerts.metric_name refers to.';
COMMENT ON COLUMN performance_monitoring.subject IS
    'all, or a server (tenant/slug, shared ones slug), a table, a statement''s query id, a standby.';
COMMENT ON COLUMN performance_monitoring.value IS 'In the given unit; NULL: nothing to measure.';
COMMENT ON COLUMN performance_monitoring.unit IS
    'Ratios are 0 to 1, percentages 0 to 100; requests are those of the last 5 minutes.';
COMMENT ON COLUMN performance_monitoring.threshold IS
    'Where the status leaves ok: above it, for ratios of hits and index usage below it; NULL: a figure without a limit.';
COMMENT ON COLUMN performance_monitoring.status IS 'ok, warning or critical.';
COMMENT ON COLUMN performance_monitoring.measured_at IS
    'When: now, but for statements the time of the worker''s last reading.';
