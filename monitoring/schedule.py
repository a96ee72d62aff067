"""When periodic tasks are due, who has which, and how the last run went: `periodic_tasks`.

Note [One run at a time]
A due row is claimed by one UPDATE, then its job waits in the queue, then it runs; at its end the
claim is given back. Whoever holds a claim has it until `lease_until` and prolongs that while it
runs. After a crash the lease ends and the task is due again. `next_run` moves on when a run begins,
to the first time after now, so that a pause is made up for by one run and a job that is lost before
it began takes no run with it. Every write names the claim: who lost it while asleep changes nothing
and is told to stop. Times are those of the callers; their clocks may differ by less than a lease.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from threading import Event, Thread
from typing import Any
from uuid import UUID, uuid4

from django.db import Error, connection, transaction
from django.db.models import (
    Case,
    DateTimeField,
    DurationField,
    ExpressionWrapper,
    F,
    Q,
    QuerySet,
    Value,
    When,
)
from django.db.models.expressions import Combinable
from django.db.models.functions import Least, Power
from django.utils.timezone import now

from monitoring.audit import Actor, audit_write
from monitoring.models import ScheduledTask, TaskOutcome
from registry.changes import row_change
from registry.db.ids import uuid7
from registry.periodic import PeriodicTask, Stop, never

__all__ = [
    "LEASE",
    "QUEUED",
    "Claim",
    "TaskBusy",
    "task_run_now",
    "task_run_soon",
    "task_start",
    "task_update",
    "tasks_claim",
    "tasks_reap",
    "tasks_sync",
]

logger = logging.getLogger(__name__)

LEASE = timedelta(seconds=60)  # of a run; prolonged by a sign of life
BEAT_SECONDS = 10.0
QUEUED = timedelta(minutes=5)  # of a job that waits for a worker
FIRST_BACK_OFF = timedelta(seconds=30)
LONGEST_ERROR = 1000
SOON = timedelta(hours=1)  # a new task that runs at least so often is due at once

_SYNC = """
INSERT INTO periodic_tasks AS task
    (id, name, description, unit, schedule, next_run, created_at, updated_at)
SELECT given.*, %(at)s, %(at)s
FROM unnest(%(ids)s::uuid[], %(names)s::text[], %(does)s::text[], %(units)s::text[],
            %(crons)s::text[], %(nexts)s::timestamptz[])
    AS given (id, name, description, unit, schedule, next_run)
ORDER BY name
ON CONFLICT (name) DO UPDATE SET
    description = excluded.description, unit = excluded.unit, schedule = excluded.schedule,
    next_run = CASE WHEN task.schedule = excluded.schedule THEN task.next_run
                    ELSE least(task.next_run, excluded.next_run) END,
    updated_at = excluded.updated_at
WHERE (task.description, task.unit, task.schedule)
   <> (excluded.description, excluded.unit, excluded.schedule)
"""
# A row that somebody else is at just now is theirs.
_CLAIM = """
UPDATE periodic_tasks AS task
SET claim_id = gen_random_uuid(), claimed_by = %(by)s, running_since = NULL,
    lease_until = %(until)s, updated_at = %(at)s
WHERE task.id IN (
    SELECT due.id FROM periodic_tasks AS due
    WHERE due.name = ANY (%(names)s) AND NOT due.is_paused AND due.next_run <= %(at)s
      AND (due.claim_id IS NULL OR (due.running_since IS NULL AND due.lease_until <= %(at)s))
    ORDER BY due.name FOR UPDATE SKIP LOCKED
)
RETURNING task.name, task.claim_id
"""
_GONE = "Whoever ran it gave no sign of life for {} s: its process was killed or frozen."


class TaskBusy(Exception):
    """Somebody else runs the task right now; the message says who, and since when."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to run a task once."""

    name: str
    id: UUID


# --------------------------------------------------------------------------- what there is


