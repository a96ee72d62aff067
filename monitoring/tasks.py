"""Monitoring's periodic work: partitions and old rows, rollups, views, snapshots, statistics."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import Error, transaction
from django.db.backends.utils import CursorWrapper
from psycopg import sql

from monitoring.alerts.evaluate import alerts_evaluate
from monitoring.alerts.http import CallFailed, call
from monitoring.matviews import views_due, views_refresh
from monitoring.models import DataRetentionPolicy, PerformanceAlert, RequestRollupDelta
from monitoring.retention.partitions import (
    partitions_expired,
    partitions_missing,
    partitions_prepare,
    partitions_retire,
)
from monitoring.retention.preview import preview, preview_in_words
from monitoring.retention.run import policies_due, policies_run
from monitoring.rollups import rollups_compact, rollups_prune
from monitoring.snapshots import size_snapshot_take, statement_snapshot_take
from registry.db.direct import direct_connections
from registry.periodic import PeriodicTask, Stop, never

__all__ = ["PERIODIC"]

logger = logging.getLogger(__name__)

# Tables that changed by more than a tenth since they were last analysed. Autovacuum does the
# same, yet late after a bulk load, and not at all where somebody switched it off; nor does it ever
# look at a partitioned parent, whose own statistics plans over several partitions rest on.
_STALE = """
SELECT tables.relname
FROM pg_stat_user_tables AS tables JOIN pg_class AS class ON class.oid = tables.relid
WHERE tables.schemaname = current_schema()
  AND pg_has_role(class.relowner, 'MEMBER')
  AND CASE class.relkind
      WHEN 'p' THEN coalesce(tables.last_analyze < now() - interval '23 hours', true)
      ELSE tables.n_mod_since_analyze > 1000 + 0.1 * greatest(class.reltuples, 0)
      END
