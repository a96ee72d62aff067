"""Periodic tasks on the first page: what failed or did not begin comes first."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from django.urls import reverse

from gateway.dashboard.metrics import Problem
from gateway.dashboard.tables import Table, chip, date_and_time, link
from monitoring.models import ScheduledTask
from registry.admin_base import NOTHING, duration

__all__ = ["known_tasks", "late_problems", "tasks_table"]

STATUS = {"failed": "critical", "cut off": "critical", "late": "critical", "paused": "warning"}
STATUS_RANK = {"critical": 0, "warning": 1}
LONGEST_ERROR = 300


def known_tasks() -> list[ScheduledTask]:
    """All of them: a release has about fifteen."""
    return list(ScheduledTask.objects.order_by("next_run", "name"))


def late_problems(tasks: Sequence[ScheduledTask], at: datetime) -> list[Problem]:
    """One line for all that are late, as it is one worker that is missing."""
    late = [task for task in tasks if task.is_late(at)]
    if not late:
        return []
    first, more = late[0], f" and {len(late) - 1} more" if len(late) > 1 else ""
    since = f"{first.name} since {date_and_time(first.due_by)} UTC"
    words = f"Late tasks: {since}{more}; is a worker running?"
    return [Problem(words, "critical", "#periodic-tasks")]


def tasks_table(tasks: Sequence[ScheduledTask], at: datetime) -> Table:
    """Each task with how its last run went; those that need a look before the others."""
    shown = sorted(tasks, key=lambda task: STATUS_RANK.get(_status(task, at), 2))
    return Table(
        title="Periodic tasks",
        heads=("task", "state", "last run", "took", "next run", "error"),
        numbers=frozenset({3}),
        long=frozenset({5}),
        whole=frozenset({0, 2, 4}),
        rows=[
            (
                link(reverse("admin:monitoring_scheduledtask_change", args=[task.pk]), task.name),
                chip(task.state_at(at), _status(task, at)),
                date_and_time(task.last_started),
                duration(task.last_duration_ms),
                NOTHING if task.is_paused else date_and_time(task.next_run),
                _error(task),
            )
            for task in shown
        ],
        empty="No task is known yet: start a worker.",
        note="Late: due for more than a minute, and no worker has begun it.",
        more=reverse("admin:monitoring_scheduledtask_changelist"),
    )


def _status(task: ScheduledTask, at: datetime) -> str:
    return STATUS.get(task.state_at(at), "ok" if task.state == "ok" else "")


def _error(task: ScheduledTask) -> str:
    """What the last run said; the task's own page has all of it."""
    words = " ".join(task.last_error.split())
    return f"{words[:LONGEST_ERROR]} …" if len(words) > LONGEST_ERROR else words or NOTHING
