DROP VIEW database_size_summary;
