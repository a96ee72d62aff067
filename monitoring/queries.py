"""The named SQL functions and views of this database, as plain Python rows.

Each answers with dictionaries whose keys are the columns that the interface promises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, time, timedelta
from typing import Any
from uuid import UUID

from django.db import connection

__all__ = [
    "ALL_TENANTS",
    "SERIES_STEPS",
    "STRANGERS",
    "begun",
    "database_sizes",
    "fetch_rows",
    "index_usage",
    "performance_metrics",
    "request_figures",
    "request_performance",
    "request_series",
    "slowest_statements",
    "tenant_usage",
    "top_tenants",
    "top_tools",
    "traffic_series",
]

Row = dict[str, Any]

# How long a step of a series is, by the hours that it spans.
SERIES_STEPS = {
    1: timedelta(minutes=5),
    24: timedelta(minutes=30),
    168: timedelta(hours=3),
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# What stands for all tenants together in the rollups.
ALL_TENANTS = UUID(int=0)
# What stands for calls that were refused without a known key.
STRANGERS = UUID(int=2**128 - 1)

_TENANT_USAGE = """
SELECT tenant.slug AS tenant, usage.*
  FROM unnest(%(tenants)s::uuid[]) WITH ORDINALITY AS wanted (id, place)
  JOIN tenants AS tenant ON tenant.id = wanted.id
 CROSS JOIN LATERAL get_tenant_usage_summary(wanted.id::text, %(hours)s) AS usage
 ORDER BY wanted.place
"""

# Whole days of all tenants; the hours before the first midnight, and what is in neither yet, by one
# range of the primary key a tenant: the window is read, whatever the tables hold besides.
_TOP_TOOLS = """
WITH used AS (
    SELECT part.server_id, part.tool_name, sum(part.requests)::bigint AS requests,
           sum(part.errors)::bigint AS errors, sum(part.sum_ms) AS sum_ms
      FROM (SELECT server_id, tool_name, requests, errors, sum_ms
              FROM request_tool_days WHERE day >= %(day)s
             UNION ALL
            SELECT hour.server_id, hour.tool_name, hour.requests, hour.errors, hour.sum_ms
              FROM (SELECT %(none)s::uuid AS id UNION ALL SELECT id FROM tenants) AS tenant
             CROSS JOIN LATERAL (
                   SELECT u.server_id, u.tool_name, u.requests, u.errors, u.sum_ms
                     FROM request_usage AS u
                    WHERE u.tenant_id = tenant.id
                      AND u.bucket >= %(since)s AND u.bucket < %(midnight)s
                    UNION ALL
                   SELECT d.server_id, d.tool_name, d.requests, d.errors, d.sum_ms
                     FROM request_usage_deltas AS d
                    WHERE d.tenant_id = tenant.id AND d.bucket >= %(since)s
                   ) AS hour
             WHERE hour.tool_name <> '') AS part
     GROUP BY 1, 2
     ORDER BY 3 DESC, 2 LIMIT %(limit)s
)
SELECT used.tool_name, used.server_id, server.slug AS server, used.requests, used.errors,
       used.sum_ms / nullif(used.requests, 0) AS avg_duration_ms
  FROM used LEFT JOIN mcp_servers AS server ON server.id = used.server_id
 ORDER BY used.requests DESC, used.tool_name
"""
_TOP_TENANTS = """
SELECT tenant.id AS tenant_id, tenant.slug AS tenant, sum(part.requests)::bigint AS requests,
       sum(part.errors)::bigint AS errors,
       sum(part.sum_ms) / nullif(sum(part.requests), 0) AS avg_duration_ms
  FROM tenants AS tenant
 CROSS JOIN LATERAL (
       SELECT r.requests, r.errors, r.sum_ms FROM request_rollups AS r
        WHERE r.tenant_id = tenant.id AND r.minutes = 60
          AND r.bucket >= %(since)s AND r.bucket < %(until)s
        UNION ALL
       SELECT d.requests, d.errors, d.sum_ms FROM request_rollup_deltas AS d
        WHERE d.tenant_id = tenant.id AND d.bucket >= %(since)s AND d.bucket < %(until)s
       ) AS part
 GROUP BY tenant.id
 ORDER BY 3 DESC, 2 LIMIT %(limit)s
