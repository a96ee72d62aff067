"""Several schedulers over one due table, and weeks that pass over them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from random import Random
from threading import Barrier, Event, Lock
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, transaction
from procrastinate.contrib.django import app
from procrastinate.contrib.django.models import ProcrastinateJob

from gateway import jobs
from gateway.models import CircuitBreaker
from monitoring import schedule
from monitoring.alerts.evaluate import alerts_evaluate
from monitoring.models import AlertEvent, ScheduledTask
from monitoring.retention.run import policies_run
from monitoring.schedule import TaskBusy, task_run_now, task_start, tasks_claim, tasks_sync
from registry.periodic import PeriodicTask
from security.models import Session
from tests.factories import MCPServerFactory, PerformanceAlertFactory, SessionFactory, UserFactory
from tests.races.test_retention import Expected, in_threads, policy_of_sessions

pytestmark = pytest.mark.django_db(transaction=True)

AT = datetime(2026, 6, 15, 12, 7, tzinfo=UTC)
SCHEDULERS = 6


def task(name: str, cron: str, run: Callable[..., int]) -> PeriodicTask:
    return PeriodicTask(name=name, cron=cron, unit="things", does="Work.", due=None, run=run)


def nothing(*, at: datetime, stop: Callable[[], bool]) -> int:
    return 0


def test_each_due_task_is_claimed_by_one_scheduler():
    tasks = [task(f"task_{number}", "* * * * *", nothing) for number in range(5)]
    tasks_sync(tasks, at=AT)
    for minute in range(3):
        at = AT + timedelta(minutes=minute)
        found = in_threads(SCHEDULERS, lambda _, at=at: tasks_claim(tasks, at=at, by="thread"))
        claims = [claim for claims in found for claim in claims]
        # One that was just being claimed elsewhere is passed over, never given twice.
        assert Counter(claim.name for claim in claims) == {each.name: 1 for each in tasks}
        for claim in claims:
            task_start(next(each for each in tasks if each.name == claim.name), claim, at=at)


def test_a_task_runs_once_at_a_time_whoever_asks_for_it():
    asked, refused = Barrier(SCHEDULERS), Event()
    words: list[str] = []

    def until_all_others_were_refused(*, at: datetime, stop: Callable[[], bool]) -> int:
        assert refused.wait(timeout=10)
        return 1

    slow = task("slow", "* * * * *", until_all_others_were_refused)
    tasks_sync([slow], at=AT)

    def by_hand(number: int) -> int:
        asked.wait(timeout=10)
        try:
            return task_run_now(slow, at=AT, by=f"thread {number}")
        except TaskBusy as busy:
            words.append(str(busy))
            if len(words) == SCHEDULERS - 1:
                refused.set()
            return 0

    assert sorted(in_threads(SCHEDULERS, by_hand)) == [0] * (SCHEDULERS - 1) + [1]
    assert all("slow is running since 12:07:00 UTC (thread " in each for each in words)
    assert ScheduledTask.objects.get().runs == 1


def test_a_long_run_keeps_its_claim_and_one_that_lost_it_is_told_to_stop(monkeypatch):
    monkeypatch.setattr(schedule, "BEAT_SECONDS", 0.02)
    beaten = Event()
    prolong = schedule._prolong

    def told(claim: Any) -> bool:
        kept = prolong(claim)
        beaten.set()
        return kept

    monkeypatch.setattr(schedule, "_prolong", told)

    def until_stopped(*, at: datetime, stop: Callable[[], bool]) -> int:
        assert beaten.wait(timeout=10)
        row = ScheduledTask.objects.get()
        assert row.lease_until > AT + timedelta(days=1), "prolonged, by the clock of today"
        ScheduledTask.objects.update(claim_id=None)  # as another worker's reaping would
        pause = Event()
        for _ in range(500):
            if stop():
                return 1
            pause.wait(0.02)
        raise AssertionError("it was not told to stop")

    long = task("long", "* * * * *", until_stopped)
    tasks_sync([long], at=AT)
    assert task_run_now(long, at=AT, by="here") == 1
    assert ScheduledTask.objects.get().last_outcome == "", "what is another's is not written"


def test_due_tasks_are_queued_once_with_their_claim():
    ProcrastinateJob.objects.all().delete()
    tasks_sync(jobs.PERIODIC.values(), at=AT)
    ScheduledTask.objects.update(next_run=AT)
    queued = in_threads(2, lambda _: jobs.due_tasks_defer(at=AT))
    assert sum(queued) == len(jobs.PERIODIC)
    found = dict(ProcrastinateJob.objects.values_list("task_name", "args"))
    claims = dict(ScheduledTask.objects.values_list("name", "claim_id"))
    assert found == {name: {"claim_id": str(claim)} for name, claim in claims.items()}


def test_in_a_worker_too_a_job_is_part_of_the_transaction():
    """There procrastinate's app has connections of its own, where it would be committed at once."""
    ProcrastinateJob.objects.all().delete()

    def in_a_job() -> int:
        try:
            with transaction.atomic():
                jobs.task_defer("view_refresh", view_id="x")
                seen = ProcrastinateJob.objects.count()
                transaction.set_rollback(True)
            return seen
        finally:
            connection.close()

    async def worker() -> int:
        connector = app.connector.get_worker_connector()
        with app.replace_connector(connector):
            async with app.open_async():
                return await sync_to_async(in_a_job, thread_sensitive=False)()

    assert asyncio.run(worker()) == 1
    assert not ProcrastinateJob.objects.exists()