def tasks_sync(tasks: Iterable[PeriodicTask], *, at: datetime, remove: bool = False) -> None:
    """Have a row for each task, as the code has it; with `remove` forget tasks that are gone.

    A new task that runs hourly or more often is due at once.
    """
    known = sorted(tasks, key=lambda task: task.name)
    columns: dict[str, Any] = {
        "ids": [uuid7() for _ in known],
        "names": [task.name for task in known],
        "does": [task.does for task in known],
        "units": [task.unit for task in known],
        "crons": [task.cron for task in known],
        "nexts": [_first_run(task, at) for task in known],
        "at": at,
    }
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(_SYNC, columns)
        if remove:
            ScheduledTask.objects.exclude(name__in=columns["names"]).delete()


def _first_run(task: PeriodicTask, at: datetime) -> datetime:
    return at if task.interval(at) <= SOON else task.next_run(at)


# --------------------------------------------------------------------------- who has which


def tasks_claim(tasks: Iterable[PeriodicTask], *, at: datetime, by: str) -> list[Claim]:
    """Claim those of the tasks that are due and free; each is given to one caller."""
    names = [task.name for task in tasks]
    with connection.cursor() as cursor:
        cursor.execute(_CLAIM, {"names": names, "at": at, "until": at + QUEUED, "by": by})
        return [Claim(*row) for row in cursor.fetchall()]


def tasks_reap(tasks: Iterable[PeriodicTask], *, at: datetime) -> int:
    """Take claims back from runs that give no sign of life; how many.

    Such a task is due at once; if the same happens again, later and later.
    """
    back_offs = {task.name: task for task in tasks}
    lost = ScheduledTask.objects.filter(running_since__isnull=False, lease_until__lte=at)
    return sum(_reap(row, back_offs[row.name], at) for row in lost.filter(name__in=back_offs))


def _reap(row: ScheduledTask, task: PeriodicTask, at: datetime) -> int:
    claimed = ScheduledTask.objects.filter(pk=row.pk, claim_id=row.claim_id, lease_until__lte=at)
    taken = claimed.update(
        next_run=Case(When(failures_in_a_row=0, then=Value(at)), default=_later(task, at)),
        last_outcome=TaskOutcome.GONE,
        last_error=_GONE.format(int(LEASE.total_seconds())),
        failures=F("failures") + 1,
        failures_in_a_row=F("failures_in_a_row") + 1,
        **_given_back(at),
    )
    if taken:
        logger.warning("task %s was cut off: %s gave no sign of life", row.name, row.claimed_by)
    return taken


def _held(claim: Claim) -> QuerySet[ScheduledTask]:
    return ScheduledTask.objects.filter(name=claim.name, claim_id=claim.id)


def _given_back(at: datetime) -> dict[str, Any]:
    return {
        "claim_id": None,
        "claimed_by": "",
        "lease_until": None,
        "running_since": None,
        "last_finished": at,
        "updated_at": at,
    }


def _begun(task: PeriodicTask, at: datetime) -> dict[str, Any]:
    return {
        "running_since": at,
        "last_started": at,
        "lease_until": at + LEASE,
        "next_run": task.next_run(at),
        "runs": F("runs") + 1,
        "updated_at": at,
    }


# --------------------------------------------------------------------------- runs


def task_start(task: PeriodicTask, claim: Claim, *, at: datetime, stop: Stop = never) -> int | None:
    """Run a claimed task; how many units it dealt with, None when the claim is another's by now.

    What the run raises is noted and raised.
    """
    if _held(claim).filter(running_since=None).update(**_begun(task, at)) != 1:
        logger.info("task %s is somebody else's by now", task.name)
        return None
    return _run(task, claim, at=at, stop=stop)


def task_run_now(task: PeriodicTask, *, at: datetime, by: str, stop: Stop = never) -> int:
    """Run a task at once, due, paused or not. TaskBusy when it runs elsewhere."""
    claim = Claim(task.name, uuid4())
    free = Q(running_since=None) | Q(lease_until__lte=at)
    rows = ScheduledTask.objects.filter(free, name=task.name)
    if rows.update(claim_id=claim.id, claimed_by=by, **_begun(task, at)) != 1:
        raise TaskBusy(_who_runs(task.name))
    return _run(task, claim, at=at, stop=stop)


