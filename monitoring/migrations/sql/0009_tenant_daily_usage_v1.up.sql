-- What each tenant used a day, for the last 31 days. Called by: operators in psql and dashboards.
-- Empty until its first refresh, by the task views_refresh. It knows no row-level security, so
-- the application's role may not read it: a tenant could but through a view that filters.
CREATE MATERIALIZED VIEW tenant_daily_usage AS
SELECT
    (usage.bucket AT TIME ZONE 'UTC')::date AS day,
    usage.tenant_id,
    tenant.slug AS tenant,
    sum(usage.requests)::bigint AS total_requests,
    sum(usage.errors)::bigint AS failed_requests,
    sum(usage.sum_ms) / sum(usage.requests) AS avg_duration_ms,
    max(usage.max_ms) AS max_duration_ms,
    sum(usage.bytes_in)::bigint AS bytes_in,
    sum(usage.bytes_out)::bigint AS bytes_out,
    count(DISTINCT nullif(usage.server_id, '00000000-0000-0000-0000-000000000000')) AS servers_used
-- In one statement, thus in one snapshot: no call is missed or counted twice while deltas move.
FROM (
    SELECT tenant_id, bucket, server_id, requests, errors, sum_ms, max_ms, bytes_in, bytes_out
    FROM request_usage
    UNION ALL
    SELECT tenant_id, bucket, server_id, requests, errors, sum_ms, max_ms, bytes_in, bytes_out
    FROM request_usage_deltas
) AS usage
-- The figures outlive their tenants.
LEFT JOIN tenants AS tenant ON tenant.id = usage.tenant_id
WHERE usage.bucket >= date_trunc('day', statement_timestamp(), 'UTC') - interval '30 days'
  AND usage.bucket < statement_timestamp()
  AND usage.tenant_id <> '00000000-0000-0000-0000-000000000000'
GROUP BY 1, 2, 3
WITH NO DATA;

-- What REFRESH ... CONCURRENTLY tells rows apart by.
CREATE UNIQUE INDEX uq_tenant_daily_usage_tenant_day ON tenant_daily_usage (tenant_id, day);

COMMENT ON MATERIALIZED VIEW tenant_daily_usage IS
    'One row a tenant and day with calls, of the last 31 days, as of the last refresh.';
COMMENT ON COLUMN tenant_daily_usage.day IS 'The day, in UTC; the newest is not over yet.';
COMMENT ON COLUMN tenant_daily_usage.tenant_id IS 'Who called; calls without a known key are not counted.';
COMMENT ON COLUMN tenant_daily_usage.tenant IS 'The tenant''s slug; NULL: the tenant is gone.';
COMMENT ON COLUMN tenant_daily_usage.total_requests IS 'Calls.';
COMMENT ON COLUMN tenant_daily_usage.failed_requests IS 'Calls with a status of 400 or above.';
COMMENT ON COLUMN tenant_daily_usage.avg_duration_ms IS 'Milliseconds.';
COMMENT ON COLUMN tenant_daily_usage.max_duration_ms IS 'Milliseconds.';
COMMENT ON COLUMN tenant_daily_usage.bytes_in IS 'Bytes of the requests.';
COMMENT ON COLUMN tenant_daily_usage.bytes_out IS 'Bytes of the answers.';
COMMENT ON COLUMN tenant_daily_usage.servers_used IS 'Different servers called that day.';
