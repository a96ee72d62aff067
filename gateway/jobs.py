"""The job queue: which work there is, when it is due, and how one run keeps clear of another.

The queue is procrastinate's, in the same PostgreSQL. Each room lists its periodic work in its
`tasks.py`; here it meets the queue, so that the rooms know nothing of it. `run_maintenance` runs
the same functions without the queue.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any
from uuid import UUID

import procrastinate
from django.db import transaction
from django.utils.timezone import now
from procrastinate import JobContext, exceptions
from procrastinate.contrib.django import app

from gateway import tasks as gateway_tasks
from monitoring import tasks as monitoring_tasks
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


def task_defer(name: str, **arguments: str) -> None:
    """Queue a task as part of the open transaction; nothing when the same one waits already."""
    lock = ":".join([name, *arguments.values()])
    try:
        # A refusal must undo itself alone, not what the caller has done.
        with transaction.atomic():
            app.configure_task(name, queueing_lock=lock, lock=lock).defer(**arguments)
    except exceptions.AlreadyEnqueued:
        logger.debug("%s waits in the queue already", lock)


def tasks_register(queue: procrastinate.App) -> None:
    """Called by procrastinate when Django is ready: makes the tasks known to the queue."""
    for task in PERIODIC.values():
        _register(queue, task)
    queue.task(name=FIRST_CONTACT)(_first_contact)
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


async def _jobs_tidy(timestamp: int) -> None:  # noqa: ARG001  (when it was due)
    """Free what workers that died were doing, and forget failures that nobody looked into."""
    manager = app.job_manager
    stalled: Any = await manager.get_stalled_jobs(
        seconds_since_heartbeat=STALLED_AFTER.total_seconds()
    )
    for job in stalled:
        logger.warning("job %s (%s) was left by a worker that is gone", job.id, job.task_name)
        await manager.finish_job(job, status=procrastinate.jobs.Status.FAILED, delete_job=True)
    await manager.delete_old_jobs(
        nb_hours=FAILED_JOBS_KEPT_HOURS,
        include_failed=True,
        include_cancelled=True,
        include_aborted=True,
    )
