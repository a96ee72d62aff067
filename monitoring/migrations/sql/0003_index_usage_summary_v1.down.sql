DROP VIEW index_usage_summary;
