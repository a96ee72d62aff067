-- What health checks measured an hour, for the last 7 days. Called by: operators in psql and
-- dashboards.
-- Empty until its first refresh, by the task views_refresh. It knows no row-level security, so
-- the application's role may not read it: a tenant could but through a view that filters.
CREATE MATERIALIZED VIEW server_hourly_health AS
SELECT
    date_trunc('hour', metric."timestamp", 'UTC') AS hour,
    metric.server_id,
    server.slug AS server,
    server.tenant_id,
    count(*) AS checks,
    avg(metric.response_time_ms) AS avg_response_time_ms,
    max(metric.response_time_ms) AS max_response_time_ms,
    avg(metric.error_rate) AS avg_error_rate
FROM server_metrics AS metric
-- The log outlives its servers.
LEFT JOIN mcp_servers AS server ON server.id = metric.server_id
WHERE metric."timestamp" >= date_trunc('hour', statement_timestamp(), 'UTC') - interval '7 days'
  AND metric."timestamp" < statement_timestamp()
GROUP BY 1, 2, 3, 4
WITH NO DATA;

-- What REFRESH ... CONCURRENTLY tells rows apart by.
CREATE UNIQUE INDEX uq_server_hourly_health_server_hour ON server_hourly_health (server_id, hour);

COMMENT ON MATERIALIZED VIEW server_hourly_health IS
    'One row a server and hour with health checks, of the last 7 days, as of the last refresh.';
COMMENT ON COLUMN server_hourly_health.hour IS 'The beginning of the hour, in UTC; the newest is not over yet.';
COMMENT ON COLUMN server_hourly_health.server_id IS 'The server that was checked.';
COMMENT ON COLUMN server_hourly_health.server IS 'The server''s slug; NULL: the server is gone.';
COMMENT ON COLUMN server_hourly_health.tenant_id IS 'Whose server it is; NULL for a shared or gone one.';
COMMENT ON COLUMN server_hourly_health.checks IS 'Health checks in that hour.';
COMMENT ON COLUMN server_hourly_health.avg_response_time_ms IS 'Milliseconds; NULL: none was answered.';
COMMENT ON COLUMN server_hourly_health.max_response_time_ms IS 'Milliseconds; NULL: none was answered.';
COMMENT ON COLUMN server_hourly_health.avg_error_rate IS 'Share of failed checks, 0 to 1.';
