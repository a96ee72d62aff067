"""Development data: real-looking, never doubled, removable without a trace."""

import re
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.utils.timezone import now

from gateway.models import CircuitBreaker
from gateway.seed import foreign_rows, seed, seed_remove
from monitoring.models import AuditLog, RequestLog
from monitoring.queries import performance_metrics
from registry import tasks
from registry.models import MCPServer, ServerMetric, ServerTool
from security.models import EnhancedAPIKey, User
from tests.factories import MCPServerFactory, RequestLogFactory, TenantFactory

pytestmark = pytest.mark.django_db


@pytest.fixture
def tenant():
    return TenantFactory(slug="default")


def make(**changes):
    return seed(**({"servers": 8, "requests": 3000, "days": 3, "at": now()} | changes))


def test_the_history_is_skewed_rhythmic_and_in_its_time(tenant):
    moment = now()
    done = make(at=moment)
    assert (done.servers, done.requests) == (9, 3000)
    calls = RequestLog.objects.all()
    assert calls.count() == 3000
    times = calls.order_by("request_time").values_list("request_time", flat=True)
    assert moment - timedelta(days=3) <= times[0]
    assert times[2999] <= moment
    busiest = calls.filter(target_server_id=MCPServer.objects.get(slug="code-search").pk).count()
    assert 0.25 < busiest / 3000 < 0.5  # a Zipf share of eight ranks: 0.37
    failed = calls.filter(status_code__gte=400).count()
    assert 0.005 < failed / 3000 < 0.2
    newest = calls.order_by("-request_time").first()
    assert newest.id.int >> 80 == int(newest.request_time.timestamp() * 1000)
    assert set(calls.values_list("tenant_id", flat=True)) == {tenant.pk}
    assert ServerMetric.objects.count() == 8 * 3 * 24
    assert AuditLog.objects.filter(details__seeded=True).count() == 30
    assert CircuitBreaker.objects.get(state="half_open").server.health_status == "unhealthy"
    assert CircuitBreaker.objects.get(server__slug="sample").state == "closed"


def test_the_first_look_at_it_is_calm(tenant, monkeypatch):
    monkeypatch.setattr("gateway.seed.ORDINARY_FAILURES", ((502, "upstream_unreachable", 1.0),))
    moment = now()
    make(servers=7, requests=100, days=1, at=moment)
    failed = RequestLog.objects.filter(status_code=502)
    assert failed.exists()
    assert not failed.filter(request_time__gt=moment - timedelta(minutes=15)).exists()
    found = {row["metric"]: row["status"] for row in performance_metrics()}
    for metric in ("error_rate", "open_breakers", "p95_duration_ms"):
        assert found[metric] == "ok"


def test_counters_agree_with_the_history(tenant):
    make()
    tool = ServerTool.objects.get(server__slug="code-search", name="search_code")
    calls = RequestLog.objects.filter(target_server_id=tool.server_id, tool_name="search_code")
    assert tool.total_calls == calls.count() > 0
    assert tool.error_count == calls.filter(status_code__gte=400).count()
    assert tool.total_calls == tool.success_count + tool.error_count
    key = EnhancedAPIKey.objects.order_by("-total_requests").first()
    assert key.total_requests == RequestLog.objects.filter(api_key_id=key.pk).count()


def test_repeating_doubles_nothing(tenant):
    first = make()
    assert first.admin_password
    assert len(first.keys) == 4
    counts = [m.objects.count() for m in (MCPServer, ServerTool, User, EnhancedAPIKey, RequestLog)]
    again = make(requests=5000)
    assert (again.servers, again.requests, again.requests_before) == (0, 0, 3000)
    assert (again.keys, again.admin_password) == ({}, None)
    assert counts == [
        m.objects.count() for m in (MCPServer, ServerTool, User, EnhancedAPIKey, RequestLog)
    ]


def test_the_same_arguments_give_the_same_calls(tenant):
    def fingerprint(begin):
        rows = RequestLog.objects.order_by("request_time", "id")
        return [
            (row.request_time - begin, row.path, row.tool_name, row.status_code, row.duration_ms)
            for row in rows
        ]

    moment = now()
    make(requests=200, at=moment)
    one = fingerprint(moment)
    seed_remove()
    make(requests=200, at=moment)
    assert fingerprint(moment) == one


def test_removing_takes_what_was_seeded_and_nothing_else(tenant):
    mine, call = MCPServerFactory(tenant=tenant, slug="mine"), RequestLogFactory()
    make(requests=100)
    assert foreign_rows() == ["servers", "calls"]
    assert seed_remove() > 100
    assert set(MCPServer.objects.values_list("slug", flat=True)) == {mine.slug, "sample"}
    assert RequestLog.objects.get().id == call.id
    assert set(User.objects.values_list("username", flat=True)) == {"admin"}
    assert not EnhancedAPIKey.objects.exists()
    assert not ServerMetric.objects.exists()
    assert not AuditLog.objects.filter(details__seeded=True).exists()
    assert make(requests=100).requests == 100


def test_somebody_elses_slug_is_left_alone(tenant):
    mine = MCPServerFactory(tenant=tenant, slug="code-search")
    make(requests=100)
    assert MCPServer.objects.get(slug="code-search") == mine
    assert not mine.tools.exists()


def test_seeded_servers_are_not_checked(tenant):
    make(requests=0)
    MCPServer.objects.filter(slug="sample").delete()
    assert tasks.servers_health_check(at=now() + timedelta(hours=1)) == 0


def test_the_command_tells_and_warns(tenant, capsys):
    RequestLogFactory()
    call_command("seed_dev_data", "--servers", "2", "--requests", "50", "--days", "1")
    captured = capsys.readouterr()
    assert re.search(
        r"^Added .*, 3 servers, \d API keys and 50 calls\.$", captured.out, re.MULTILINE
    )
    assert "API key, shown once: Coding agent (development): mcpgw_" in captured.out
    assert "calls that seeding did not make" in captured.err
    call_command("seed_dev_data", "--servers", "3")
    again = capsys.readouterr().out
    assert again.startswith("Added 1 server.\nThere already: 50 seeded calls; --reset makes")
    call_command("seed_dev_data", "--servers", "3")
    again = capsys.readouterr().out
    assert "Added" not in again
    assert "Everything is there already, with 50 seeded calls; --reset makes it anew." in again
    # The days of before: their partitions are there, and a transaction that has rows of a log
    # analysed, as this test's has now, keeps others from being made.
    call_command("seed_dev_data", "--reset", "--requests", "60", "--days", "1")
    assert "and 60 calls" in capsys.readouterr().out
    assert RequestLog.objects.count() == 61


@pytest.mark.parametrize("arguments", [["--servers", "0"], ["--days", "0"], ["--requests", "-1"]])
def test_numbers_out_of_range_are_wrong_usage(arguments):
    with pytest.raises(CommandError, match="takes") as caught:
        call_command("seed_dev_data", *arguments)
    assert caught.value.returncode == 2
