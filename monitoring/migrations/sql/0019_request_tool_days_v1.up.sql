-- The days of what is counted already. What the deltas hold is added when they are moved, so nobody
-- may move any meanwhile.
SELECT pg_advisory_xact_lock(hashtext('request_rollups_compact'));
INSERT INTO request_tool_days (day, server_id, tool_name, requests, errors, sum_ms)
SELECT
    (u.bucket AT TIME ZONE 'UTC')::date, u.server_id, u.tool_name, sum(u.requests), sum(u.errors),
    sum(u.sum_ms)
FROM request_usage u
WHERE u.tool_name <> ''
GROUP BY 1, 2, 3;
