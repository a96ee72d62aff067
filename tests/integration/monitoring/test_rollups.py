"""The rollups against the log itself: the same counts at every moment, percentiles within 2 %."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import zip_longest
from typing import Any
from uuid import UUID

import pytest
from django.core.management import call_command
from django.db import connection, transaction
from django.utils.timezone import now
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitoring.models import (
    RequestLog,
    RequestRollup,
    RequestRollupDelta,
    RequestToolDay,
    RequestUsage,
    RequestUser,
    RollupHorizon,
)
from monitoring.queries import ALL_TENANTS, top_tools
from monitoring.rollups import rollups_compact, rollups_prune, rollups_rebuild
from tests.factories import RequestLogFactory, TenantFactory
from tests.partitions import one_old_partition

pytestmark = pytest.mark.django_db

# Whole days that are over.
BASE = now().astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=3)
A, B = UUID(int=0xA), UUID(int=0xB)
MICROSECOND = timedelta(microseconds=1)
MANY = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(autouse=True)
def room_for_old_rows(db: None) -> None:
    one_old_partition(days=1000)


def rows(statement: str, *parameters: Any) -> list[dict[str, Any]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        names = [column.name for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


@contextmanager
def undone() -> Iterator[None]:
    """What one example writes is gone before the next one."""
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


def log(**fields: Any) -> RequestLog:
    known = {"method": "POST", "path": "/mcp/x", "status_code": 200, "duration_ms": 1.0}
    return RequestLog(**(known | fields))


# --------------------------------------------------------------------------- any window

# Where bugs live: at the borders of five minutes, hours and days, and a microsecond beside them.
borders = st.builds(
    lambda minutes, beside: BASE + timedelta(minutes=minutes) + beside * MICROSECOND,
    st.sampled_from([0, 5, 10, 55, 60, 65, 120, 1435, 1440, 1445, 1500, 2880]),
    st.integers(-1, 1),
)
anywhere = st.integers(0, 2880 * 60_000_000).map(lambda us: BASE + us * MICROSECOND)
times = borders | anywhere
calls = st.builds(
    log,
    request_time=times,
    tenant_id=st.sampled_from([None, A, B]),
    duration_ms=st.floats(0.01, 1e7) | st.sampled_from([1.0, 30_000.0]),
    status_code=st.sampled_from([200, 399, 400, 502]),
    request_size_bytes=st.integers(0, 10**9),
    response_size_bytes=st.integers(0, 10**12),
)
batches = st.lists(calls, min_size=1, max_size=12)
# A batch is written in one statement; a number is a compaction of that many deltas.
deeds = st.lists(batches | st.integers(1, 4), min_size=1, max_size=8)
windows = st.tuples(times, times).map(sorted).filter(lambda pair: pair[0] < pair[1])

FIGURES = """
SELECT f.*, r.*
  FROM request_figures(%s, %s, %s) AS f,
       (SELECT count(*) AS n, count(*) FILTER (WHERE status_code >= 400) AS failed,
               coalesce(sum(duration_ms), 0) AS ms, max(duration_ms) AS longest,
               coalesce(sum(request_size_bytes), 0)::bigint AS received,
               coalesce(sum(response_size_bytes), 0)::bigint AS sent,
               percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY duration_ms)
                   AS percentiles
          FROM request_logs
         WHERE (tenant_id = %s OR %s) AND request_time >= %s AND request_time < %s) AS r
