"""Totals of all calls: exact at every moment, and never less than before."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime, timedelta

import pytest
from django.db.models import F
from django.utils.timezone import now

from monitoring.models import RequestLog, RequestRollup
from monitoring.queries import ALL_TENANTS
from monitoring.rollups import rollups_compact, rollups_prune
from monitoring.totals import BUCKETS, AllCalls, Totals
from registry.db.pool import async_pool

pytestmark = pytest.mark.django_db(transaction=True)

TODAY = now().astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
DURATIONS = [0.5, 3.0, 4.0, 12.5, 80.0, 80.0, 900.0, 70_000.0]  # milliseconds
OLD_BIN = 466  # 99.9 ms


def read(calls: AllCalls, *, at: datetime | None = None) -> Totals:
    async def ask() -> Totals:
        async with async_pool(max_size=1, timeout=5) as pool, pool.connection() as own:
            return await calls.read(own, at=at or now())

    return asyncio.run(ask())


def log(durations: list[float]) -> None:
    RequestLog.objects.bulk_create(
        RequestLog(
            method="POST", path="/mcp/x", status_code=200 if ms < 500 else 502, duration_ms=ms
        )
        for ms in durations
    )


def day(days_ago: int, *, requests: int, errors: int = 0) -> None:
    RequestRollup.objects.create(
        tenant_id=ALL_TENANTS,
        minutes=1440,
        bucket=TODAY - timedelta(days=days_ago),
        requests=requests,
        errors=errors,
        sum_ms=requests * 99.9,
        max_ms=99.9,
        bytes_in=0,
        bytes_out=0,
        bins=[OLD_BIN],
        counts=[requests],
    )


def test_every_call_is_counted_once_wherever_it_stands():
    calls = AllCalls()
    assert read(calls) == Totals()
    log(DURATIONS)
    day(400, requests=1000, errors=10)
    day(3, requests=500)
    before = read(calls)
    assert (before.requests, before.errors) == (1508, 12)
    assert before.seconds == pytest.approx((sum(DURATIONS) + 1500 * 99.9) / 1000, rel=0.01)
    assert rollups_compact() > 0
    assert read(calls) == before
    assert read(calls).seconds == before.seconds  # to the last bit: less would be a new beginning
    rollups_prune(at=now() + timedelta(days=1000))
    assert read(calls) == before
    assert read(AllCalls()) == before  # another process says the same


def test_calls_that_come_late_are_added_to_days_that_were_added_up():
    calls = AllCalls()
    day(30, requests=7)
    assert read(calls).requests == 7
    late = RequestRollup.objects.filter(bucket=TODAY - timedelta(days=30))
    late.update(requests=F("requests") + 3, counts=[10])
    assert read(calls).requests == 10
    assert read(calls, at=now() + timedelta(days=10)).requests == 10  # more days are over


def test_buckets_hold_what_is_up_to_their_bounds():
    log(DURATIONS)
    for bound, count in read(AllCalls()).up_to():
        assert count == sum(ms <= bound * 1000 for ms in DURATIONS)
    assert [bound for bound, _ in Totals().up_to()] == [*BUCKETS, math.inf]
    # A bin that a bound cuts counts for the next bucket: never more than there are.
    totals = Totals(0, type(Totals().calls)(dict.fromkeys(range(1281), 1)))
    counts = dict(totals.up_to())
    for bound in BUCKETS:
        assert 0.01 * 1.02 ** (counts[bound] - 1) <= bound * 1000 < 0.01 * 1.02 ** counts[bound]
