"""The job queue: which work there is, when it is due, and how one run keeps clear of another.

The queue is procrastinate's, in the same PostgreSQL. Each room lists its periodic work in its
`tasks.py`; here it meets the queue, so that the rooms know nothing of it. `run_maintenance` runs
the same functions without the queue.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

import procrastinate
from django.db import transaction
from django.utils.timezone import now
from procrastinate import BaseRetryStrategy, JobContext, RetryDecision, exceptions
from procrastinate.contrib.django import app
from procrastinate.jobs import Job

from gateway import tasks as gateway_tasks
from monitoring import tasks as monitoring_tasks
from monitoring.alerts.deliver import alert_notify
from monitoring.alerts.events import NOTIFY
from monitoring.matviews import view_refresh
from monitoring.services import VIEW_REFRESH
from registry import tasks as registry_tasks
from registry.periodic import PeriodicTask
from security import tasks as security_tasks

__all__ = ["PERIODIC", "task_defer", "tasks_register"]

logger = logging.getLogger(__name__)

PERIODIC: dict[str, PeriodicTask] = {
    task.name: task
    for task in (
        *registry_tasks.PERIODIC,
        *monitoring_tasks.PERIODIC,
        *security_tasks.PERIODIC,
        *gateway_tasks.PERIODIC,
    )
}
FIRST_CONTACT = "server_first_contact"
# A worker's heartbeat is ten seconds; after six missed ones nobody will finish its jobs.
STALLED_AFTER = timedelta(seconds=60)
FAILED_JOBS_KEPT_HOURS = 7 * 24
# Seconds before each further attempt at a notification; seven in all, within an hour.
NOTIFY_AGAIN_AFTER = (5, 20, 60, 240, 900, 2400)
# Everything else goes first, and what was never tried goes before what failed.
NOTIFY_PRIORITY, NOTIFY_AGAIN_PRIORITY = -10, -20


class _NotifyAgain(BaseRetryStrategy):
    """Back off, and leave the channel's place to what it has not been offered yet."""

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision | None:
        if not isinstance(exception, Exception) or job.attempts >= len(NOTIFY_AGAIN_AFTER):
            return None
        return RetryDecision(
            retry_in={"seconds": NOTIFY_AGAIN_AFTER[job.attempts]},
            priority=NOTIFY_AGAIN_PRIORITY,
            lock=job.queueing_lock,
        )


def task_defer(name: str, **arguments: str) -> None:
    """Queue a task as part of the open transaction; nothing when the same one waits already."""
    lock = ":".join([name, *arguments.values()])
    try:
        # A refusal must undo itself alone, not what the caller has done.
        with transaction.atomic():
            app.configure_task(name, queueing_lock=lock, lock=_alone(name, lock, arguments)).defer(
                **arguments
            )
    except exceptions.AlreadyEnqueued:
        logger.debug("%s waits in the queue already", lock)


def _alone(name: str, lock: str, arguments: Mapping[str, str]) -> str:
    """What only one job at a time may hold: the task with its arguments.

    Of notifications the channel, so that a receiver that hangs takes one worker's slot, not all.
    """
    return f"{name}:{arguments['channel']}" if name == NOTIFY else lock


def tasks_register(queue: procrastinate.App) -> None:
    """Called by procrastinate when Django is ready: makes the tasks known to the queue."""
    for task in PERIODIC.values():
        _register(queue, task)
    queue.task(name=FIRST_CONTACT)(_first_contact)
    queue.task(name=NOTIFY, priority=NOTIFY_PRIORITY, retry=_NotifyAgain())(_alert_notify)
    queue.task(name=VIEW_REFRESH)(_view_refresh)
    # Without a lock of its own: it frees those that dead workers hold.
    tidy = queue.task(name="jobs_tidy", queueing_lock="jobs_tidy")(_jobs_tidy)
    queue.periodic(cron="*/5 * * * *", periodic_id="jobs_tidy")(tidy)


def _register(queue: procrastinate.App, task: PeriodicTask) -> None:
    """At most one run waits (queueing lock) and at most one runs (lock), over all workers."""

    def run(context: JobContext, timestamp: int) -> int:  # noqa: ARG001  (when it was due)
        return task.run(at=now(), stop=context.should_abort)

    known = queue.task(name=task.name, queueing_lock=task.name, lock=task.name, pass_context=True)
    queue.periodic(cron=task.cron, periodic_id=task.name)(known(run))


def _first_contact(server_id: str) -> None:
    registry_tasks.server_first_contact(server_id=UUID(server_id), at=now())


def _alert_notify(event_id: str, channel: str) -> None:
    alert_notify(event_id=UUID(event_id), channel=channel, at=now())


def _view_refresh(view_id: str) -> None:
    view_refresh(view_id=UUID(view_id), at=now())


async def _jobs_tidy(timestamp: int) -> None:  # noqa: ARG001  (when it was due)
    """Free what workers that died were doing, and forget failures that nobody looked into.

    A notification is taken up again; periodic work comes by itself.
    """
    manager = app.job_manager
    stalled: Any = await manager.get_stalled_jobs(
        seconds_since_heartbeat=STALLED_AFTER.total_seconds()
    )
    for job in stalled:
        logger.warning("job %s (%s) was left by a worker that is gone", job.id, job.task_name)
        if job.task_name == NOTIFY and job.attempts < len(NOTIFY_AGAIN_AFTER):
            await manager.retry_job(job)
            continue
        await manager.finish_job(job, status=procrastinate.jobs.Status.FAILED, delete_job=True)
    await manager.delete_old_jobs(
        nb_hours=FAILED_JOBS_KEPT_HOURS,
        include_failed=True,
        include_cancelled=True,
        include_aborted=True,
    )
