DROP MATERIALIZED VIEW tenant_daily_usage;
