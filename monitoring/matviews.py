"""Refreshes the materialised views: when their schedule says, when asked, or after changes.

See Note [Changes are told by statistics]. What a view shows is a frozen SQL file's; here is only
when it is computed anew. A refresh runs on a direct connection under an advisory lock, so that
one view is never computed twice at a time, and CONCURRENTLY, so that readers go on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import Error, connection
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import F
from psycopg import sql
from psycopg.errors import LockNotAvailable, QueryCanceled

from monitoring.averages import moving_average
from monitoring.models import MaterializedView, RefreshStrategy
from registry.db.direct import PoolerError, direct_connections
from registry.periodic import Stop, never

__all__ = ["RefreshError", "view_refresh", "views_describe", "views_due", "views_refresh"]

logger = logging.getLogger(__name__)

SETTLE = timedelta(seconds=10)  # changes within it cost one refresh
SHARE = 20  # a view that changes all the time is computed a twentieth of the time
RETRY = timedelta(minutes=5)
LONGEST_REFRESH = "15min"
ADVISORY_CLASS = int.from_bytes(b"mvw\0", "big")  # the other half of the lock's key is the name's

_CHANGES = """
SELECT t.relname, coalesce(sum(s.n_tup_ins + s.n_tup_upd + s.n_tup_del), 0)::bigint
FROM pg_class AS t
JOIN pg_stat_all_tables AS s ON coalesce(pg_partition_root(s.relid)::oid, s.relid) = t.oid
WHERE t.relname = ANY (%s) AND pg_table_is_visible(t.oid)
GROUP BY t.relname
"""
# Opens no view, so that it waits for nobody who has locked one.
_POPULATED = """
SELECT c.relname, c.relispopulated FROM pg_class AS c
WHERE c.relkind = 'm' AND c.relname = ANY (%s) AND pg_table_is_visible(c.oid)
"""
_INSTALLED = """
SELECT c.relname, pg_get_viewdef(c.oid), pg_total_relation_size(c.oid),
       ARRAY(SELECT pg_get_indexdef(x.indexrelid) FROM pg_index AS x
             WHERE x.indrelid = c.oid ORDER BY x.indexrelid::regclass::text)
FROM pg_class AS c
WHERE c.relkind = 'm' AND c.relname = ANY (%s) AND pg_table_is_visible(c.oid)
"""


class RefreshError(Exception):
    """A view could not be refreshed and shows what it showed before; the message says why."""


class BusyError(RefreshError):
    """Somebody refreshes it right now."""


@dataclass(frozen=True, slots=True)
class Installed:
    """A materialised view as the catalogue has it."""

    query: str
    size_bytes: int
    indexes: list[str]


# --------------------------------------------------------------------------- what is due


def views_due(at: datetime) -> list[MaterializedView]:
    """Active views whose time has come, whose tables changed, or that were never computed."""
    active = MaterializedView.objects.filter(is_active=True)
    views = list(active.exclude(refresh_strategy=RefreshStrategy.MANUAL).order_by("name"))
    if not views:
        return []
    changes = _changes(connection, {table for view in views for table in view.refresh_triggers})
    populated = _populated(connection, [view.name for view in views])
    empty = {name for name, is_populated in populated.items() if not is_populated}
    return [view for view in views if _is_due(view, at=at, changes=changes, empty=empty)]


def _is_due(
    view: MaterializedView, *, at: datetime, changes: Mapping[str, int], empty: set[str]
) -> bool:
    if view.next_refresh is None or view.next_refresh <= at:
        return True
    if view.attempted_at is not None and view.attempted_at > at - _gap(view):
        return False
    if view.name in empty:
        return True  # optimize_db has made it anew
    is_triggered = view.refresh_strategy == RefreshStrategy.TRIGGERED
    return is_triggered and _sum(view, changes) != view.changes_seen


def _gap(view: MaterializedView) -> timedelta:
    """How long after an attempt the next one begins at the earliest, unless its time has come."""
    if view.last_error:
        return RETRY
    return max(SETTLE, timedelta(milliseconds=SHARE * (view.avg_refresh_time_ms or 0)))


def _sum(view: MaterializedView, changes: Mapping[str, int]) -> int:
    """Note [Changes are told by statistics]

    PostgreSQL counts the rows inserted, updated and deleted in every table anyway, and reports
    them within a second of the commit. A trigger that notes "something changed" would cost each
    writer a statement and make all of them contend for one row. The sum is read just before a
    refresh begins and kept with it: whatever commits later makes the sums differ and calls for
    another refresh, so nothing is missed; a change that was reported late costs one refresh too
    many. Sums are compared for being equal, not greater: a reset of the statistics or a dropped
    partition makes them smaller. And should statistics be off, the interval still holds.
    """
    return sum(changes.get(table, 0) for table in set(view.refresh_triggers))


def _changes(using: BaseDatabaseWrapper, tables: set[str]) -> dict[str, int]:
    return dict(_rows(using, _CHANGES, [sorted(tables)]))


def _populated(using: BaseDatabaseWrapper, names: list[str]) -> dict[str, bool]:
    """Which views there are, and whether they were ever computed."""
    return dict(_rows(using, _POPULATED, [names]))


def _installed(using: BaseDatabaseWrapper, names: list[str]) -> dict[str, Installed]:
    return {name: Installed(*rest) for name, *rest in _rows(using, _INSTALLED, [names])}


def _rows(using: Any, statement: str, parameters: list[Any]) -> list[tuple[Any, ...]]:
    with using.cursor() as cursor:
        cursor.execute(statement, parameters)
        return list(cursor.fetchall())


# --------------------------------------------------------------------------- refreshing


def views_refresh(*, at: datetime, stop: Stop = never) -> int:
    """Refresh every view that is due; how many. RefreshError after all were tried."""
    refreshed, failures = 0, []
    for view in views_due(at):
        if stop():
            break
        if not _claim(view, at=at):
            continue
        try:
            _refresh(view, at=at)
        except BusyError:
            continue
        except RefreshError as error:
            failures.append(f"{view.name}: {error}")
        else:
            refreshed += 1
    if failures:
        raise RefreshError(" ".join(failures))
    return refreshed


def view_refresh(*, view_id: UUID, at: datetime) -> None:
    """Refresh one view now, whatever its schedule; RefreshError says why it could not be."""
    view = MaterializedView.objects.filter(pk=view_id).first()
    if view is not None and _claim(view, at=at):
        _refresh(view, at=at)


def views_describe() -> None:
    """Copy each view's definition from the catalogue into its row, to be shown there."""
    names = list(MaterializedView.objects.values_list("name", flat=True))
    for name, found in _installed(connection, names).items():
        row = MaterializedView.objects.filter(name=name)
        row.exclude(query=found.query, indexes=found.indexes).update(
            query=found.query, indexes=found.indexes
        )


