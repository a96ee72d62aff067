"""The named SQL functions and views of this database, as plain Python rows.

Each answers with dictionaries whose keys are the columns that the interface promises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from django.db import connection

__all__ = [
    "ALL_TENANTS",
    "database_sizes",
    "fetch_rows",
    "index_usage",
    "performance_metrics",
    "request_performance",
    "tenant_usage",
]

Row = dict[str, Any]

# What stands for all tenants together in the rollups.
ALL_TENANTS = UUID(int=0)

_TENANT_USAGE = """
SELECT tenant.slug AS tenant, usage.*
  FROM unnest(%(tenants)s::uuid[]) WITH ORDINALITY AS wanted (id, place)
  JOIN tenants AS tenant ON tenant.id = wanted.id
 CROSS JOIN LATERAL get_tenant_usage_summary(wanted.id::text, %(hours)s) AS usage
 ORDER BY wanted.place
"""


def request_performance(*, hours: int, tenant_id: UUID | None = None) -> Row:
    """One row over the last hours (1 or more): of a tenant, or of the whole gateway."""
    statement = "SELECT * FROM request_performance(%(tenant)s, %(hours)s)"
    return fetch_rows(statement, {"hours": hours, "tenant": tenant_id or ALL_TENANTS})[0]


def tenant_usage(*, tenant_ids: Sequence[UUID], hours: int) -> list[Row]:
    """One row a tenant, in the order asked for, with its slug as `tenant`."""
    return fetch_rows(_TENANT_USAGE, {"tenants": list(tenant_ids), "hours": hours})


def database_sizes() -> list[Row]:
    """One row a table, the largest first."""
    return fetch_rows("SELECT * FROM database_size_summary ORDER BY total_size DESC, table_name")


def index_usage() -> list[Row]:
    """One row an index, by table and name."""
    return fetch_rows("SELECT * FROM index_usage_summary ORDER BY table_name, index_name")


def performance_metrics() -> list[Row]:
    """One row a metric and subject."""
    return fetch_rows("SELECT * FROM performance_monitoring ORDER BY metric, subject")


def fetch_rows(statement: str, parameters: Mapping[str, Any] | None = None) -> list[Row]:
    """Run one SELECT; a dictionary a row."""
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        names = [column.name for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
