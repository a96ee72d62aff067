-- Which tools are used most, and how well they do. Called by: operators in psql and dashboards.
-- Empty until its first refresh, by the task views_refresh. It knows no row-level security, so
-- the application's role may not read it: a tenant could but through a view that filters.
CREATE MATERIALIZED VIEW tool_leaderboard AS
SELECT
    tool.id AS tool_id,
    tool.name AS tool_name,
    server.id AS server_id,
    server.slug AS server,
    server.tenant_id,
    tool.total_calls,
    tool.success_count,
    tool.error_count,
    tool.success_count::double precision / nullif(tool.total_calls, 0) AS success_rate,
    tool.avg_execution_time AS avg_execution_time_ms,
    tool.last_used_at,
    rank() OVER (ORDER BY tool.total_calls DESC) AS place,
    rank() OVER (PARTITION BY server.tenant_id ORDER BY tool.total_calls DESC) AS place_in_tenant
FROM server_tools AS tool
JOIN mcp_servers AS server ON server.id = tool.server_id
WHERE tool.total_calls > 0
WITH NO DATA;

-- What REFRESH ... CONCURRENTLY tells rows apart by.
CREATE UNIQUE INDEX uq_tool_leaderboard_tool ON tool_leaderboard (tool_id);

COMMENT ON MATERIALIZED VIEW tool_leaderboard IS
    'One row a tool that was ever called, as of the last refresh.';
COMMENT ON COLUMN tool_leaderboard.tool_id IS 'Of server_tools.';
COMMENT ON COLUMN tool_leaderboard.tool_name IS 'As its server calls it.';
COMMENT ON COLUMN tool_leaderboard.server_id IS 'Of mcp_servers.';
COMMENT ON COLUMN tool_leaderboard.server IS 'The slug of its server.';
COMMENT ON COLUMN tool_leaderboard.tenant_id IS 'Whose server it is; NULL for a shared one.';
COMMENT ON COLUMN tool_leaderboard.total_calls IS 'Calls through the gateway.';
COMMENT ON COLUMN tool_leaderboard.success_count IS 'Calls that ended well.';
COMMENT ON COLUMN tool_leaderboard.error_count IS 'Calls that ended with an error.';
COMMENT ON COLUMN tool_leaderboard.success_rate IS 'Share of calls that ended well, 0 to 1.';
COMMENT ON COLUMN tool_leaderboard.avg_execution_time_ms IS 'Milliseconds; NULL: not measured.';
COMMENT ON COLUMN tool_leaderboard.last_used_at IS 'The last call.';
COMMENT ON COLUMN tool_leaderboard.place IS 'Place among all tools by calls, 1 is the first; equal counts share one.';
COMMENT ON COLUMN tool_leaderboard.place_in_tenant IS 'The same among the tools of the tenant''s servers.';