def _claim(view: MaterializedView, *, at: datetime) -> bool:
    """Let one of those who saw the same attempt make the next one; True for that one."""
    is_manual = view.refresh_strategy == RefreshStrategy.MANUAL
    interval = timedelta(minutes=view.refresh_interval_minutes)
    unclaimed = MaterializedView.objects.filter(pk=view.pk, attempted_at=view.attempted_at)
    claimed = unclaimed.update(
        attempted_at=at, next_refresh=None if is_manual else at + interval, updated_at=at
    )
    return claimed == 1


def _refresh(view: MaterializedView, *, at: datetime) -> None:
    try:
        with _alone(view.name) as work:
            changes = _sum(view, _changes(work, set(view.refresh_triggers)))
            milliseconds = _compute(work, view.name)
            figures = _figures(work, view.name)
    except BusyError:
        raise
    except (Error, PoolerError, RefreshError) as error:
        raise _failed(view, _in_words(error), at=at) from error
    MaterializedView.objects.filter(pk=view.pk).update(
        last_refreshed=at,
        refresh_count=F("refresh_count") + 1,
        avg_refresh_time_ms=moving_average("avg_refresh_time_ms", milliseconds),
        changes_seen=changes,
        last_error="",
        updated_at=at,
        **figures,
    )


@contextmanager
def _alone(name: str) -> Iterator[BaseDatabaseWrapper]:
    """A direct connection that holds the view's advisory lock."""
    key = [ADVISORY_CLASS, name]
    with direct_connections(application_name="mcp-gateway views_refresh") as (work, _):
        (locked,) = _rows(work, "SELECT pg_try_advisory_lock(%s, hashtext(%s))", key)[0]
        if not locked:
            raise BusyError(f"{name} is being refreshed right now.")
        yield work  # the lock ends with the connection


def _compute(work: BaseDatabaseWrapper, name: str) -> float:
    """Refresh; the milliseconds that it took. Plainly the first time, when nobody can read it."""
    populated = _populated(work, [name])
    if name not in populated:
        raise RefreshError("It is not in the database: run optimize_db.")
    manner = sql.SQL("CONCURRENTLY " if populated[name] else "")
    with work.cursor() as cursor:
        cursor.execute("SELECT set_config('statement_timeout', %s, false)", [LONGEST_REFRESH])
        began = time.monotonic()
        cursor.execute(
            sql.SQL("REFRESH MATERIALIZED VIEW {}{}").format(manner, sql.Identifier(name))
        )
        return (time.monotonic() - began) * 1000


def _figures(work: BaseDatabaseWrapper, name: str) -> dict[str, Any]:
    count = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(name))
    with work.cursor() as cursor:
        cursor.execute(count)
        (rows,) = cursor.fetchone()
    found = _installed(work, [name])[name]
    return {
        "row_count": rows,
        "size_bytes": found.size_bytes,
        "query": found.query,
        "indexes": found.indexes,
    }


def _failed(view: MaterializedView, reason: str, *, at: datetime) -> RefreshError:
    """Note why; the old data stay, and the next attempt comes soon."""
    logger.warning("materialised view %s was not refreshed: %s", view.name, reason)
    row = MaterializedView.objects.filter(pk=view.pk)
    row.update(last_error=reason, updated_at=at)
    row.filter(next_refresh__gt=at + RETRY).update(next_refresh=at + RETRY)
    return RefreshError(reason)


def _in_words(error: Exception) -> str:
    if isinstance(error.__cause__, LockNotAvailable):
        return "It was locked by others for too long."
    if isinstance(error.__cause__, QueryCanceled):
        return f"It took longer than {LONGEST_REFRESH}."
    diagnostics = getattr(error.__cause__, "diag", None)
    told = [getattr(diagnostics, part, None) for part in ("message_primary", "message_hint")]
    return ". ".join(part.rstrip(".") for part in told if part) or str(error).strip()
