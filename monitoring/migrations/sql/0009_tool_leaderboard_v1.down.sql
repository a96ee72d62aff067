DROP MATERIALIZED VIEW tool_leaderboard;