"""


def assert_same(tenant: UUID, since: datetime, until: datetime) -> None:
    of_all = tenant == ALL_TENANTS
    (found,) = rows(FIGURES, tenant, since, until, tenant, of_all, since, until)
    assert (found["requests"], found["errors"]) == (found["n"], found["failed"])
    assert (found["bytes_in"], found["bytes_out"]) == (found["received"], found["sent"])
    assert found["sum_ms"] == pytest.approx(found["ms"], rel=1e-12)
    assert found["max_ms"] == found["longest"]
    estimated = [found["p50_ms"], found["p95_ms"], found["p99_ms"]]
    if found["n"]:
        # However few the calls and wide the gaps: each neighbour of a percentile is estimated
        # within 1 %, so what lies between them is as well.
        assert estimated == pytest.approx(found["percentiles"], rel=0.01)
    else:
        assert estimated == [None] * 3


@given(deeds=deeds, window=windows)
@MANY
def test_any_window_is_the_logs_at_every_moment(deeds: list[Any], window: list[datetime]) -> None:
    with undone():
        for deed in deeds:
            if isinstance(deed, int):
                rows("SELECT request_rollups_compact(%s)", deed)
            else:
                RequestLog.objects.bulk_create(log(**_fields(call)) for call in deed)
            for tenant in (ALL_TENANTS, A):
                assert_same(tenant, *window)
        rollups_compact()
        assert not RequestRollupDelta.objects.exists()
        for tenant in (ALL_TENANTS, A, B):
            assert_same(tenant, *window)
            assert_same(tenant, BASE - timedelta(days=1), BASE + timedelta(days=4))


def _fields(call: RequestLog) -> dict[str, Any]:
    """Hypothesis may repeat an object; its id must not be."""
    names = ("request_time", "tenant_id", "duration_ms", "status_code")
    sizes = ("request_size_bytes", "response_size_bytes")
    return {name: getattr(call, name) for name in (*names, *sizes)}


@given(durations=st.lists(st.floats(0.01, 1e8), min_size=1, max_size=300))
@MANY
def test_percentiles_are_within_two_percent(durations: list[float]) -> None:
    with undone():
        RequestLog.objects.bulk_create(
            log(request_time=BASE + timedelta(minutes=number), duration_ms=duration)
            for number, duration in enumerate(durations)
        )
        assert_same(ALL_TENANTS, BASE, BASE + timedelta(days=1))


@pytest.mark.parametrize("odd", ["NaN", "Infinity", "-Infinity", "-5", "0"])
def test_a_duration_that_is_none_spoils_nothing(odd: str) -> None:
    RequestLogFactory(request_time=BASE, duration_ms=40.0)
    RequestLogFactory(request_time=BASE, duration_ms=float(odd))
    for compacted in (False, True):
        if compacted:
            rollups_compact()
        (found,) = rows(
            "SELECT * FROM request_figures(%s, %s, %s)", ALL_TENANTS, BASE, BASE + timedelta(days=1)
        )
        assert found["requests"] == 2
        assert found["sum_ms"] == 40 + (float(odd) if odd == "-5" else 0)
        assert found["max_ms"] == 40
        assert all(math.isfinite(found[name]) for name in ("p50_ms", "p95_ms", "p99_ms"))


@given(bin_=st.integers(1, 1279), within=st.floats(0.001, 0.999))
@MANY
def test_a_bin_stands_for_what_it_holds(bin_: int, within: float) -> None:
    duration = 0.01 * 1.02 ** (bin_ - 1 + within)
    (found,) = rows(
        "SELECT request_duration_bin(%s) AS bin, request_bin_ms(%s) AS ms", duration, bin_
    )
    assert found["bin"] == bin_
    assert found["ms"] == pytest.approx(duration, rel=0.01)


# --------------------------------------------------------------------------- what tenants use

USAGE = """
SELECT u.*, r.*
  FROM get_tenant_usage_summary(%s, %s) AS u,
       (SELECT count(*) AS n, count(DISTINCT user_id) AS users,
               count(DISTINCT target_server_id) AS servers,
               count(DISTINCT (target_server_id, tool_name)) FILTER (WHERE tool_name <> '')
                   AS tools
          FROM request_logs
         WHERE tenant_id = %s
           AND request_time >= statement_timestamp() - make_interval(hours => %s)
           AND request_time < statement_timestamp()) AS r
