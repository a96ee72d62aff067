"""Carries retention policies out: in short batches, at most one run of a policy at a time.

See Note [A batch stands only with its count]. What a partitioned table loses, it loses by whole
partitions: that is the partitions' own task, which reads the same policies.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

from django.core.exceptions import ValidationError
from django.db import Error, OperationalError, connection, transaction
from django.db.models import F, Q, QuerySet
from psycopg import sql
from psycopg.errors import LockNotAvailable, QueryCanceled

from monitoring.averages import moving_average
from monitoring.models import DataRetentionPolicy
from monitoring.retention.tables import partitioned
from monitoring.retention.target import Target, target_of
from registry.periodic import Stop, never

__all__ = ["RUN_EVERY", "RetentionError", "batch_statement", "policies_due", "policies_run"]

logger = logging.getLogger(__name__)

RUN_EVERY = timedelta(hours=1)  # so that a day's rows do not go all at once
BUDGET_SECONDS = 60.0  # of one policy in one run; the rest goes in the next one
SHORTEST_PAUSE, LONGEST_PAUSE = 0.01, 2.0  # seconds
# Others notice a batch while it takes a processor from them: it has as many rows as go in so many
# seconds, from the fewest up to the policy's own.
BATCH_SECONDS, FEWEST_ROWS = 0.002, 100

Rest = Callable[[float], None]

# A batch that a crash takes back is deleted again, so none is worth waiting for the disk.
_LIMITS = (
    "SELECT set_config('lock_timeout', '2s', true), set_config('statement_timeout', '10s', true),"
    " set_config('synchronous_commit', 'off', true)"
)
# Rows that somebody else has locked, such as a login just being prolonged, are left for the next
# run. Each batch starts where the one before ended: what that one left dead in the index is not
# walked over again.
_BATCH = """
WITH gone AS (
    DELETE FROM {table} WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM {table}
        WHERE {column} >= %s::timestamptz AND {column} < %s AND ({where})
        ORDER BY {column} LIMIT %s FOR UPDATE SKIP LOCKED
    ))
    RETURNING {column}
)
SELECT count(*), max({column})::timestamptz FROM gone
"""
_OTHERS = """
SELECT count(*) FROM pg_stat_activity
WHERE state = 'active' AND backend_type = 'client backend'
  AND datname = current_database() AND pid <> pg_backend_pid()
