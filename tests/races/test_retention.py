"""Retention with several workers, open transactions of others, and weeks that pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from random import Random
from threading import Barrier
from typing import Any

import pytest
from django.db import connection, transaction

from monitoring.models import DatabaseSizeSnapshot, DataRetentionPolicy
from monitoring.retention import run as running
from monitoring.retention.run import RUN_EVERY, RetentionError, policies_run
from security.models import Session
from tests.factories import DataRetentionPolicyFactory, SessionFactory, UserFactory

pytestmark = pytest.mark.django_db(transaction=True)

AT = datetime(2026, 6, 15, 12, tzinfo=UTC)
WEEK = timedelta(days=7)


def policy_of_sessions(**fields: Any) -> DataRetentionPolicy:
    told = {"table_name": "sessions", "date_column": "expires_at", "retention_days": 7}
    return DataRetentionPolicyFactory(**{**told, **fields})


def sessions(count: int, *, ended: datetime) -> list[Session]:
    user = UserFactory()
    return [SessionFactory(user=user, expires_at=ended) for _ in range(count)]


def run(at: datetime = AT) -> int:
    return policies_run(at=at, rest=lambda _: None)


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    barrier = Barrier(count)

    def one(number: int) -> Any:
        try:
            barrier.wait(timeout=10)
            return work(number)
        finally:
            connection.close()  # each thread owns a connection

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def test_of_many_workers_one_carries_a_policy_out():
    policy_of_sessions(batch_size=2)
    sessions(10, ended=AT - 2 * WEEK)
    deleted = in_threads(6, lambda number: run(AT + timedelta(milliseconds=number)))
    assert sorted(deleted) == [0, 0, 0, 0, 0, 10]
    assert DataRetentionPolicy.objects.get().total_deleted == 10


def test_two_policies_of_one_table_never_count_a_row_twice():
    policy_of_sessions(batch_size=3)
    policy_of_sessions(batch_size=5, retention_days=8)
    sessions(40, ended=AT - 2 * WEEK)
    deleted = in_threads(2, lambda _: run())
    assert sum(deleted) == 40
    assert sum(DataRetentionPolicy.objects.values_list("total_deleted", flat=True)) == 40


def test_a_row_that_somebody_holds_is_left_for_the_next_run():
    policy_of_sessions(batch_size=2)
    held, *_ = sessions(5, ended=AT - 2 * WEEK)
    with transaction.atomic():
        Session.objects.select_for_update().get(pk=held.pk)
        assert in_threads(1, lambda _: run()) == [4]
        # Prolonged meanwhile: it is old no more.
        Session.objects.filter(pk=held.pk).update(expires_at=AT)
    assert run(AT + RUN_EVERY) == 0
    assert Session.objects.get().pk == held.pk
    assert run(AT + WEEK + RUN_EVERY) == 1


def test_a_locked_table_is_told_in_words_and_tried_again():
    policy = policy_of_sessions()
    sessions(3, ended=AT - 2 * WEEK)

    def refused(_: int) -> str:
        with pytest.raises(RetentionError) as caught:
            run()
        return str(caught.value)

    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("LOCK TABLE sessions IN SHARE ROW EXCLUSIVE MODE")
        (words,) = in_threads(1, refused)
    assert "locked for longer than 2 s" in words
    policy.refresh_from_db()
    assert "locked for longer than 2 s" in policy.last_error
    assert run(AT + timedelta(minutes=5)) == 3
    policy.refresh_from_db()
    assert policy.last_error == ""


class Expected:
    """One table's rows as they must be, by a model that knows only times."""

    def __init__(self, policy: DataRetentionPolicy) -> None:
        self.policy, self.times, self.runs, self.next = policy, set(), 0, None

    def tick(self, at: datetime) -> None:
        if self.next is None or at >= self.next:
            oldest = at - timedelta(days=self.policy.retention_days)
            self.times = {time for time in self.times if time >= oldest}
            self.runs, self.next = self.runs + 1, at + RUN_EVERY


def test_weeks_pass_over_two_workers(monkeypatch):
    """Each policy runs once when it is due, each old row goes, each young one stays."""
    claims: list[str] = []
    claim = running._claim

    def counted(policy: DataRetentionPolicy, *, at: datetime) -> bool:
        won = claim(policy, at=at)
        claims.extend([policy.name] * won)
        return won

    monkeypatch.setattr(running, "_claim", counted)
    dice, user = Random(4711), UserFactory()
    logins = Expected(policy_of_sessions(batch_size=7))
    sizes = Expected(
        DataRetentionPolicyFactory(
            table_name="database_size_snapshots", date_column="taken_on", retention_days=10
        )
    )
    at = AT + timedelta(minutes=7)  # never on the stroke of a day, where microseconds decide
    with workers(2) as tick:
        while at < AT + 3 * WEEK:
            at += timedelta(minutes=dice.choice([15, 45, 90, 600]))
            for _ in range(dice.randrange(4)):
                ends = at + timedelta(hours=dice.uniform(-200, 24))
                logins.times.add(SessionFactory(user=user, expires_at=ends).expires_at)
            sizes.times.add(snapshot_of(at))
            tick(at)
            logins.tick(at)
            sizes.tick(at)
            assert set(Session.objects.values_list("expires_at", flat=True)) == logins.times
            days = set(DatabaseSizeSnapshot.objects.values_list("taken_on", flat=True))
            assert days == {time.date() for time in sizes.times}
    assert claims.count(logins.policy.name) == logins.runs > 50
    assert claims.count(sizes.policy.name) == sizes.runs > 50
    assert Session.objects.exists()


def snapshot_of(at: datetime) -> datetime:
    midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
    DatabaseSizeSnapshot.objects.get_or_create(
        taken_on=midnight.date(), table_name="t", defaults={"total_size": 1, "row_estimate": 1}
    )
    return midnight


@contextmanager
def workers(count: int) -> Iterator[Callable[[datetime], list[int]]]:
    """Threads that keep their connections; each call lets all of them run at once."""
    barrier = Barrier(count)

    def one(at: datetime) -> int:
        barrier.wait(timeout=10)  # so that no thread takes the work of two
        return run(at)

    def leave(_: int) -> None:
        barrier.wait(timeout=10)
        connection.close()

    with ThreadPoolExecutor(count) as pool:
        yield lambda at: list(
            pool.map(one, [at + timedelta(microseconds=number) for number in range(count)])
        )
        list(pool.map(leave, range(count)))