def _who_runs(name: str) -> str:
    row = ScheduledTask.objects.filter(name=name, running_since__isnull=False).first()
    if row is None:
        return f"{name} ended just now: try again."
    return (
        f"{name} is running since {row.running_since:%H:%M:%S} UTC ({row.claimed_by}): "
        "wait for its end and try again."
    )


def _run(task: PeriodicTask, claim: Claim, *, at: datetime, stop: Stop) -> int:
    began = time.monotonic()
    try:
        with _kept(task, claim) as is_lost:
            done = task.run(at=at, stop=lambda: stop() or is_lost())
    except Exception as error:
        _note(task, claim, at=at, milliseconds=_since(began), error=error)
        raise
    _note(task, claim, at=at, milliseconds=_since(began), done=done)
    return done


def _since(began: float) -> float:
    return (time.monotonic() - began) * 1000


def _note(
    task: PeriodicTask,
    claim: Claim,
    *,
    at: datetime,
    milliseconds: float,
    done: int | None = None,
    error: Exception | None = None,
) -> None:
    """Give the claim back, with how the run went; nothing if it was taken away meanwhile."""
    finished = at + timedelta(milliseconds=milliseconds)
    row = _held(claim)
    common = {"last_duration_ms": milliseconds, "last_count": done, **_given_back(finished)}
    if error is None:
        row.update(last_outcome=TaskOutcome.DONE, last_error="", failures_in_a_row=0, **common)
        return
    row.update(
        last_outcome=TaskOutcome.FAILED,
        last_error=(str(error).strip() or type(error).__name__)[:LONGEST_ERROR],
        failures=F("failures") + 1,
        failures_in_a_row=F("failures_in_a_row") + 1,
        next_run=_later(task, finished),
        **common,
    )


def _later(task: PeriodicTask, at: datetime) -> Combinable:
    """In half a minute, or the interval of what runs more often; each time twice as long."""
    first = min(task.interval(at), FIRST_BACK_OFF)
    doublings = Power(Value(2.0), Least(F("failures_in_a_row"), Value(16)))
    wait = ExpressionWrapper(
        Value(first, DurationField()) * doublings, output_field=DurationField()
    )
    longest = Value(task.longest_back_off, DurationField())
    return ExpressionWrapper(
        Value(at, DateTimeField()) + Least(wait, longest), output_field=DateTimeField()
    )


@contextmanager
def _kept(task: PeriodicTask, claim: Claim) -> Iterator[Stop]:
    """Prolong the lease inside; yields whether the claim was lost.

    By a thread with a connection of its own, as the run's may be in the midst of a statement; a
    run that ends within the first beat opens none.
    """
    ended, lost = Event(), Event()
    until = time.monotonic() + task.limit.total_seconds()

    def beat() -> None:
        try:
            while not ended.wait(BEAT_SECONDS):
                if time.monotonic() > until or not _prolong(claim):
                    lost.set()
                    return
        finally:
            connection.close()

    Thread(target=beat, name=f"lease of {task.name}", daemon=True).start()
    try:
        yield lost.is_set
    finally:
        ended.set()


def _prolong(claim: Claim) -> bool:
    """Whether the claim is ours still; a database that is away for a moment takes it from none."""
    try:
        return _held(claim).update(lease_until=now() + LEASE) == 1
    except Error as error:
        logger.warning("the lease of task %s was not prolonged: %s", claim.name, error)
        return True


# --------------------------------------------------------------------------- by hand


@transaction.atomic
def task_run_soon(*, actor: Actor, task: ScheduledTask, at: datetime) -> bool:
    """Have a worker run a task now, or as soon as its present run ends; False: it is paused."""
    row = ScheduledTask.objects.filter(pk=task.pk, is_paused=False)
    if row.update(next_run=at, updated_at=at) != 1:
        return False
    audit_write(actor=actor, action="periodic_task.run", resource=task, details={"name": task.name})
    return True


@transaction.atomic
def task_update(*, actor: Actor, task: ScheduledTask, **changes: Any) -> ScheduledTask:
    """Pause or resume a task; a run that goes on is left to end. Missed runs are made up by one."""
    current, changed = row_change(row=task, changes=changes)
    if changed:
        audit_write(actor=actor, action="periodic_task.update", resource=current, details=changed)
    return current
