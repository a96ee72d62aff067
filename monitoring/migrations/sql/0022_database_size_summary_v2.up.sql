DROP VIEW database_size_summary;

-- What each table of this schema weighs. Called by: the REST API, performance_monitoring,
-- the task sizes_snapshot, operators in psql.
CREATE VIEW database_size_summary AS
WITH relations AS (
    SELECT
        coalesce(pg_partition_root(c.oid)::oid, c.oid) AS root,
        c.relkind,
        c.relispartition,
        pg_table_size(c.oid) AS table_size,
        pg_indexes_size(c.oid) AS index_size,
        -- A small table may never see an ANALYZE again: its rows are counted as they come and go. A
        -- crash or a reset forgets that count, which a large table is too long without.
        CASE
            WHEN c.reltuples > 10000 THEN c.reltuples::bigint
            WHEN pg_stat_get_live_tuples(c.oid) > 0 OR pg_stat_get_tuples_inserted(c.oid) > 0
            THEN pg_stat_get_live_tuples(c.oid)
            ELSE greatest(c.reltuples, 0)::bigint
        END AS row_estimate
    FROM pg_class c
    WHERE c.relkind IN ('r', 'p')
),
tables AS (
    SELECT
        t.relname::text AS table_name,
        sum(r.table_size)::bigint AS table_size,
        sum(r.index_size)::bigint AS index_size,
        -- A partitioned parent repeats the rows of its partitions.
        coalesce(sum(r.row_estimate) FILTER (WHERE r.relkind = 'r'), 0)::bigint AS row_estimate,
        count(*) FILTER (WHERE r.relispartition AND r.relkind = 'r') AS partitions
    FROM relations r
    JOIN pg_class t ON t.oid = r.root
    WHERE t.relnamespace = (
        SELECT own.relnamespace FROM pg_class own
        WHERE own.oid = 'database_size_snapshots'::regclass
    )
    GROUP BY t.relname
)
SELECT
    t.table_name,
    t.table_size,
    t.index_size,
    t.table_size + t.index_size AS total_size,
    pg_size_pretty(t.table_size + t.index_size) AS total_size_pretty,
    t.row_estimate,
    t.partitions,
    round(
        100.0 * (t.table_size + t.index_size - past.total_size) / nullif(past.total_size, 0), 1
    )::double precision AS growth_30d_percent
FROM tables t
LEFT JOIN LATERAL (
    -- The newest snapshot that is 30 days old, or else the oldest there is.
    SELECT s.total_size
    FROM database_size_snapshots s,
         LATERAL (SELECT (statement_timestamp() AT TIME ZONE 'UTC')::date AS today) d
    WHERE s.table_name = t.table_name AND s.taken_on < d.today
    ORDER BY
        CASE WHEN s.taken_on <= d.today - 30 THEN s.taken_on END DESC NULLS LAST,
        s.taken_on
    LIMIT 1
) past ON true;

COMMENT ON VIEW database_size_summary IS
    'One row a table of this schema, partitions summed into their parent.';
COMMENT ON COLUMN database_size_summary.table_name IS 'The table, or the partitioned parent.';
COMMENT ON COLUMN database_size_summary.table_size IS 'Bytes of the rows, with TOAST and maps.';
COMMENT ON COLUMN database_size_summary.index_size IS 'Bytes of all its indexes.';
COMMENT ON COLUMN database_size_summary.total_size IS 'Bytes of rows and indexes.';
COMMENT ON COLUMN database_size_summary.total_size_pretty IS 'total_size for people.';
COMMENT ON COLUMN database_size_summary.row_estimate IS 'Rows as the statistics count them, else as the last ANALYZE saw them.';
COMMENT ON COLUMN database_size_summary.partitions IS 'Partitions that hold rows; 0: not partitioned.';
COMMENT ON COLUMN database_size_summary.growth_30d_percent IS
    'Growth of total_size since the snapshot of 30 days ago, or since the oldest one while there is none that old; NULL without a snapshot of an earlier day.';
