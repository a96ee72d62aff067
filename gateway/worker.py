"""The worker process: queues what is due and takes jobs from the queue until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress

import psycopg
from django.db import Error, connection
from django.utils.timezone import now
from procrastinate import exceptions
from procrastinate.contrib.django import app
from procrastinate.jobs import DeleteJobCondition

from gateway.jobs import PERIODIC, due_tasks_defer
from gateway.lifeline import leave
from gateway.schema import schema_check
from gateway.seldom import Seldom
from monitoring.logwriter.threads import process_writer
from monitoring.schedule import tasks_sync
from registry.db.crossing import cross_tenants
from registry.db.partitions import partitions_check
from registry.sentences import first_line

__all__ = ["run_worker"]

logger = logging.getLogger(__name__)

# A job that is asked to stop does so between two steps, each bounded by its own time-out.
GRACE_SECONDS = 5.0
AWAY = "away"
# And for the queue to say so; a server that is frozen would hold up the worker's end for good.
QUEUE_SECONDS = GRACE_SECONDS + 2.0
LONGEST_PAUSE_SECONDS = 30.0
TICK_SECONDS = 1.0
# A worker of another version that starts later may have removed rows of ours.
SYNC_SECONDS = 600.0


def run_worker(*, concurrency: int, told: Callable[[str], object]) -> None:
    """Work until SIGTERM or SIGINT; a database that goes away is waited for.

    CrossingError when it may not act for every tenant, PartitionsError when not as the owner,
    SchemaMissingError without tables.

    Jobs are synchronous functions in threads, so `concurrency` is the number of database
    connections that jobs use; the queue, the schedule and the log writer take up to six more, and
    a job of more than ten seconds one more each.
    """
    asyncio.run(_until_told(concurrency, told))


async def _until_told(concurrency: int, told: Callable[[str], object]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    told(f"Worker started, {concurrency} job(s) at a time. Ctrl-C stops it.")
    async with process_writer():
        work = asyncio.create_task(_until_stopped(concurrency, stop))
        waiting = asyncio.create_task(stop.wait())
        await asyncio.wait({work, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        _, late = await asyncio.wait({work}, timeout=QUEUE_SECONDS)
    if late:
        logger.error("the worker stops without an answer of PostgreSQL")
        leave(1)
    work.result()
    told("Worker stopped.")


async def _until_stopped(concurrency: int, stop: asyncio.Event) -> None:
    pause, seldom, clock = 1.0, Seldom(), asyncio.get_running_loop().time
    while not stop.is_set():
        began = clock()
        why = await _until_stopped_or_broken(concurrency, stop, seldom)
        if stop.is_set():
            break
        if clock() - began > LONGEST_PAUSE_SECONDS:
            pause = 1.0
        if seldom.is_due(AWAY):
            logger.error("the worker waits for the database: %s", why)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), pause)
        pause = min(pause * 2, LONGEST_PAUSE_SECONDS)


async def _schedule() -> None:
    """Queue what is due, every second; raises what the database does."""
    loop = asyncio.get_running_loop()
    thread = ThreadPoolExecutor(1, "schedule")  # one thread: one connection
    synced = -SYNC_SECONDS
    try:
        while True:
            if loop.time() - synced >= SYNC_SECONDS:
                await loop.run_in_executor(thread, _sync, synced < 0)
                synced = loop.time()
            await loop.run_in_executor(thread, _tick)
            await asyncio.sleep(TICK_SECONDS)
    finally:
        thread.submit(connection.close)
        thread.shutdown(wait=False)


def _sync(is_first: bool) -> None:
    tasks_sync(PERIODIC.values(), at=now(), remove=is_first)


def _tick() -> None:
    due_tasks_defer(at=now())


@asynccontextmanager
async def _queue() -> AsyncIterator[None]:
    """The queue on connections of its own; they take the role that this process has taken."""
    connector = app.connector.get_worker_connector()  # type: ignore[attr-defined]
    with app.replace_connector(connector):
        async with app.open_async():
            yield


async def _until_stopped_or_broken(concurrency: int, stop: asyncio.Event, seldom: Seldom) -> str:
    """Work for as long as it goes; what ended it, in one line."""
    try:
        await asyncio.to_thread(cross_tenants)
        await asyncio.to_thread(schema_check)
        await asyncio.to_thread(partitions_check)
        async with _queue():
            if seldom.forget(AWAY):
                logger.warning("the worker has the database again")
            worker = asyncio.create_task(
                app.run_worker_async(
                    concurrency=concurrency,
                    delete_jobs=DeleteJobCondition.SUCCESSFUL.value,
                    install_signal_handlers=False,
                    shutdown_graceful_timeout=GRACE_SECONDS,
                )
            )
            schedule = asyncio.create_task(_schedule())
            waiting = asyncio.create_task(stop.wait())
            tasks = {worker, schedule, waiting}
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()  # the queue lets running jobs end first
            for task in (worker, schedule):
                with suppress(asyncio.CancelledError):
                    await task
    except (exceptions.ConnectorException, psycopg.Error, Error, OSError) as error:
        return first_line(error.__cause__ or error)
    return "the job queue ended"
