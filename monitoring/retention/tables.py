"""The tables that grow by themselves, as the catalogue of this database knows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from django.db import connection

__all__ = ["RETAINED", "Relation", "partitioned", "relation_of"]

# What may be trimmed, and by which column its age is told. A policy deletes rows, so it can
# name no other table: a slip of the pen must not empty `users`. No foreign key leads here, so
# that deleting needs no look at other tables.
RETAINED = {
    "alert_events": "occurred_at",
    "audit_logs": "timestamp",
    "request_logs": "request_time",
    "server_metrics": "timestamp",
    "sessions": "expires_at",
    "database_size_snapshots": "taken_on",
    "statement_snapshots": "taken_at",
    "metric_snapshots": "bucket",
    "optimize_runs": "started_at",
}

_COLUMNS = """
SELECT c.relkind = 'p', a.attname, a.atttypid::regtype::text
FROM pg_class AS c
JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relname = %s AND c.relkind IN ('r', 'p') AND pg_table_is_visible(c.oid)
"""
_PARTITIONED = """
SELECT relname FROM pg_class
WHERE relkind = 'p' AND relname = ANY (%s) AND pg_table_is_visible(oid)
"""


@dataclass(frozen=True, slots=True)
class Relation:
    """A table as it is: `columns` maps each name to its type, such as "uuid"."""

    name: str
    is_partitioned: bool
    columns: Mapping[str, str]


def relation_of(table: str) -> Relation | None:
    """The visible table of that name; None when there is none."""
    with connection.cursor() as cursor:
        cursor.execute(_COLUMNS, [table])
        rows = cursor.fetchall()
    if not rows:
        return None
    columns = {name: kind for _, name, kind in rows}
    return Relation(name=table, is_partitioned=rows[0][0], columns=columns)


def partitioned() -> list[str]:
    """Those tables of RETAINED that lose whole partitions."""
    with connection.cursor() as cursor:
        cursor.execute(_PARTITIONED, [list(RETAINED)])
        return [name for (name,) in cursor.fetchall()]