"""
uses = st.fixed_dictionaries(
    {
        "back": st.floats(-0.5, 5.5),  # hours
        "user_id": st.sampled_from([None, A, B]),
        "target_server_id": st.sampled_from([None, A, B]),
        "tool_name": st.sampled_from(["", "search", "fetch"]),
    }
)


@given(made=st.lists(uses, max_size=12), compacted=st.integers(0, 12), hours=st.integers(1, 5))
@MANY
def test_users_servers_and_tools_are_counted_exactly(
    made: list[dict[str, Any]], compacted: int, hours: int
) -> None:
    with undone():
        tenant = TenantFactory()
        for number, use in enumerate(made):
            at = now() - timedelta(hours=use["back"])
            kept = {name: value for name, value in use.items() if name != "back"}
            log(tenant_id=tenant.id, request_time=at, **kept).save(force_insert=True)
            if number == compacted:
                rollups_compact()
        (found,) = rows(USAGE, tenant.slug, hours, tenant.id, hours)
        assert found["total_requests"] == found["n"]
        assert found["unique_users"] == found["users"]
        assert (found["servers_used"], found["tools_used"]) == (found["servers"], found["tools"])


def test_usage_adds_up_by_server_and_tool() -> None:
    same = {"tenant_id": A, "target_server_id": B, "tool_name": "search", "request_time": BASE}
    RequestLogFactory(**same, duration_ms=10, status_code=200, response_size_bytes=7)
    rollups_compact()
    RequestLogFactory(**same, duration_ms=30, status_code=500, response_size_bytes=5)
    RequestLogFactory(request_time=BASE)
    rollups_compact()
    found = RequestUsage.objects.get(tenant_id=A)
    assert (found.server_id, found.tool_name, found.bucket) == (B, "search", BASE)
    assert (found.requests, found.errors, found.sum_ms, found.max_ms) == (2, 1, 40, 30)
    assert found.bytes_out == 12
    assert RequestUsage.objects.get(tenant_id=ALL_TENANTS).server_id == ALL_TENANTS


RANKED = """
SELECT coalesce(target_server_id, %s) AS server_id, tool_name, count(*) AS requests,
       count(*) FILTER (WHERE status_code >= 400) AS errors, avg(duration_ms) AS avg_duration_ms
  FROM request_logs WHERE request_time >= %s AND tool_name <> '' GROUP BY 1, 2
