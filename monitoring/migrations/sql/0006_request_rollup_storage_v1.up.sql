-- The rollups' rows are updated every few seconds: room on the page keeps that HOT. The deltas come
-- and go: vacuum must follow at once, whatever share of the table they are.
ALTER TABLE request_rollups SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE request_usage SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE request_users SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE request_rollup_deltas SET (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 50000,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 20000,
    autovacuum_vacuum_cost_delay = 0
);
ALTER TABLE request_usage_deltas SET (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 50000,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 20000,
    autovacuum_vacuum_cost_delay = 0
);
ALTER TABLE request_user_deltas SET (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 50000,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 20000,
    autovacuum_vacuum_cost_delay = 0
);
