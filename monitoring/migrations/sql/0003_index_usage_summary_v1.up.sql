-- Every index of this schema and what it is used for. Called by: the REST API, operators in psql.
CREATE VIEW index_usage_summary AS
WITH indexes AS (
    SELECT
        coalesce(pg_partition_root(x.indexrelid)::oid, x.indexrelid) AS root,
        sum(pg_relation_size(x.indexrelid))::bigint AS index_size,
        coalesce(sum(s.idx_scan), 0)::bigint AS scans,
        coalesce(sum(s.idx_tup_read), 0)::bigint AS rows_read
    FROM pg_index x
    LEFT JOIN pg_stat_all_indexes s ON s.indexrelid = x.indexrelid
    GROUP BY 1
)
SELECT
    t.relname::text AS table_name,
    i.relname::text AS index_name,
    u.index_size,
    pg_size_pretty(u.index_size) AS index_size_pretty,
    u.scans,
    u.rows_read,
    CASE
        WHEN u.scans = 0 THEN 'Unused'
        WHEN u.scans < 100 THEN 'Low'
        WHEN u.scans < 10000 THEN 'Moderate'
        ELSE 'High'
    END AS usage_category,
    x.indisvalid AND x.indisready AS is_valid,
    x.indisunique AS is_unique,
    CASE WHEN EXISTS (SELECT FROM declared_indexes d WHERE d.table_name = t.relname) THEN
        EXISTS (
            SELECT FROM declared_indexes d
            WHERE d.table_name = t.relname AND d.index_name = i.relname
        )
    END AS is_declared,
    pg_get_indexdef(x.indexrelid) AS definition
FROM indexes u
JOIN pg_index x ON x.indexrelid = u.root
JOIN pg_class i ON i.oid = x.indexrelid
JOIN pg_class t ON t.oid = x.indrelid
WHERE t.relkind IN ('r', 'p', 'm')
  AND t.relnamespace = (
      SELECT own.relnamespace FROM pg_class own
      WHERE own.oid = 'declared_indexes'::regclass
  );

COMMENT ON VIEW index_usage_summary IS
    'One row an index of this schema; the indexes of partitions are summed into their parent''s.';
COMMENT ON COLUMN index_usage_summary.table_name IS 'The table that the index belongs to.';
COMMENT ON COLUMN index_usage_summary.index_name IS 'The index.';
COMMENT ON COLUMN index_usage_summary.index_size IS 'Bytes.';
COMMENT ON COLUMN index_usage_summary.index_size_pretty IS 'index_size for people.';
COMMENT ON COLUMN index_usage_summary.scans IS 'Scans since the statistics were reset.';
COMMENT ON COLUMN index_usage_summary.rows_read IS 'Index entries that those scans returned.';
COMMENT ON COLUMN index_usage_summary.usage_category IS
    'Unused: no scan; Low: under 100; Moderate: under 10,000; High: more. A unique index guards rows even when it is unused.';
COMMENT ON COLUMN index_usage_summary.is_valid IS
    'False: a concurrent build was cut off; optimize_db repairs it.';
COMMENT ON COLUMN index_usage_summary.is_unique IS 'Whether it forbids duplicates.';
COMMENT ON COLUMN index_usage_summary.is_declared IS
    'Whether the code declares it, as of the last run of optimize_db; NULL on tables that are not the gateway''s, and before the first run.';
COMMENT ON COLUMN index_usage_summary.definition IS 'The statement that makes it.';
