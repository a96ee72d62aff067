"""The job queue: which work there is, and how it gets from the due table into the queue.

The queue is procrastinate's, in the same PostgreSQL; it carries jobs and knows no schedule. Each
room lists its periodic work in its `tasks.py`, `monitoring.schedule` knows what is due and lets one
run at a time begin, and here both meet the queue, so that the rooms know nothing of it.
`run_maintenance` runs the same functions without the queue.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import cache
from typing import Any
from uuid import UUID

import procrastinate
from asgiref.sync import async_to_sync
from django.db import transaction
from django.utils.timezone import now
from procrastinate import BaseRetryStrategy, JobContext, RetryDecision, exceptions
from procrastinate.contrib.django.django_connector import DjangoConnector
from procrastinate.jobs import Job

from gateway import tasks as gateway_tasks
from monitoring import tasks as monitoring_tasks
from monitoring.alerts.deliver import alert_notify
from monitoring.alerts.events import NOTIFY
from monitoring.matviews import view_refresh
from monitoring.schedule import Claim, task_start, tasks_claim, tasks_reap
from monitoring.services import VIEW_REFRESH
from registry import tasks as registry_tasks
from registry.periodic import PeriodicTask, Stop, never
from security import tasks as security_tasks

__all__ = ["PERIODIC", "due_tasks_defer", "task_defer", "tasks_register", "this_process"]

logger = logging.getLogger(__name__)

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


def this_process() -> str:
    """Who runs a task, for people: host and process."""
    return f"{socket.gethostname()}:{os.getpid()}"


@transaction.atomic
def due_tasks_defer(*, at: datetime) -> int:
    """Queue each periodic task that is due, once over all workers; returns how many."""
    tasks = PERIODIC.values()
    tasks_reap(tasks, at=at)
    claims = tasks_claim(tasks, at=at, by=this_process())
    for claim in claims:
        task_defer(claim.name, claim_id=str(claim.id))
    return len(claims)


def task_defer(name: str, **arguments: str) -> None:
    """Queue a task as part of the open transaction; nothing when the same one waits already."""
    lock = ":".join([name, *arguments.values()])
    job = _queue().configure_task(
        name,
        queueing_lock=lock,
        lock=_alone(name, lock, arguments),
        priority=NOTIFY_PRIORITY if name == NOTIFY else None,
    )
    try:
        # A refusal must undo itself alone, not what the caller has done.
        with transaction.atomic():
            job.defer(**arguments)
    except exceptions.AlreadyEnqueued:
        logger.debug("%s waits in the queue already", lock)


@cache
def _queue() -> procrastinate.App:
    """The queue on Django's own connections, in a worker too.

    There procrastinate's own app has others, on which a job is committed before the row that it
    is about.
    """
    return procrastinate.App(connector=DjangoConnector())


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
    queue.task(name=NOTIFY, retry=_NotifyAgain())(_alert_notify)
    queue.task(name=VIEW_REFRESH)(_view_refresh)


def _register(queue: procrastinate.App, task: PeriodicTask) -> None:
    def run(context: JobContext, claim_id: str) -> int | None:
        claim = Claim(task.name, UUID(claim_id))
        return task_start(task, claim, at=now(), stop=context.should_abort)

    queue.task(name=task.name, pass_context=True)(run)


def _first_contact(server_id: str) -> None:
    registry_tasks.server_first_contact(server_id=UUID(server_id), at=now())


def _alert_notify(event_id: str, channel: str) -> None:
    alert_notify(event_id=UUID(event_id), channel=channel, at=now())


def _view_refresh(view_id: str) -> None:
    view_refresh(view_id=UUID(view_id), at=now())


def jobs_tidy(*, at: datetime, stop: Stop = never) -> int:  # noqa: ARG001  (as of now, short)
    """Free what workers that died were doing, and forget failures that nobody looked into.

    A notification is taken up again; periodic work comes by itself.
    """
    return async_to_sync(_jobs_tidy)()


async def _jobs_tidy() -> int:
    manager = _queue().job_manager
    stalled: Any = await manager.get_stalled_jobs(
        seconds_since_heartbeat=STALLED_AFTER.total_seconds()
    )
    found = list(stalled)
    for job in found:
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
    return len(found)


PERIODIC: dict[str, PeriodicTask] = {
    task.name: task
    for task in (
        *registry_tasks.PERIODIC,
        *monitoring_tasks.PERIODIC,
        *security_tasks.PERIODIC,
        *gateway_tasks.PERIODIC,
        PeriodicTask(
            name="jobs_tidy",
            cron="*/5 * * * *",
            unit="jobs",
            does="Free the jobs of workers that are gone, and forget failed ones after a week.",
            due=None,
            run=jobs_tidy,
        ),
    )
}
