"""Readings that only make sense against earlier ones: table sizes and statement statistics.

The worker takes both every hour. Each is one statement, so a run that is cut off leaves either
the old reading or the new one. Retention policies forget the old ones.
"""

from __future__ import annotations

from django.db import Error, connection, transaction
from psycopg import errors, sql

__all__ = ["size_snapshot_take", "statement_snapshot_take"]

_TAKE_SIZES = """
    WITH reads AS (
        SELECT coalesce(root.relname, s.relname)::text AS table_name,
               sum(s.idx_tup_fetch)::bigint AS by_index, sum(s.seq_tup_read)::bigint AS by_scan
        FROM pg_stat_user_tables s
        LEFT JOIN pg_class root ON root.oid = pg_partition_root(s.relid)
        WHERE s.schemaname = current_schema()
        GROUP BY 1
    )
    INSERT INTO database_size_snapshots AS kept
        (id, taken_on, table_name, total_size, row_estimate, rows_by_index, rows_by_scan,
         created_at, updated_at)
    SELECT gen_random_uuid(), (now() AT TIME ZONE 'UTC')::date, d.table_name, d.total_size,
           d.row_estimate, coalesce(r.by_index, 0), coalesce(r.by_scan, 0), now(), now()
    FROM database_size_summary d
    LEFT JOIN reads r USING (table_name)
    ON CONFLICT (table_name, taken_on) DO UPDATE
    SET total_size = excluded.total_size, row_estimate = excluded.row_estimate,
        rows_by_index = coalesce(kept.rows_by_index, excluded.rows_by_index),
        rows_by_scan = coalesce(kept.rows_by_scan, excluded.rows_by_scan),
        updated_at = now()
"""

# Counters that went down were reset in between: then all that they show is new.
_TAKE_STATEMENTS = """
    WITH reading AS (
        SELECT s.queryid, min(s.query) AS query, sum(s.calls)::bigint AS calls,
               sum(s.total_exec_time) AS total_ms
        FROM {statements} s
        WHERE s.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND s.queryid IS NOT NULL AND s.calls > 0
        GROUP BY s.queryid
    ),
    compared AS (
        SELECT r.*,
               CASE WHEN before.calls <= r.calls THEN before.calls ELSE 0 END AS calls_before,
               CASE WHEN before.calls <= r.calls THEN before.total_ms ELSE 0 END AS ms_before,
               EXISTS (SELECT FROM statement_snapshots) AS is_second
        FROM reading r
        LEFT JOIN statement_snapshots before ON before.query_id = r.queryid
    )
    INSERT INTO statement_snapshots AS kept
        (id, query_id, query, calls, total_ms, window_calls, window_mean_ms, taken_at,
         created_at, updated_at)
    SELECT gen_random_uuid(), queryid, query, calls, total_ms,
           CASE WHEN is_second THEN calls - calls_before END,
           CASE WHEN is_second
               THEN greatest(total_ms - ms_before, 0) / nullif(calls - calls_before, 0)
           END,
           now(), now(), now()
    FROM compared
    ON CONFLICT (query_id) DO UPDATE
    SET query = excluded.query, calls = excluded.calls, total_ms = excluded.total_ms,
        window_calls = excluded.window_calls, window_mean_ms = excluded.window_mean_ms,
        taken_at = excluded.taken_at, updated_at = now()
"""


@transaction.atomic
def size_snapshot_take() -> int:
    """Keep today's size of every table, and what was read of it so far; how many tables.

    The day's last reading of the size counts, and its first one of what was read.
    """
    with connection.cursor() as cursor:
        cursor.execute(_TAKE_SIZES)
        return int(cursor.rowcount)


def statement_snapshot_take() -> int | None:
    """Read pg_stat_statements; how many statements, or None where the extension cannot be read."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace"
            " WHERE e.extname = 'pg_stat_statements'"
        )
        if (found := cursor.fetchone()) is None:
            return None
    try:
        return _read_statements(schema=found[0])
    except Error as error:
        # Created but not preloaded, or closed to this role: the same as not there.
        if isinstance(
            error.__cause__,
            errors.ObjectNotInPrerequisiteState | errors.InsufficientPrivilege,
        ):
            return None
        raise


@transaction.atomic
def _read_statements(*, schema: str) -> int:
    view = sql.Identifier(schema, "pg_stat_statements")
    with connection.cursor() as cursor:
        cursor.execute(sql.SQL(_TAKE_STATEMENTS).format(statements=view))
        return int(cursor.rowcount)
