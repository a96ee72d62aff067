-- The dashboard, one row a metric and subject; alert rules name its metrics. Called by: the REST
-- API, operators in psql.
-- Subject 'all' is the whole gateway, or the worst of its parts where a sum would mean nothing;
-- single servers, tables and statements follow where they stand out. Nothing here needs rights
-- beyond SELECT on this view: what a role may not see of other sessions is NULL.
-- Catalogue, statistics, rollups and gauges only: no log is read.
-- Volatile functions are called in parts of their own. Where one stood among the figures, PostgreSQL
-- would keep all of them for a reader who names a few: as it is, WHERE metric IN (…) computes these.
DROP VIEW performance_monitoring;
CREATE VIEW performance_monitoring AS
-- The calls since the five minutes before these began, from the rollups: as many calls as there may
-- be and however many partitions, it costs the same.
WITH since AS MATERIALIZED (
    SELECT date_bin(
        '5 minutes', statement_timestamp() - interval '5 minutes', '2000-01-01 00:00:00+00'
    ) AS bucket
),
calls AS MATERIALIZED (
    SELECT r.requests, r.errors, r.max_ms, r.bins, r.counts
    FROM since s
    JOIN request_rollups r ON r.bucket >= s.bucket AND r.bucket <= statement_timestamp()
    WHERE r.tenant_id = '00000000-0000-0000-0000-000000000000' AND r.minutes = 5
    UNION ALL
    SELECT d.requests, d.errors, d.max_ms, d.bins, d.counts
    FROM since s
    JOIN request_rollup_deltas d ON d.bucket >= s.bucket AND d.bucket <= statement_timestamp()
    WHERE d.tenant_id = '00000000-0000-0000-0000-000000000000'
),
-- Refused without a key that is known: whoever scans the network fails, not the gateway.
strangers AS MATERIALIZED (
    SELECT coalesce(sum(c.requests), 0) AS refused
    FROM (
        SELECT r.requests
        FROM since s
        JOIN request_rollups r ON r.bucket >= s.bucket AND r.bucket <= statement_timestamp()
        WHERE r.tenant_id = 'ffffffff-ffff-ffff-ffff-ffffffffffff' AND r.minutes = 5
        UNION ALL
        SELECT d.requests
        FROM since s
        JOIN request_rollup_deltas d ON d.bucket >= s.bucket AND d.bucket <= statement_timestamp()
        WHERE d.tenant_id = 'ffffffff-ffff-ffff-ffff-ffffffffffff'
    ) c
),
ladder AS MATERIALIZED (
    SELECT h.bin, sum(sum(h.requests)) OVER (ORDER BY h.bin) AS up_to
    FROM calls c
    CROSS JOIN LATERAL unnest(c.bins, c.counts) AS h (bin, requests)
    GROUP BY h.bin
),
recent AS (
    SELECT
        t.requests,
        t.requests - r.refused AS known,
        t.failed - r.refused AS failed,
        -- Of fewer calls a share or a percentile is chance: monitoring.alerts.metrics.LEAST_CALLS.
        t.requests - r.refused >= 20 AS are_enough,
        extract(epoch FROM statement_timestamp() - s.bucket) / 60 AS minutes,
        (
            SELECT least(t.max_ms, request_bin_ms(min(l.bin)))
            FROM ladder l
            WHERE l.up_to > ceil(0.95 * (t.requests - 1))
        ) AS p95
    FROM since s
    CROSS JOIN strangers r
    CROSS JOIN (
        SELECT
            coalesce(sum(c.requests), 0) AS requests, coalesce(sum(c.errors), 0) AS failed,
            max(c.max_ms) AS max_ms
        FROM calls c
    ) t
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
-- As pg_stat_all_tables has it, which groups the indexes of the whole database.
tables AS (
    SELECT
        t.relname::text AS table_name,
        t.relkind = 'm' AS is_view,
        t.relkind = 'p' AS is_partitioned,
        sum(pg_stat_get_live_tuples(c.oid)) AS live,
        sum(pg_stat_get_dead_tuples(c.oid)) AS dead,
        sum(pg_stat_get_tuples_returned(c.oid)) AS by_scan,
        sum(pg_stat_get_tuples_fetched(c.oid) + coalesce((
            SELECT sum(pg_stat_get_tuples_fetched(x.indexrelid))
            FROM pg_index x
            WHERE x.indrelid = c.oid
        ), 0)) AS by_index
    FROM pg_class c
    LEFT JOIN pg_inherits parent ON parent.inhrelid = c.oid
    JOIN pg_class t ON t.oid = coalesce(parent.inhparent, c.oid)
    WHERE c.relkind IN ('r', 'p', 'm')
      AND c.relnamespace = (
          SELECT own.relnamespace FROM pg_class own WHERE own.oid = 'circuit_breakers'::regclass
      )
    GROUP BY t.relname, t.relkind
),
-- Rows of large tables that were read since the worker's first reading of the day before, or ever
-- where there is none. Counters that went down were reset in between: then all that they show is
-- new. So it is with a log: the counters of its partitions come and go with them. Small tables are read whole, and rightly so; so are large ones now and then:
-- to fill them, to build an index, to dump them, to sum them up each quarter of an hour. What is
-- read without an index therefore counts from a hundred times the table on.
reads AS (
    SELECT
        t.table_name, t.live,
        t.by_index - CASE WHEN past.is_past THEN past.rows_by_index ELSE 0 END AS by_index,
        t.by_scan - CASE WHEN past.is_past THEN past.rows_by_scan ELSE 0 END AS by_scan
    FROM tables t
    LEFT JOIN LATERAL (
        SELECT
            s.rows_by_index, s.rows_by_scan,
            s.rows_by_index <= t.by_index AND s.rows_by_scan <= t.by_scan AS is_past
        FROM database_size_snapshots s
        WHERE s.table_name = t.table_name AND s.rows_by_scan IS NOT NULL
          AND NOT t.is_partitioned
          AND s.taken_on < (statement_timestamp() AT TIME ZONE 'UTC')::date
        ORDER BY s.taken_on DESC
        LIMIT 1
    ) past ON true
    WHERE t.live > 10000 AND NOT t.is_view
),
large AS (
    SELECT r.table_name, r.by_index, c.by_scan,
           100.0 * r.by_index / nullif(r.by_index + c.by_scan, 0) AS index_usage
    FROM reads r
    CROSS JOIN LATERAL (
        SELECT CASE WHEN r.by_scan >= 100 * r.live THEN r.by_scan ELSE 0 END AS by_scan
    ) c
),
-- From the readings that the worker takes each hour: to ask every file for its size costs more
-- than all the rest. As database_size_summary has it, which measures now.
growth AS (
    SELECT
        today.table_name,
        round(
            100.0 * (today.total_size - past.total_size) / nullif(past.total_size, 0), 1
        ) AS percent
    FROM database_size_snapshots today
    CROSS JOIN LATERAL (
        SELECT s.total_size
        FROM database_size_snapshots s
        WHERE s.table_name = today.table_name AND s.taken_on < today.taken_on
        ORDER BY
            CASE WHEN s.taken_on <= today.taken_on - 30 THEN s.taken_on END DESC NULLS LAST,
            s.taken_on
        LIMIT 1
    ) past
    WHERE today.taken_on = (
            SELECT max(newest.taken_on) FROM database_size_snapshots newest
            WHERE newest.taken_on >= (statement_timestamp() AT TIME ZONE 'UTC')::date - 1
        )
      AND today.total_size >= 10 * 1024 * 1024
),
logs AS (
    SELECT c.oid, c.relname::text AS table_name
    FROM pg_class c
    WHERE c.relkind = 'p'
      AND c.relname IN ('audit_logs', 'request_logs', 'server_metrics')
      AND c.relnamespace = (
          SELECT own.relnamespace FROM pg_class own WHERE own.oid = 'circuit_breakers'::regclass
      )
),
-- MATERIALIZED, so that each bound is printed once; and no regular expressions: there may be a
-- thousand partitions.
bounds AS MATERIALIZED (
    SELECT l.table_name, pg_get_expr(leaf.relpartbound, leaf.oid) AS text
    FROM logs l
    JOIN pg_inherits i ON i.inhparent = l.oid AND NOT i.inhdetachpending
    JOIN pg_class leaf ON leaf.oid = i.inhrelid
),
-- FOR VALUES FROM ('…') TO ('…'), or without quotes MINVALUE and MAXVALUE.
spans AS MATERIALIZED (
    SELECT
        b.table_name,
        coalesce(
            nullif(split_part(split_part(b.text, ' TO (', 1), '''', 2), '')::timestamptz,
            '-infinity'
        ) AS since,
        least(
            nullif(split_part(split_part(b.text, ' TO (', 2), '''', 2), '')::timestamptz,
            statement_timestamp() + interval '1000 days'
        ) AS until
    FROM bounds b
    WHERE b.text <> 'DEFAULT'
),
-- How long each log has a partition for what comes, without a gap; 0: not even for now.
ahead AS (
    SELECT
        l.table_name,
        CASE WHEN bool_or(s.since <= statement_timestamp()) THEN
            extract(epoch FROM min(s.until) FILTER (
                WHERE NOT EXISTS (
                    SELECT FROM spans next
                    WHERE next.table_name = s.table_name
                      AND next.since <= s.until AND next.until > s.until
                )
            ) - statement_timestamp()) / 86400
        ELSE 0
        END AS days
    FROM logs l
    LEFT JOIN spans s ON s.table_name = l.table_name AND s.until > statement_timestamp()
    GROUP BY l.table_name
),
invalid AS (
    SELECT i.relname::text AS index_name
    FROM pg_index x
    JOIN pg_class i ON i.oid = x.indexrelid
    WHERE NOT (x.indisvalid AND x.indisready)
      AND i.relnamespace = (
          SELECT own.relnamespace FROM pg_class own WHERE own.oid = 'circuit_breakers'::regclass
      )
      AND NOT EXISTS (
          SELECT FROM pg_stat_progress_create_index b WHERE b.index_relid = x.indexrelid
      )
),
-- Of transaction ids and of multixacts there are 2 ** 31 before the oldest one.
ages AS (
    SELECT
        d.datname::text AS database_name,
        100.0 * greatest(age(d.datfrozenxid), mxid_age(d.datminmxid)) / 2147483648 AS used
    FROM pg_database d
),
tasks AS (
    SELECT
        t.name, NOT t.is_paused AND t.last_outcome IN ('failed', 'gone') AS has_failed,
        greatest(0, extract(epoch FROM statement_timestamp() - CASE
            WHEN t.running_since IS NOT NULL THEN t.lease_until  -- the next sign of life
            WHEN NOT t.is_paused THEN t.next_run
        END)) AS late
    FROM periodic_tasks t
),
processes AS (
    SELECT
        p.name, p.log_rows_spooled AS spooled,
        CASE WHEN p.last_loss > statement_timestamp() - interval '1 hour'
            THEN p.log_rows_lost ELSE 0
        END AS lost
    FROM gateway_processes p
    WHERE p.updated_at > statement_timestamp() - interval '1 minute'
),
size AS MATERIALIZED (
    SELECT pg_database_size(current_database()) AS bytes
),
replay AS MATERIALIZED (
    SELECT extract(epoch FROM statement_timestamp() - pg_last_xact_replay_timestamp()) AS lag
    WHERE pg_is_in_recovery()
),
figures (place, metric, subject, value, unit, threshold, critical, low_is_bad, measured_at) AS (
    SELECT 1, 'requests_per_minute', 'all', requests / minutes, 'requests/min', NULL::numeric,
           NULL::numeric, false, statement_timestamp()
    FROM recent
    UNION ALL
    SELECT 1, 'recent_calls', 'all', known, 'calls', NULL, NULL, false, statement_timestamp()
    FROM recent
    UNION ALL
    SELECT 2, 'error_rate', 'all', failed::double precision / nullif(known, 0), 'ratio',
           CASE WHEN are_enough THEN 0.05 END, CASE WHEN are_enough THEN 0.25 END, false,
           statement_timestamp()
    FROM recent
    UNION ALL
    SELECT 3, 'p95_duration_ms', 'all', p95, 'ms', CASE WHEN are_enough THEN 1000 END,
           CASE WHEN are_enough THEN 5000 END, false, statement_timestamp()
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
               THEN greatest(max(extract(epoch FROM statement_timestamp() - a.xact_start)), 0)
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
    SELECT 15, 'replication_lag_seconds', 'this standby', lag, 's', 10, 60, false,
           statement_timestamp()
    FROM replay
    UNION ALL
    SELECT 16, 'database_size_bytes', 'all', bytes, 'bytes', NULL, NULL, false,
           statement_timestamp()
    FROM size
    UNION ALL
    SELECT 17, 'wraparound_percent', 'all', max(used), 'percent', 40, 75, false,
           statement_timestamp()
    FROM ages
    UNION ALL
    SELECT 17, 'wraparound_percent', database_name, used, 'percent', 40, 75, false,
           statement_timestamp()
    FROM ages WHERE used > 40
    UNION ALL
    SELECT 18, 'partition_days_ahead', 'all', min(days), 'days', 7, 3, true,
           statement_timestamp()
    FROM ahead
    UNION ALL
    SELECT 18, 'partition_days_ahead', table_name, days, 'days', 7, 3, true,
           statement_timestamp()
    FROM ahead WHERE days < 7
    UNION ALL
    SELECT 19, 'invalid_indexes', 'all', count(*), 'indexes', 0, NULL, false,
           statement_timestamp()
    FROM invalid
    UNION ALL
    SELECT 19, 'invalid_indexes', index_name, 1, 'indexes', 0, NULL, false,
           statement_timestamp()
    FROM invalid
    UNION ALL
    SELECT 20, 'failed_tasks', 'all', sum(has_failed::integer), 'tasks', 0, NULL, false,
           statement_timestamp()
    FROM tasks
    UNION ALL
    SELECT 20, 'failed_tasks', name, 1, 'tasks', 0, NULL, false, statement_timestamp()
    FROM tasks WHERE has_failed
    UNION ALL
    SELECT 20, 'task_late_seconds', 'all', max(late), 's', 60, 600, false,
           statement_timestamp()
    FROM tasks
    UNION ALL
    SELECT 20, 'task_late_seconds', name, late, 's', 60, 600, false, statement_timestamp()
    FROM tasks WHERE late > 60
    UNION ALL
    SELECT 21, 'rollup_lag_seconds', 'all',
           coalesce(
               extract(epoch FROM statement_timestamp() - (
                   SELECT d.written_at FROM request_rollup_deltas d ORDER BY d.id LIMIT 1
               )), 0),
           's', 120, 900, false, statement_timestamp()
    UNION ALL
    SELECT 22, 'spooled_log_rows', 'all', sum(spooled), 'rows', 0, NULL, false,
           statement_timestamp()
    FROM processes
    UNION ALL
    SELECT 22, 'spooled_log_rows', name, spooled, 'rows', 0, NULL, false,
           statement_timestamp()
    FROM processes WHERE spooled > 0
    UNION ALL
    SELECT 23, 'lost_log_rows', 'all', sum(lost), 'rows', 0, 1, false, statement_timestamp()
    FROM processes
    UNION ALL
    SELECT 23, 'lost_log_rows', name, lost, 'rows', 0, 1, false, statement_timestamp()
    FROM processes WHERE lost > 0
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
        WHEN low_is_bad AND value < critical THEN 'critical'
        WHEN low_is_bad AND value < threshold THEN 'warning'
        ELSE 'ok'
    END AS status,
    measured_at
FROM figures
ORDER BY place, metric, subject <> 'all', value DESC NULLS LAST, subject;

COMMENT ON VIEW performance_monitoring IS
    'One row a metric and subject, measured now; all first, then the servers, tables and statements that stand out.';
COMMENT ON COLUMN performance_monitoring.metric IS
    'The name that performance_alerts.metric_name refers to.';
COMMENT ON COLUMN performance_monitoring.subject IS
    'all, or a server (tenant/slug, shared ones slug), a table or index, a statement''s query id, a database, a standby, a periodic task, a gateway process.';
COMMENT ON COLUMN performance_monitoring.value IS 'In the given unit; NULL: nothing to measure.';
COMMENT ON COLUMN performance_monitoring.unit IS
    'Ratios are 0 to 1, percentages 0 to 100; requests are those of the last 5 to 10 minutes (since the beginning of the 5 minutes before), error_rate and recent_calls without those that were refused for want of a known key, percentiles within 2 %, index usage that of large tables since the day before, lost log rows those of processes that lost some in the last hour.';
COMMENT ON COLUMN performance_monitoring.threshold IS
    'Where the status leaves ok: above it, for ratios of hits, index usage and days of partitions below it; NULL: a figure without a limit, or of fewer than 20 recent calls.';
COMMENT ON COLUMN performance_monitoring.status IS 'ok, warning or critical.';
COMMENT ON COLUMN performance_monitoring.measured_at IS
    'When: now, but for statements the time of the worker''s last reading.';
