"""The breaker's transitions when many processes make them at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from typing import Any

import pytest
from django.db import connection, transaction
from django.utils.timezone import now

from gateway.models import CircuitBreaker
from gateway.services import (
    breaker_claim_probe,
    breaker_record_failure,
    breaker_record_success,
    breaker_release_probe,
    breakers_recover,
)
from registry.models import MCPServer
from tests.factories import MCPServerFactory

CALLERS = 8
LEASE = timedelta(seconds=30)
pytestmark = pytest.mark.django_db(transaction=True)


def breaker(**fields: Any) -> CircuitBreaker:
    found = CircuitBreaker.objects.get(server=MCPServerFactory(), service_name="")
    fields.setdefault("last_state_change", now() - timedelta(days=1))
    CircuitBreaker.objects.filter(id=found.id).update(**fields)
    found.refresh_from_db()
    return found


def at_once(work: Callable[[int], Any]) -> list[Any]:
    barrier = Barrier(CALLERS)

    def run(number: int) -> Any:
        try:
            barrier.wait(timeout=5)
            return work(number)
        finally:
            connection.close()  # each thread owns a connection

    with ThreadPoolExecutor(CALLERS) as pool:
        return list(pool.map(run, range(CALLERS)))


def test_only_one_caller_claims_the_probe_of_an_open_breaker():
    due = breaker(state="open", last_state_change=now() - timedelta(minutes=2))
    at = now()
    won = at_once(lambda _: breaker_claim_probe(breaker_id=due.id, at=at, lease=LEASE))
    assert sorted(won) == [False] * (CALLERS - 1) + [True]
    due.refresh_from_db()
    assert (due.state, due.probe_until) == ("half_open", at + LEASE)


def test_only_one_caller_claims_the_next_probe_of_a_half_open_breaker():
    half_open = breaker(state="half_open", success_count=1)
    won = at_once(lambda _: breaker_claim_probe(breaker_id=half_open.id, at=now(), lease=LEASE))
    assert sum(won) == 1
    half_open.refresh_from_db()
    assert half_open.success_count == 1


def test_a_breaker_opens_at_its_threshold_however_the_failures_fall():
    closed = breaker(failure_threshold=CALLERS)
    at = now()
    at_once(
        lambda _: breaker_record_failure(
            breaker_id=closed.id, at=at, probe_until=None, healthy_calls=1
        )
    )
    closed.refresh_from_db()
    assert (closed.state, closed.last_state_change) == ("open", at)
    assert (closed.failure_count, closed.total_failures, closed.total_requests) == (CALLERS,) * 3


def test_no_probe_before_the_time_out_and_none_while_one_is_on_its_way():
    at = now()
    opened = breaker(state="open", last_state_change=at, timeout_ms=60_000)
    early = at + timedelta(seconds=59)
    assert not breaker_claim_probe(breaker_id=opened.id, at=early, lease=LEASE)
    due = at + timedelta(seconds=60)
    assert breaker_claim_probe(breaker_id=opened.id, at=due, lease=LEASE)
    assert not breaker_claim_probe(breaker_id=opened.id, at=due + LEASE / 2, lease=LEASE)
    # Its caller died: after the lease another may try.
    assert breaker_claim_probe(breaker_id=opened.id, at=due + LEASE, lease=LEASE)


def test_enough_successes_close_and_one_failure_opens_again():
    at = now()
    half_open = breaker(state="half_open", success_threshold=2)

    def probe(when: Any) -> Any:
        assert breaker_claim_probe(breaker_id=half_open.id, at=when, lease=LEASE)
        return when + LEASE

    breaker_record_failure(breaker_id=half_open.id, at=at, probe_until=probe(at), healthy_calls=1)
    half_open.refresh_from_db()
    assert (half_open.state, half_open.last_state_change) == ("open", at)

    later = at + timedelta(minutes=2)
    for expected in ("half_open", "closed"):
        breaker_record_success(
            breaker_id=half_open.id, at=later, probe_until=probe(later), healthy_calls=1
        )
        half_open.refresh_from_db()
        assert half_open.state == expected
    assert (half_open.failure_count, half_open.success_count) == (0, 0)


def test_the_outcome_of_a_probe_that_was_given_up_changes_nothing():
    at = now()
    half_open = breaker(state="half_open")
    assert breaker_claim_probe(breaker_id=half_open.id, at=at, lease=LEASE)
    breaker_release_probe(breaker_id=half_open.id, probe_until=at + LEASE, at=at)
    assert breaker_claim_probe(breaker_id=half_open.id, at=at, lease=2 * LEASE)
    breaker_record_success(breaker_id=half_open.id, at=at, probe_until=at + LEASE, healthy_calls=1)
    half_open.refresh_from_db()
    assert (half_open.state, half_open.success_count) == ("half_open", 0)


def test_a_health_check_does_not_undo_what_a_call_did_meanwhile():
    """The call's claim is not committed yet when the health checks look for untried breakers."""
    at = now()
    due = breaker(state="open", last_state_change=at - timedelta(hours=1))
    MCPServer.objects.update(health_status="healthy", last_health_check=at)
    with ThreadPoolExecutor(1) as pool:

        def recover() -> int:
            try:
                return breakers_recover(at=at)
            finally:
                connection.close()

        with transaction.atomic():
            assert breaker_claim_probe(breaker_id=due.id, at=at, lease=LEASE)
            recovering = pool.submit(recover)
            wait_for_a_waiting_session()
        assert recovering.result(timeout=5) == 0
    due.refresh_from_db()
    assert (due.state, due.probe_until) == ("half_open", at + LEASE)


def wait_for_a_waiting_session() -> None:
    until = time.monotonic() + 5
    while time.monotonic() < until:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
            if cursor.fetchone()[0]:
                return
        time.sleep(0.01)
    raise AssertionError("nobody waits")


def test_an_operator_opens_and_closes_with_one_update_of_the_state():
    switched = breaker(failure_count=3)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE circuit_breakers SET state = 'open' WHERE id = %s", [switched.id])
    switched.refresh_from_db()
    assert now() - switched.last_state_change < timedelta(minutes=1)
    assert switched.failure_count == 0
    assert not breaker_claim_probe(breaker_id=switched.id, at=now(), lease=LEASE)
