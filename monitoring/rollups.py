"""Calls added up as they arrive, so that a summary costs the same whatever the log holds.

Note [Rollups]. Three layers, each read by the functions request_figures() and
get_tenant_usage_summary():

- A trigger on `request_logs` adds up the rows of each statement and appends them to the delta
  tables, in the same transaction. Whoever writes is counted, late rows too, and writers never
  update a row that another one wants.
- The worker takes deltas and adds them to `request_rollups` (five minutes, hours, days),
  `request_usage` and `request_users` (hours), `request_tool_days` (days, all tenants together).
  Deltas go and rollups grow in one statement.
- Readers add rollups and deltas in one statement, thus in one snapshot, and read the log itself
  only for the up to five minutes at either end of their window.

Calls that were refused without a known key are kept once more under an id of their own
(`queries.STRANGERS`): a share of failures leaves them out, or anybody who scans the gateway would
raise the alarm, and hide an outage among them.

The rollups know nothing of rows that are changed or deleted later, which is right where old rows
are dropped; after any other deletion `rollups_rebuild` counts anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from psycopg import sql

from monitoring.models import RequestRollup, RequestToolDay
from monitoring.queries import ALL_TENANTS
from registry.periodic import Stop, never

__all__ = ["log_kept_since", "rollups_compact", "rollups_prune", "rollups_rebuild"]

BATCH = 10_000  # deltas of each kind in a transaction: about half a second
LOG, FIVE_MINUTES, HOUR = 0, 5, 60  # minutes, as request_rollup_horizons has them
DAY = timedelta(days=1)

# The tenants are found by leaps through the primary key, so that their old rows are, too.
_DELETE = """
WITH RECURSIVE tenants (id) AS (
    (SELECT tenant_id FROM {table} ORDER BY tenant_id LIMIT 1)
    UNION ALL
    SELECT (SELECT r.tenant_id FROM {table} AS r WHERE r.tenant_id > t.id
             ORDER BY r.tenant_id LIMIT 1)
      FROM tenants AS t WHERE t.id IS NOT NULL
)
DELETE FROM {table} AS r USING tenants AS t
 WHERE r.tenant_id = t.id AND r.bucket < %(before)s AND {more}
"""
_ADVANCE = """
INSERT INTO request_rollup_horizons AS h (minutes, kept_since) VALUES (%s, %s)
ON CONFLICT (minutes) DO UPDATE SET kept_since = greatest(h.kept_since, excluded.kept_since)
"""


def rollups_compact(*, stop: Stop = never) -> int:
    """Move the deltas that there are into the rollups; returns how many.

    A short transaction a batch. When another session is at it, this one leaves it to it.
    """
    done = 0
    while not stop():
        moved = _compact_batch()
        done += moved
        if moved < BATCH:
            break
    return done


@transaction.atomic
def _compact_batch() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT request_rollups_compact(%s)", [BATCH])
        return int(cursor.fetchone()[0])


def rollups_prune(*, at: datetime, stop: Stop = never) -> int:
    """Delete short spans whose time is over, a day in a transaction; returns the rows deleted.

    Days stay for good, but for those of tools, which go with the hours. `request_rollup_horizons`
    tells readers how far back the others reach.
    """
    done = 0
    for minutes, kept in _kept():
        for before in _days_over(minutes, at - kept):
            if stop():
                return done
            done += _prune(minutes, before=before)
    return done


def _kept() -> tuple[tuple[int, timedelta], ...]:
    return (
        (FIVE_MINUTES, timedelta(days=settings.GATEWAY_ROLLUP_FINE_DAYS)),
        (HOUR, timedelta(days=settings.GATEWAY_ROLLUP_HOURLY_DAYS)),
    )


def _days_over(minutes: int, limit: datetime) -> Iterator[datetime]:
    """Midnights (UTC) from the oldest row's next to the last one before `limit`."""
    spans = RequestRollup.objects.filter(tenant_id=ALL_TENANTS, minutes=minutes)
    oldest = spans.order_by("bucket").values_list("bucket", flat=True).first()
    while oldest is not None and oldest < limit:
        oldest = _midnight(oldest) + DAY
        if oldest <= limit:
            yield oldest


def _midnight(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


@transaction.atomic
def _prune(minutes: int, *, before: datetime) -> int:
    spans = sql.SQL("r.minutes = {}").format(sql.Literal(minutes))
    done = _delete("request_rollups", before=before, more=spans)
    if minutes == HOUR:
        for table in ("request_usage", "request_users"):
            done += _delete(table, before=before, more=sql.SQL("true"))
        done += RequestToolDay.objects.filter(day__lt=before.date()).delete()[0]
    _advance(minutes, before)
    return done


def log_kept_since(before: datetime) -> None:
    """Tell readers that the log's rows before a time are about to be dropped.

    Their figures stay; a window that begins there begins with full five minutes.
    """
    _advance(LOG, before)


def _advance(minutes: int, before: datetime) -> None:
    with connection.cursor() as cursor:
        cursor.execute(_ADVANCE, [minutes, before])


def _delete(table: str, *, before: datetime, more: sql.Composable) -> int:
    statement = sql.SQL(_DELETE).format(table=sql.Identifier(table), more=more)
    with connection.cursor() as cursor:
        cursor.execute(statement, {"before": before})
        return int(cursor.rowcount)


@transaction.atomic
def rollups_rebuild(*, first: date, last: date) -> int:
    """Count the log's rows of these days (UTC, both included) anew; returns how many there are.

    For rows that were changed or deleted by hand. Writers of the log wait until it is done, and
    days whose rows were dropped lose their figures.
    """
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL statement_timeout = '15min'")
        cursor.execute("SELECT request_rollups_rebuild(%s, %s)", [first, last])
        row: tuple[Any, ...] = cursor.fetchone()
    return int(row[0])