ORDER BY tables.relname
"""


def partitions_create(*, at: datetime, stop: Stop = never) -> int:  # noqa: ARG001  (short)
    """Make the partitions of the logs for the days ahead; blocks nobody."""
    return partitions_prepare(at=at)


def partitions_remove(*, at: datetime, stop: Stop = never) -> int:
    """Drop the partitions of the logs that are older than their retention policies say."""
    return partitions_retire(at=at, stop=stop)


def sizes_snapshot(*, at: datetime, stop: Stop = never) -> int:  # noqa: ARG001  (one step)
    """Remember how large each table is today."""
    return size_snapshot_take()


def statements_snapshot(*, at: datetime, stop: Stop = never) -> int:  # noqa: ARG001  (one step)
    """Remember what the statements cost so far, where the extension counts them."""
    return statement_snapshot_take() or 0


def request_rollups_compact(*, at: datetime, stop: Stop = never) -> int:  # noqa: ARG001  (as of now)
    """Move what writers of the log left behind into the rollups."""
    return rollups_compact(stop=stop)


def request_rollups_prune(*, at: datetime, stop: Stop = never) -> int:
    """Delete five-minute and hourly rollups whose time is over."""
    return rollups_prune(at=at, stop=stop)


def tables_analyze(*, at: datetime, stop: Stop = never) -> int:  # noqa: ARG001  (as of now)
    """Refresh planner statistics of tables that changed a lot, as their owner; blocks no write."""
    done = 0
    with _owners_cursor() as cursor:
        for table in _stale_tables(cursor):
            if stop():
                break
            cursor.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(table)))
            done += 1
    return done


def alerts_watch(*, at: datetime, stop: Stop = never) -> int:  # noqa: ARG001  (one short pass)
    """Evaluate the alerts, then tell whoever watches the watcher that it is well."""
    done = alerts_evaluate(at=at)
    if url := settings.GATEWAY_HEARTBEAT_URL:
        try:
            call(url, method="GET")
        except CallFailed as error:
            logger.warning("GATEWAY_HEARTBEAT_URL was not reached: %s", error)
    return done


def _due(_at: datetime) -> int:
    with _owners_cursor() as cursor:
        return len(_stale_tables(cursor))


@contextmanager
def _owners_cursor() -> Iterator[CursorWrapper]:
    name = "mcp-gateway tables_analyze"
    with direct_connections(application_name=name) as (work, _), work.cursor() as cursor:
        # A large table takes longer than what a request may.
        cursor.execute("SET statement_timeout = '15min'")
        yield cursor


def _stale_tables(cursor: CursorWrapper) -> list[str]:
    cursor.execute(_STALE)
    return [row[0] for row in cursor.fetchall()]


def _rows_due(at: datetime) -> int:
    """What the next run would delete; a policy that does not fit or cannot be run, nothing."""
    rows = 0
    for policy in policies_due(at):
        with suppress(ValidationError, Error), transaction.atomic():
            rows += preview(policy, at=at).rows
    return rows


def _retention_previewed(at: datetime) -> Iterator[str]:
    for policy in DataRetentionPolicy.objects.filter(is_active=True).order_by("name"):
        yield f"{policy.name}: {preview_in_words(policy, at=at)}"


PERIODIC = (
    PeriodicTask(
        name="partitions_create",
        cron="10 * * * *",
        unit="partitions",
        does="Make the partitions of the logs for the days ahead.",
        due=partitions_missing,
        run=partitions_create,
    ),
    PeriodicTask(
        name="partitions_remove",
        cron="40 1 * * *",
        unit="partitions",
        does="Drop the partitions of the logs that retention policies no longer keep.",
        due=partitions_expired,
        run=partitions_remove,
    ),
    PeriodicTask(
        name="request_rollups_compact",
        cron="* * * * * */20",  # the sixth field counts seconds
        unit="deltas",
        does="Add the newest calls to the rollups that summaries read.",
        due=lambda _at: RequestRollupDelta.objects.count(),
        run=request_rollups_compact,
    ),
    PeriodicTask(
        name="request_rollups_prune",
        cron="37 3 * * *",
        unit="rows",
        does="Delete old rollups of five minutes, hours and tools; days stay.",
        due=None,
        run=request_rollups_prune,
    ),
    PeriodicTask(
        name="sizes_snapshot",
        cron="5 * * * *",
        unit="tables",
        does="Remember the size of each table, for the growth figures.",
        due=None,
        run=sizes_snapshot,
    ),
    PeriodicTask(
        name="statements_snapshot",
        cron="*/5 * * * *",
        unit="statements",
        does="Remember what statements cost, for the slow-statement figures.",
        due=None,
        run=statements_snapshot,
    ),
    PeriodicTask(
        name="tables_analyze",
        cron="*/30 * * * *",
        unit="tables",
        does="Refresh the planner's statistics where a table changed a lot.",
        due=_due,
        run=tables_analyze,
        limit=timedelta(hours=4),
    ),
    PeriodicTask(
        name="alerts_evaluate",
        cron="* * * * * */30",  # the sixth field is seconds
        unit="alerts",
        does="Hold the alert rules against the figures, and tell who wants to know.",
        due=lambda _at: PerformanceAlert.objects.filter(is_active=True).count(),
        run=alerts_watch,
        limit=timedelta(minutes=5),
        longest_back_off=timedelta(minutes=1),  # nobody else tells that something is wrong
    ),
    PeriodicTask(
        name="retention_run",
        cron="*/5 * * * *",
        unit="rows",
        does="Delete rows that are older than the retention policies keep them.",
        due=_rows_due,
        run=policies_run,
        preview=_retention_previewed,
    ),
    PeriodicTask(
        name="views_refresh",
        cron="* * * * * */10",  # the sixth column: seconds
        unit="views",
        does="Refresh the materialised views whose time has come or whose tables changed.",
        due=lambda at: len(views_due(at)),
        run=views_refresh,
        preview=lambda at: (view.name for view in views_due(at)),
    ),
)
