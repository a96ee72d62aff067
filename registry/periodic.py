"""What periodic work looks like, and how a lower room asks for work to be queued.

Each app's `tasks.py` lists its `PeriodicTask`s; the gateway puts them on the queue. What points
upward is a string: `settings.TASK_DEFERRER` names the function that queues.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Protocol, cast

from croniter import croniter
from django.conf import settings
from django.utils.module_loading import import_string

__all__ = ["PeriodicTask", "Stop", "never", "task_defer"]

Stop = Callable[[], bool]  # asked between steps; True: finish what is begun and return


def never() -> bool:
    return False


class Run(Protocol):
    def __call__(self, *, at: datetime, stop: Stop = never) -> int: ...


@dataclass(frozen=True, slots=True)
class PeriodicTask:
    """One kind of periodic work: how much of it is due, and the function that does it."""

    name: str
    cron: str
    unit: str  # what is counted, in the plural
    does: str  # one sentence for an operator
    due: Callable[[datetime], int] | None  # None: there is always something to do
    run: Run  # returns how many units it dealt with
    # Lines for an operator who wants to see more than a number before it is done.
    preview: Callable[[datetime], Iterable[str]] | None = None
    limit: timedelta = timedelta(hours=1)  # a longer run is told to stop and given up
    longest_back_off: timedelta = timedelta(minutes=15)  # between runs that fail

    def next_run(self, after: datetime) -> datetime:
        """The first time after another one that the cron line names, in UTC."""
        found: datetime = croniter(self.cron, after.astimezone(UTC)).get_next(datetime)
        return found

    def interval(self, at: datetime) -> timedelta:
        """From the next run to the one after it."""
        first = self.next_run(at)
        return self.next_run(first) - first


class TaskDeferrer(Protocol):
    """What `settings.TASK_DEFERRER` names; see `gateway.jobs.task_defer`."""

    def __call__(self, name: str, **arguments: str) -> None: ...


def task_defer(name: str, **arguments: str) -> None:
    """Queue a task, as part of the open transaction: no commit, no task."""
    _deferrer(settings.TASK_DEFERRER)(name, **arguments)


@cache
def _deferrer(path: str) -> TaskDeferrer:
    return cast("TaskDeferrer", import_string(path))