"""
tool_calls = st.fixed_dictionaries(
    {
        "request_time": times,
        "tenant_id": st.sampled_from([None, A, B]),
        "target_server_id": st.sampled_from([None, A, B]),
        "tool_name": st.sampled_from(["", "search", "fetch"]),
        "status_code": st.sampled_from([200, 500]),
    }
)


@given(
    made=st.lists(tool_calls, max_size=12),
    steps=st.lists(st.integers(1, 4), max_size=12),
    hours=st.integers(0, 50),
)
@MANY
def test_tools_are_ranked_by_what_the_log_says_at_every_moment(
    made: list[dict[str, Any]], steps: list[int], hours: int
) -> None:
    """From any hour on, however much of it is moved to hours and days."""
    since = BASE + timedelta(hours=hours)
    with undone():
        for number, slug in ((A, "a"), (B, "b")):
            TenantFactory(id=number, slug=slug)
        for call, most in zip_longest(made, steps[: len(made)]):
            log(**call).save(force_insert=True)
            if most:
                rows("SELECT request_rollups_compact(%s)", most)
            found = {
                (row["server_id"], row["tool_name"]): row
                for row in top_tools(since=since, limit=100)
            }
            told = rows(RANKED, ALL_TENANTS, since)
            assert len(found) == len(told)
            for row in told:
                one = found[row["server_id"], row["tool_name"]]
                assert (one["requests"], one["errors"]) == (row["requests"], row["errors"])
                assert one["avg_duration_ms"] == pytest.approx(row["avg_duration_ms"])


def test_a_session_of_one_tenant_gets_its_own_figures() -> None:
    RequestLogFactory(tenant_id=A)
    RequestLogFactory(tenant_id=B)
    summary = "SELECT total_requests FROM get_request_performance_summary(1)"
    assert rows(summary) == [{"total_requests": 2}]
    rows("SELECT set_config('gateway.tenant_id', %s, true)", str(A))
    assert rows(summary) == [{"total_requests": 1}]
    rows("SELECT set_config('gateway.tenant_id', '', true)")
    assert rows(summary) == [{"total_requests": 2}]


# --------------------------------------------------------------------------- upkeep


def test_compaction_takes_at_most_what_it_is_given() -> None:
    for minutes in range(0, 50, 5):
        RequestLogFactory(request_time=BASE + timedelta(minutes=minutes))
    assert RequestRollupDelta.objects.count() == 10
    rows("SELECT request_rollups_compact(4)")
    assert RequestRollupDelta.objects.count() == 6
    assert rollups_compact() > 0
    assert rollups_compact() == 0
    assert not RequestRollupDelta.objects.exists()


def test_old_spans_are_pruned_and_readers_take_the_longer_ones(settings: Any) -> None:
    settings.GATEWAY_ROLLUP_FINE_DAYS, settings.GATEWAY_ROLLUP_HOURLY_DAYS = 1, 2
    for hour in range(72):
        at = BASE + timedelta(hours=hour)
        RequestLogFactory(tenant_id=A, user_id=B, tool_name="search", request_time=at)
    rollups_compact()
    at = BASE + timedelta(days=3)
    assert rollups_prune(at=at) > 0
    assert rollups_prune(at=at) == 0
    kept = dict(RollupHorizon.objects.values_list("minutes", "kept_since"))
    assert kept == {5: BASE + timedelta(days=2), 60: BASE + timedelta(days=1)}
    of_tenant = RequestRollup.objects.filter(tenant_id=A)
    assert of_tenant.filter(minutes=5).order_by("bucket")[0].bucket == kept[5]
    assert of_tenant.filter(minutes=60).order_by("bucket")[0].bucket == kept[60]
    assert of_tenant.filter(minutes=1440).count() == 3
    assert RequestUsage.objects.count() == RequestUser.objects.count() == 48
    tomorrow = (BASE + timedelta(days=1)).date()
    assert RequestToolDay.objects.order_by("day").values_list("day", flat=True)[0] == tomorrow

    def requests(since: datetime) -> int:
        (found,) = rows("SELECT requests FROM request_figures(%s, %s, %s)", A, since, at)
        return int(found["requests"])

    late = timedelta(minutes=30)
    assert requests(BASE + timedelta(hours=50) + late) == 21, "exact as far as five minutes reach"
    assert requests(BASE + timedelta(hours=30) + late) == 42, "then from the full hour"
    assert requests(BASE + timedelta(hours=6) + late) == 72, "and from the full day"


def test_rows_that_were_deleted_are_forgotten_by_a_rebuild() -> None:
    tomorrow = BASE + timedelta(days=1)
    for at in (BASE, BASE, tomorrow):
        RequestLogFactory(request_time=at, user_id=B, tenant_id=A, tool_name="search")
    rollups_compact()
    RequestLog.objects.filter(request_time__lt=tomorrow).delete()
    RequestLogFactory(request_time=BASE, tenant_id=A)
    assert rollups_rebuild(first=BASE.date(), last=BASE.date()) == 1
    for compacted in (False, True):
        if compacted:
            rollups_compact()
        assert_same(A, BASE, BASE + timedelta(days=2))
        assert_same(ALL_TENANTS, BASE, BASE + timedelta(days=2))
    assert RequestUser.objects.count() == 1
    assert RequestToolDay.objects.get().day == tomorrow.date()


@pytest.mark.django_db(transaction=True)
def test_days_of_tools_are_made_of_the_hours_that_there_are() -> None:
    try:
        call_command("migrate", "monitoring", "0018", verbosity=0)
        for hours in (0, 1, 30):
            at = BASE + timedelta(hours=hours)
            RequestLogFactory(request_time=at, tenant_id=A, tool_name="search")
        rows("SELECT request_rollups_compact(%s)", 2)
    finally:
        call_command("migrate", verbosity=0)
    assert RequestToolDay.objects.values_list("day", "requests").get() == (BASE.date(), 2)
    rollups_compact()
    assert RequestToolDay.objects.count() == 2


@pytest.mark.django_db(transaction=True)
def test_rows_that_were_there_before_the_rollups_are_counted() -> None:
    try:
        call_command("migrate", "monitoring", "0003", verbosity=0)
        for minutes in (0, 3, 70, 3000):
            RequestLogFactory(request_time=BASE + timedelta(minutes=minutes), tenant_id=A)
    finally:
        call_command("migrate", verbosity=0)
    assert RequestRollup.objects.filter(tenant_id=A, minutes=1440).count() == 2
    assert not RequestRollupDelta.objects.exists()
    assert_same(A, BASE, BASE + timedelta(days=4))