def test_weeks_pass_over_two_schedulers():
    """Each task runs once a due time, each alert is raised once, old rows go, young ones stay."""
    ran: list[tuple[str, datetime]] = []
    writing = Lock()

    def noted(name: str, work: Callable[[datetime], int]) -> Callable[..., int]:
        def run(*, at: datetime, stop: Callable[[], bool]) -> int:
            with writing:
                ran.append((name, at))
            return work(at)

        return run

    tasks = [
        task(name, cron, noted(name, work))
        for name, cron, work in (
            ("retention", "*/5 * * * *", lambda at: policies_run(at=at, rest=lambda _: None)),
            ("alerts", "* * * * * */30", lambda at: alerts_evaluate(at=at)),
            ("hourly", "10 * * * *", lambda at: 1),
            ("nightly", "40 1 * * *", lambda at: 1),
        )
    ]
    MCPServerFactory()
    PerformanceAlertFactory(duration_minutes=0, cooldown_minutes=0)
    logins = Expected(policy_of_sessions(batch_size=7))
    dice, user, at = Random(4711), UserFactory(), AT
    tasks_sync(tasks, at=at)
    due = dict(ScheduledTask.objects.values_list("name", "next_run"))
    with schedulers(tasks, 2) as tick:
        while at < AT + timedelta(days=15):
            at += timedelta(minutes=dice.choice([15, 90, 600, 900]))
            CircuitBreaker.objects.update(state="open" if (at - AT).days % 7 < 3 else "closed")
            for _ in range(dice.randrange(3)):
                ends = at + timedelta(hours=dice.uniform(-200, 24))
                logins.times.add(SessionFactory(user=user, expires_at=ends).expires_at)
            ran.clear()
            tick(at)
            wanted = [each for each in tasks if due[each.name] <= at]
            assert sorted(name for name, _ in ran) == sorted(each.name for each in wanted)
            due |= {each.name: each.next_run(at) for each in wanted}
            logins.tick(at)
            assert set(Session.objects.values_list("expires_at", flat=True)) == logins.times
    kinds = list(AlertEvent.objects.order_by("id").values_list("kind", flat=True))
    assert kinds == ["triggered", "resolved", "triggered", "resolved", "triggered"]
    assert not ScheduledTask.objects.exclude(last_outcome="done").exists()
    assert ScheduledTask.objects.get(name="nightly").runs == 15


@contextmanager
def schedulers(tasks: list[PeriodicTask], count: int) -> Iterator[Callable[[datetime], object]]:
    """Threads that keep their connections; each call lets all of them claim and run at once."""
    barrier = Barrier(count)
    by_name = {each.name: each for each in tasks}

    def one(at: datetime) -> None:
        barrier.wait(timeout=10)
        for claim in tasks_claim(tasks, at=at, by="thread"):
            task_start(by_name[claim.name], claim, at=at)

    def leave(_: int) -> None:
        barrier.wait(timeout=10)
        connection.close()

    with ThreadPoolExecutor(count) as pool:
        yield lambda at: list(pool.map(one, [at] * count))
        list(pool.map(leave, range(count)))
