"""How large an index will be, from the planner's own figures."""

from __future__ import annotations

from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg import sql

from monitoring.optimize.plan import Change
from monitoring.optimize.state import Index

__all__ = ["estimated_sizes", "index_bytes"]

PAGE = 8192
FILL = 0.9  # what CREATE INDEX leaves of a leaf page
ENTRY = 12  # item pointer and tuple header; the key is padded to 8 bytes


def estimated_sizes(connection: BaseDatabaseWrapper, plan: list[Change]) -> dict[str, int]:
    """Bytes by the name of the index to be built; left out where the planner could not be asked."""
    sizes: dict[str, int] = {}
    for change in plan:
        if change.builds is None:
            continue
        try:
            sizes[change.name] = index_bytes(connection, change.builds)
        except Error:
            continue  # the table is locked, or an old statement of its columns does not fit
    return sizes


def index_bytes(connection: BaseDatabaseWrapper, index: Index) -> int:
    """Rows and key width as EXPLAIN sees the query that would fill the index, as B-tree pages."""
    query = sql.SQL("EXPLAIN (FORMAT JSON) SELECT {keys} FROM {table} WHERE {condition}").format(
        keys=sql.SQL(", ").join(map(sql.SQL, index.keys)),
        table=sql.Identifier(index.table),
        condition=sql.SQL(index.predicate or "true"),
    )
    with connection.cursor() as cursor:
        cursor.execute(query)
        plan = cursor.fetchone()[0][0]["Plan"]
    padded = -(-plan["Plan Width"] // 8) * 8
    pages = -(-plan["Plan Rows"] * (padded + ENTRY) // int(PAGE * FILL))
    return int(pages + 1) * PAGE  # one page describes the tree
