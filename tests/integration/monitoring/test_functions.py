"""The three summary functions, by their promised names and columns."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db import Error, connection, transaction
from django.utils.timezone import now

from gateway.models import BreakerState, CircuitBreaker
from registry.models import HealthStatus, MCPServer, Tenant
from tests.factories import (
    APIKeyFactory,
    EnhancedAPIKeyFactory,
    MCPServerFactory,
    RequestLogFactory,
    TenantFactory,
)
from tests.partitions import one_old_partition

pytestmark = pytest.mark.django_db


def rows(statement: str, *parameters: Any) -> list[dict[str, Any]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        names = [column.name for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def performance(hours: int | None = 24) -> dict[str, Any]:
    (row,) = rows("SELECT * FROM get_request_performance_summary(%s)", hours)
    return row


def usage(tenant: str | None, hours: int = 24) -> dict[str, Any]:
    (row,) = rows("SELECT * FROM get_tenant_usage_summary(%s, %s)", tenant, hours)
    return row


# --------------------------------------------------------------------------- requests


def test_no_requests_are_zeros_and_nulls() -> None:
    assert performance() == {
        "total_requests": 0,
        "successful_requests": 0,
        "failed_requests": 0,
        "error_rate": None,
        "avg_duration_ms": None,
        "p50_duration_ms": None,
        "p95_duration_ms": None,
        "p99_duration_ms": None,
        "max_duration_ms": None,
        "requests_per_minute": 0.0,
    }


def test_requests_are_counted_and_ranked() -> None:
    for milliseconds in range(1, 101):
        RequestLogFactory(duration_ms=milliseconds, status_code=500 if milliseconds > 90 else 200)
    found = performance(hours=1)
    assert (found["total_requests"], found["successful_requests"]) == (100, 90)
    assert (found["failed_requests"], found["error_rate"]) == (10, pytest.approx(0.1))
    assert found["avg_duration_ms"] == pytest.approx(50.5)
    assert found["p50_duration_ms"] == pytest.approx(50.5, rel=0.02)
    assert found["p95_duration_ms"] == pytest.approx(95.05, rel=0.02)
    assert found["p99_duration_ms"] == pytest.approx(99.01, rel=0.02)
    assert found["max_duration_ms"] == 100
    assert found["requests_per_minute"] == pytest.approx(100 / 60)


def test_status_400_is_a_failure_and_399_is_none() -> None:
    RequestLogFactory(status_code=399)
    RequestLogFactory(status_code=400)
    assert performance()["failed_requests"] == 1


def test_window_is_bounded_at_both_ends() -> None:
    RequestLogFactory(request_time=now() - timedelta(hours=1, seconds=1))
    RequestLogFactory(request_time=now() - timedelta(minutes=59))
    RequestLogFactory(request_time=now() + timedelta(minutes=5))
    assert performance(hours=1)["total_requests"] == 1
    assert performance(hours=2)["total_requests"] == 2


def test_default_is_a_day() -> None:
    RequestLogFactory(request_time=now() - timedelta(hours=23))
    RequestLogFactory(request_time=now() - timedelta(hours=25))
    (found,) = rows("SELECT total_requests FROM get_request_performance_summary()")
    assert found["total_requests"] == 1


def test_more_hours_than_time_has_are_all_of_it() -> None:
    one_old_partition(days=3650)
    RequestLogFactory(request_time=now() - timedelta(days=3650))
    assert performance(hours=2_147_483_647)["total_requests"] == 1


@pytest.mark.parametrize("hours", [0, -1, None])
@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
def test_hours_below_one_are_refused(hours: int | None, mode: str) -> None:
    """Whatever the plan: over an empty table a condition never runs."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('plan_cache_mode', %s, true)", [mode])
        cursor.execute(
            "PREPARE summary (integer) AS SELECT * FROM get_request_performance_summary($1)"
        )
        try:
            with pytest.raises(Error, match="hours must be 1 or more"), transaction.atomic():
                cursor.execute(f"EXECUTE summary ({'NULL' if hours is None else hours})")
        finally:
            cursor.execute("DEALLOCATE summary")


def test_function_is_inlined_and_reads_rollups() -> None:
    with connection.cursor() as cursor:
        cursor.execute("EXPLAIN SELECT * FROM get_request_performance_summary(2)")
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert "request_rollups" in plan
    # The log itself is read by one function for the window's edges, and by nothing else.
    assert "request_logs" not in plan
    assert set(re.findall(r"Function Scan on (request_\w+)", plan)) == {"request_log_part"}


# --------------------------------------------------------------------------- tenants


def _log(tenant: Tenant, **fields: Any) -> None:
    RequestLogFactory(tenant_id=tenant.id, **fields)


