DROP MATERIALIZED VIEW server_hourly_health;
