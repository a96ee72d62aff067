DROP VIEW performance_monitoring;
