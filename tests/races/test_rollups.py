"""Eight writers, a compacting worker and readers at once: the sums are exact at every moment."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timedelta
from threading import Barrier, Event
from typing import Any
from uuid import UUID

import pytest
from django.db import connection, transaction
from django.utils.timezone import now

from monitoring.models import RequestLog, RequestRollupDelta, RequestUsageDelta, RequestUserDelta
from monitoring.queries import ALL_TENANTS
from monitoring.rollups import rollups_compact

pytestmark = pytest.mark.django_db(transaction=True)

WRITERS, BATCHES, ROWS = 8, 25, 40
TENANTS = [None, UUID(int=1), UUID(int=2)]

# Rollups and log in one snapshot.
COMPARED = """
SELECT f.requests = r.n AND f.errors = r.failed AND f.bytes_out = r.sent, r.n
  FROM request_figures(%(tenant)s, %(since)s, %(until)s) AS f,
       (SELECT count(*) AS n, count(*) FILTER (WHERE status_code >= 400) AS failed,
               coalesce(sum(response_size_bytes), 0)::bigint AS sent
          FROM request_logs
         WHERE (tenant_id = %(tenant)s OR %(all)s)
           AND request_time >= %(since)s AND request_time < %(until)s) AS r
"""


def compared(tenant: UUID, since: datetime, until: datetime) -> tuple[bool, int]:
    parameters = {"tenant": tenant, "all": tenant == ALL_TENANTS, "since": since, "until": until}
    with connection.cursor() as cursor:
        cursor.execute(COMPARED, parameters)
        return tuple(cursor.fetchone())  # type: ignore[return-value]


def write(number: int, at: datetime) -> int:
    """Batches of calls of the last days, every fifth one rolled back; returns the rows kept."""
    dice = random.Random(number)
    kept = 0
    for batch in range(BATCHES):
        undone = batch % 5 == 4
        with transaction.atomic():
            RequestLog.objects.bulk_create(
                RequestLog(
                    method="POST",
                    path="/mcp/x",
                    tenant_id=dice.choice(TENANTS),
                    user_id=UUID(int=dice.randint(1, 5)),
                    request_time=at - timedelta(seconds=dice.uniform(0, 90_000)),
                    status_code=dice.choice([200, 500]),
                    duration_ms=dice.lognormvariate(3, 1),
                    response_size_bytes=dice.randint(0, 1000),
                )
                for _ in range(ROWS)
            )
            transaction.set_rollback(undone)
        kept += 0 if undone else ROWS
    return kept


def compact_until(done: Event) -> int:
    moved = 0
    while not done.is_set():
        with connection.cursor() as cursor:
            cursor.execute("SELECT request_rollups_compact(17)")
            moved += cursor.fetchone()[0]
    return moved


def read_until(done: Event, at: datetime) -> list[tuple[bool, int]]:
    """One snapshot over two statements, and within one statement; both windows cut their edges."""
    found = []
    since = at - timedelta(seconds=80_000)
    while not done.is_set():
        found.append(compared(ALL_TENANTS, since, at))
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            found += [compared(TENANTS[1] or ALL_TENANTS, since, at) for _ in range(2)]
    return found


def test_sums_are_exact_while_eight_write_and_one_compacts() -> None:
    at, done, begin = now(), Event(), Barrier(WRITERS + 3)

    def at_once(work: Callable[..., Any], *arguments: Any) -> Any:
        try:
            begin.wait(timeout=10)
            return work(*arguments)
        finally:
            connection.close()  # each thread owns a connection

    with ThreadPoolExecutor(WRITERS + 3) as pool:
        writers: list[Future[int]] = [
            pool.submit(at_once, write, number, at) for number in range(WRITERS)
        ]
        # Two workers by mistake: one of them finds the lock taken and leaves.
        workers = [pool.submit(at_once, compact_until, done) for _ in range(2)]
        reader = pool.submit(at_once, read_until, done, at)
        try:
            written = sum(writer.result(timeout=90) for writer in writers)
        finally:
            done.set()
        moved = sum(worker.result(timeout=30) for worker in workers)
        seen = reader.result(timeout=30)

    assert written == RequestLog.objects.count() == WRITERS * ROWS * BATCHES * 4 // 5
    assert moved > 0, "the worker had nothing to do: the race was not run"
    assert len({rows for _, rows in seen}) > 3, "the reader saw no rows arrive"
    assert all(same for same, _ in seen)
    rollups_compact()
    for model in (RequestRollupDelta, RequestUsageDelta, RequestUserDelta):
        assert not model._default_manager.exists()
    whole = (at - timedelta(days=3), at + timedelta(days=1))
    assert compared(ALL_TENANTS, *whole) == (True, written)
    assert all(compared(tenant, *whole)[0] for tenant in TENANTS if tenant)


def test_a_writer_that_rolls_back_leaves_no_delta() -> None:
    with transaction.atomic():
        RequestLog.objects.create(method="POST", path="/", status_code=200, duration_ms=1)
        assert RequestRollupDelta.objects.exists()
        transaction.set_rollback(True)
    for model in (RequestRollupDelta, RequestUsageDelta, RequestUserDelta):
        assert not model._default_manager.exists()


def test_a_compaction_waits_for_no_writer_and_no_writer_for_it() -> None:
    """A writer's transaction stays open; its deltas are taken when it is over."""
    written, taken = Event(), Event()

    def slow_writer() -> None:
        try:
            with transaction.atomic():
                RequestLog.objects.create(method="POST", path="/", status_code=200, duration_ms=1)
                written.set()
                assert taken.wait(timeout=30)
        finally:
            connection.close()

    RequestLog.objects.create(method="POST", path="/", status_code=200, duration_ms=1)
    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(slow_writer)
        assert written.wait(timeout=30)
        try:
            with transaction.atomic():
                with connection.cursor() as cursor:
                    cursor.execute("SET LOCAL lock_timeout = '100ms'")
                assert rollups_compact() > 0
                # The compaction is not over yet either, and here is another call.
                RequestLog.objects.create(method="POST", path="/", status_code=200, duration_ms=1)
        finally:
            taken.set()
        writer.result(timeout=30)
    rollups_compact()
    at = now()
    assert compared(ALL_TENANTS, at - timedelta(days=2), at + timedelta(days=2)) == (True, 3)