def test_usage_is_the_tenants_own() -> None:
    tenant, other = TenantFactory(slug="acme"), TenantFactory()
    person, server, second = uuid4(), uuid4(), uuid4()
    of_person = {"user_id": person, "target_server_id": server, "tool_name": "search"}
    _log(tenant, **of_person, response_size_bytes=100, duration_ms=10)
    _log(tenant, **of_person, response_size_bytes=50, duration_ms=20)
    # The same tool name on another server is another tool; no name is no tool.
    _log(tenant, target_server_id=second, tool_name="search", status_code=502, duration_ms=30)
    _log(tenant, target_server_id=second, tool_name="", duration_ms=40)
    _log(other, response_size_bytes=999)
    found = usage("acme")
    assert found == {
        "tenant_id": tenant.id,
        "total_requests": 4,
        "successful_requests": 3,
        "failed_requests": 1,
        "error_rate": 0.25,
        "avg_duration_ms": 25.0,
        "p95_duration_ms": pytest.approx(38.5, rel=0.02),
        "unique_users": 1,
        "servers_used": 2,
        "tools_used": 2,
        "bytes_out": 150,
        "active_api_keys": 0,
        "registered_servers": 0,
    }


def test_keys_and_servers_as_they_are_now() -> None:
    tenant = TenantFactory()
    EnhancedAPIKeyFactory(tenant=tenant)
    EnhancedAPIKeyFactory(tenant=tenant, is_active=False)
    EnhancedAPIKeyFactory(tenant=tenant, expires_at=now() - timedelta(days=1))
    EnhancedAPIKeyFactory(tenant=tenant, expires_at=now() + timedelta(days=1))
    EnhancedAPIKeyFactory()
    APIKeyFactory(tenant=tenant)
    MCPServerFactory.create_batch(2, tenant=tenant)
    MCPServerFactory(tenant=None)
    found = usage(tenant.slug)
    assert (found["active_api_keys"], found["registered_servers"]) == (3, 2)
    assert (found["total_requests"], found["bytes_out"]) == (0, 0)
    assert found["error_rate"] is None


def test_tenant_by_id_in_every_spelling() -> None:
    tenant = TenantFactory()
    for spelling in (str(tenant.id), str(tenant.id).upper(), tenant.id.hex, tenant.slug):
        assert usage(spelling)["tenant_id"] == tenant.id


def test_slug_that_looks_like_an_id_is_found() -> None:
    tenant = TenantFactory(slug=str(uuid4()))
    assert usage(tenant.slug)["tenant_id"] == tenant.id


@pytest.mark.parametrize("tenant", ["nobody", "", "12345678-1234-1234-1234-123456789012", None])
def test_unknown_tenant_is_an_error(tenant: str | None) -> None:
    with pytest.raises(Error, match="is neither the id nor the slug of a tenant"):
        usage(tenant)


def test_usage_refuses_hours_below_one() -> None:
    with pytest.raises(Error, match="hours must be 1 or more"):
        usage(TenantFactory().slug, hours=0)


# --------------------------------------------------------------------------- health


def _health() -> list[dict[str, Any]]:
    return rows("SELECT * FROM get_server_health_summary()")


def test_without_servers_there_is_the_row_all() -> None:
    assert _health() == [
        {
            "health_status": "all",
            "servers": 0,
            "avg_response_time": None,
            "success_rate": None,
            "stale_checks": 0,
            "open_breakers": 0,
            "last_health_check": None,
        }
    ]


def test_servers_by_health() -> None:
    at = now()
    healthy = {"health_status": HealthStatus.HEALTHY}
    MCPServerFactory(**healthy, avg_response_time=10, success_rate=1, last_health_check=at)
    slow = MCPServerFactory(
        **healthy,
        avg_response_time=30,
        success_rate=0.5,
        last_health_check=at - timedelta(minutes=6),
    )
    MCPServerFactory(health_status=HealthStatus.UNKNOWN)
    # A second open breaker of one server must not count the server twice.
    CircuitBreaker.objects.create(server=slow, service_name="tools", state=BreakerState.OPEN)
    CircuitBreaker.objects.filter(server=slow).update(state=BreakerState.OPEN)
    found = {row.pop("health_status"): row for row in _health()}
    assert list(found) == ["healthy", "unknown", "all"]
    assert found["healthy"] == {
        "servers": 2,
        "avg_response_time": 20.0,
        "success_rate": 0.75,
        "stale_checks": 1,
        "open_breakers": 2,
        "last_health_check": at,
    }
    assert found["all"]["servers"] == MCPServer.objects.count() == 3
    assert found["all"]["stale_checks"] == 2, "never checked is stale"
    assert found["all"]["open_breakers"] == 2