"""


class RetentionError(Exception):
    """Some policies could not be carried out; the message names each with its reason."""


class OvertakenError(Exception):
    """The policy was changed, switched off or claimed anew while it was carried out."""


def _batched() -> QuerySet[DataRetentionPolicy]:
    """Active policies of tables that are not partitioned."""
    active = DataRetentionPolicy.objects.filter(is_active=True)
    return active.exclude(table_name__in=partitioned())


def policies_due(at: datetime) -> QuerySet[DataRetentionPolicy]:
    """Those that wait to be carried out, the longest waiting first."""
    due = _batched().filter(Q(next_run=None) | Q(next_run__lte=at))
    return due.order_by(F("next_run").asc(nulls_first=True), "name")


def policies_run(*, at: datetime, stop: Stop = never, rest: Rest = time.sleep) -> int:
    """Delete what due policies mean; how many rows. RetentionError after all were tried.

    A run that `stop` or its budget ends leaves its policy due, so that the next one goes on.
    `rest` is told how many seconds to leave to others between two batches.
    """
    deleted, failures = 0, []
    for policy in list(policies_due(at)):
        if stop():
            break
        if not _claim(policy, at=at):
            continue
        run = _Run(policy, at=at, stop=stop, rest=rest)
        run.carry_out()
        deleted += run.deleted
        if run.error:
            failures.append(f"{policy.name}: {run.error}")
    if failures:
        raise RetentionError(" ".join(failures))
    return deleted


def _claim(policy: DataRetentionPolicy, *, at: datetime) -> bool:
    """Let one worker have a due policy; True for that worker."""
    due = policies_due(at).order_by().filter(pk=policy.pk)
    claimed = due.update(last_run=at, next_run=at + RUN_EVERY, last_deleted_count=0, updated_at=at)
    return claimed == 1


class _Run:
    """One policy carried out once."""

    def __init__(
        self, policy: DataRetentionPolicy, *, at: datetime, stop: Stop, rest: Rest
    ) -> None:
        self.policy, self.at, self.stop, self.rest = policy, at, stop, rest
        self.deleted = 0
        self.error = ""

    def carry_out(self) -> None:
        began = time.monotonic()
        is_finished = False
        try:
            is_finished = self._delete_until(began + BUDGET_SECONDS)
        except OvertakenError:
            logger.info("retention policy %s was changed or claimed meanwhile", self.policy.name)
        except ValidationError as error:
            self.error = " ".join(error.messages)
        except Error as error:
            self.error = _in_words(error)
        if self.error:
            logger.warning("retention policy %s: %s", self.policy.name, self.error)
        self._record(is_finished=is_finished, milliseconds=(time.monotonic() - began) * 1000)

    def _delete_until(self, end: float) -> bool:
        """Whether every old row is gone, but for those that others had locked."""
        target = target_of(self.policy)
        for taken in self._batches(target):
            if self.stop() or time.monotonic() >= end:
                return False
            self.rest(_pause(taken))
        return True

    def _batches(self, target: Target) -> Iterator[float]:
        """Delete batch after batch; the seconds that each took."""
        statement = batch_statement(target)
        start: Any = "-infinity"
        rows = min(FEWEST_ROWS, self.policy.batch_size)
        while start is not None:
            began = time.monotonic()
            end = target.before(self.at)
            start = self._batch(statement, [start, end, *target.conditions.parameters, rows])
            taken = time.monotonic() - began
            if start is not None:
                yield taken
            rows = next_rows(rows, seconds=taken, most=self.policy.batch_size)

    def _batch(self, statement: sql.Composed, values: list[Any]) -> datetime | None:
        """Delete one batch; the time of its youngest row, None when there was none left."""
        with transaction.atomic(durable=True), connection.cursor() as cursor:
            cursor.execute(_LIMITS)
            cursor.execute(statement, values)
            count, youngest = cursor.fetchone()
            if count:
                self._count(count)
        self.deleted += count
        return youngest if count else None

    def _count(self, rows: int) -> None:
        """Note [A batch stands only with its count]

        The policy's figures move in the batch's own transaction, and only while the policy still
        says what the run was started with and nobody has claimed it since. So an operator who
        switches a policy off or keeps rows longer is obeyed from the next batch on, a worker that
        was thought dead stops when it wakes up, and the figures are exact after a crash.
        """
        told = ("table_name", "date_column", "retention_days", "conditions")
        same = {name: getattr(self.policy, name) for name in told}
        mine = DataRetentionPolicy.objects.filter(
            pk=self.policy.pk, is_active=True, last_run=self.at, **same
        )
        counted = mine.update(
            total_deleted=F("total_deleted") + rows,
            last_deleted_count=F("last_deleted_count") + rows,
            updated_at=self.at,
        )
        if counted != 1:
            raise OvertakenError

    def _record(self, *, is_finished: bool, milliseconds: float) -> None:
        mine = DataRetentionPolicy.objects.filter(pk=self.policy.pk, last_run=self.at)
        mine.update(
            next_run=self.at + RUN_EVERY if is_finished else self.at,
            avg_execution_time_ms=moving_average("avg_execution_time_ms", milliseconds),
            last_error=self.error,
            updated_at=self.at,
        )


def next_rows(rows: int, *, seconds: float, most: int) -> int:
    """Rows of the next batch, after one of so many rows took so many seconds."""
    wanted = round(rows * min(2.0, BATCH_SECONDS / max(seconds, 1e-6)))
    return min(max(wanted, FEWEST_ROWS), most)


def batch_statement(target: Target) -> sql.Composed:
    """Takes the oldest time, the time before which rows go, what the conditions need, a limit;
    gives how many rows went and the time of the youngest."""
    return sql.SQL(_BATCH).format(
        table=target.table, column=target.column, where=target.conditions.where
    )


def _pause(seconds: float) -> float:
    """How long to rest after a batch: as long as it took, once more for each busy session."""
    with connection.cursor() as cursor:
        cursor.execute(_OTHERS)
        others = int(cursor.fetchone()[0])
    return min(max(seconds, SHORTEST_PAUSE) * (1 + others), LONGEST_PAUSE)


def _in_words(error: Error) -> str:
    if isinstance(error, OperationalError):
        if isinstance(error.__cause__, LockNotAvailable):
            return "The table was locked for longer than 2 s; the next run goes on."
        if isinstance(error.__cause__, QueryCanceled):
            return "A batch took longer than 10 s: make batch_size smaller."
    return str(error).strip().splitlines()[0]
