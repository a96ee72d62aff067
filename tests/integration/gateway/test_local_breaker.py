"""The breaker in memory and the one in the table: the same rules, whatever happens."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import transaction
from django.utils.timezone import now
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway import services
from gateway.models import CircuitBreaker
from gateway.proxy.local_breaker import LocalBreaker
from tests.factories import MCPServerFactory

LEASE = timedelta(seconds=30)
TIMEOUT = timedelta(seconds=60)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["claim", "success", "failure", "release"]),
        st.booleans(),  # with the probe that is on its way, or as an ordinary call
        st.sampled_from([0, 20, 40, 70]),  # seconds since the step before
    ),
    max_size=25,
)


class Twins:
    """A row and its stand-in, told the same."""

    def __init__(self, row: CircuitBreaker) -> None:
        self.row = row
        self.probe: datetime | None = None
        self.local = LocalBreaker(
            breaker_id=row.id,
            server_id=row.server_id,
            state=row.state,
            failure_count=row.failure_count,
            success_count=row.success_count,
            failure_threshold=row.failure_threshold,
            success_threshold=row.success_threshold,
            timeout=TIMEOUT,
            last_state_change=row.last_state_change,
            probe_until=row.probe_until,
        )

    def claim(self, at: datetime, _probe: datetime | None) -> None:
        won = services.breaker_claim_probe(breaker_id=self.row.id, at=at, lease=LEASE)
        assert self.local.claim_probe(at=at, lease=LEASE) == won
        if won:
            self.probe = at + LEASE

    def success(self, at: datetime, probe: datetime | None) -> None:
        services.breaker_record_success(
            breaker_id=self.row.id, at=at, probe_until=probe, healthy_calls=1
        )
        self.local.record_success(at=at, probe_until=probe)

    def failure(self, at: datetime, probe: datetime | None) -> None:
        services.breaker_record_failure(
            breaker_id=self.row.id, at=at, probe_until=probe, healthy_calls=1
        )
        self.local.record_failure(at=at, probe_until=probe, timed_out=False)

    def release(self, at: datetime, probe: datetime | None) -> None:
        if probe is not None:
            services.breaker_release_probe(breaker_id=self.row.id, probe_until=probe, at=at)
            self.local.release_probe(probe_until=probe)

    def compare(self) -> None:
        self.row.refresh_from_db()
        for name in ("state", "success_count", "last_state_change", "probe_until"):
            assert getattr(self.local, name) == getattr(self.row, name), name
        if self.row.state != "half_open":  # there nothing reads the count
            assert self.local.failure_count == self.row.failure_count
        assert self.local.failures == self.row.total_failures


@pytest.mark.django_db
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=STEPS)
def test_memory_and_table_agree(steps: list[tuple[str, bool, int]]) -> None:
    with transaction.atomic():
        row = CircuitBreaker.objects.get(server=MCPServerFactory())
        row.failure_threshold, row.success_threshold = 2, 2
        row.timeout_ms = TIMEOUT // timedelta(milliseconds=1)
        row.save()
        twins, at = Twins(row), row.last_state_change
        for step, with_probe, seconds in steps:
            # Never the time of the last change: the row's trigger takes that for a change by hand.
            at += timedelta(seconds=seconds, microseconds=1)
            getattr(twins, step)(at, twins.probe if with_probe else None)
            twins.compare()
        transaction.set_rollback(True)


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("before", "opened", "after"),
    [
        ("closed", True, ("open", 3)),
        ("closed", False, ("closed", 3)),
        ("half_open", True, ("half_open", 0)),  # somebody who could write knows better
        ("open", True, ("open", 0)),
    ],
)
def test_the_row_is_told_of_an_outage(before: str, opened: bool, after: tuple[str, int]) -> None:
    breakers = CircuitBreaker.objects.filter(server=MCPServerFactory())
    breakers.update(state=before, total_failures=10)
    at = now()
    told: dict[str, Any] = {"failures": 3, "timeouts": 1, "last_failure_time": at}
    services.breaker_record_outage(
        breaker_id=breakers.get().id,
        at=at,
        failure_count=3,
        opened_at=at - TIMEOUT if opened else None,
        **told,
    )
    row = breakers.get()
    assert (row.state, row.failure_count) == after
    assert (row.total_failures, row.total_timeouts, row.last_failure_time) == (13, 1, at)
    assert (row.last_state_change == at - TIMEOUT) == (before == "closed" and opened)