"""
_SERIES = """
SELECT * FROM request_series(%(tenant)s, %(since)s, %(until)s, %(step)s)
"""
_FIGURES = """
SELECT * FROM request_figures(%(tenant)s, %(since)s, %(until)s)
"""
_SLOWEST = """
SELECT id, query_id, query, window_calls, window_mean_ms, calls, taken_at
  FROM statement_snapshots
 WHERE window_mean_ms IS NOT NULL
   AND taken_at >= (SELECT max(taken_at) FROM statement_snapshots)
 ORDER BY window_mean_ms * window_calls DESC LIMIT %(limit)s
"""


def request_performance(*, hours: int, tenant_id: UUID | None = None) -> Row:
    """One row over the last hours (1 or more): of a tenant, or of the whole gateway."""
    statement = "SELECT * FROM request_performance(%(tenant)s, %(hours)s)"
    return fetch_rows(statement, {"hours": hours, "tenant": tenant_id or ALL_TENANTS})[0]


def tenant_usage(*, tenant_ids: Sequence[UUID], hours: int) -> list[Row]:
    """One row a tenant, in the order asked for, with its slug as `tenant`."""
    return fetch_rows(_TENANT_USAGE, {"tenants": list(tenant_ids), "hours": hours})


def request_series(*, hours: int, at: datetime, tenant_id: UUID | None = None) -> list[Row]:
    """The last hours (one of SERIES_STEPS) in steps, oldest first; the last step holds `at`."""
    step = SERIES_STEPS[hours]
    since = begun(at, step) - timedelta(hours=hours) + step
    return _series(tenant_id or ALL_TENANTS, since, at, step)


def traffic_series(*, since: datetime, until: datetime, step: timedelta) -> list[Row]:
    """The series of the whole gateway, with the column `strangers`; `errors` are without these.

    `since` is a multiple of five minutes, and of an hour where `step` is hours.
    """
    # First: what comes in between is then in neither, or among the errors.
    strangers = _series(STRANGERS, since, until, step)
    everybody = _series(ALL_TENANTS, since, until, step)
    return [
        {**row, "errors": row["errors"] - refused["errors"], "strangers": refused["errors"]}
        for row, refused in zip(everybody, strangers, strict=True)
    ]


def begun(at: datetime, length: timedelta) -> datetime:
    """When the stretch of this length began that `at` is in, such as the hour."""
    return _EPOCH + (at - _EPOCH) // length * length


def _series(tenant_id: UUID, since: datetime, until: datetime, step: timedelta) -> list[Row]:
    window = {"since": since, "until": until, "step": step}
    return fetch_rows(_SERIES, {"tenant": tenant_id, **window})


def request_figures(*, since: datetime, until: datetime) -> Row:
    """One row over the calls of the whole gateway: requests, errors, p95_ms and more."""
    window = {"tenant": ALL_TENANTS, "since": since, "until": until}
    return fetch_rows(_FIGURES, window)[0]


def top_tools(*, since: datetime, limit: int) -> list[Row]:
    """The tools that were called most since a full hour, until now.

    `server` is None where that server is gone.
    """
    midnight = datetime.combine(since.astimezone(UTC), time.min, UTC)
    if midnight < since:
        midnight += timedelta(days=1)
    window = {"since": since, "midnight": midnight, "day": midnight.date(), "limit": limit}
    return fetch_rows(_TOP_TOOLS, {"none": ALL_TENANTS, **window})


def top_tenants(*, since: datetime, until: datetime, limit: int) -> list[Row]:
    """The tenants that called most in whole hours."""
    return fetch_rows(_TOP_TENANTS, {"since": since, "until": until, "limit": limit})


def slowest_statements(*, limit: int) -> list[Row]:
    """What the database spent most time on between the last two readings of the worker."""
    return fetch_rows(_SLOWEST, {"limit": limit})


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
