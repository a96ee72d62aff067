"""The admin's pages of figures: what they say, whom they let in, and what they cost."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils.timezone import now

from gateway.dashboard.metrics import Measured, problems
from gateway.dashboard.window import Window
from gateway.defaults import defaults_ensure
from gateway.models import BreakerState, CircuitBreaker
from monitoring.models import (
    AlertEvent,
    AuditLog,
    PerformanceAlert,
    StatementSnapshot,
    TaskOutcome,
)
from monitoring.rollups import rollups_compact
from registry.audit import Actor
from registry.models import HealthStatus
from security.models import Role
from tests.factories import (
    MCPServerFactory,
    PerformanceAlertFactory,
    RequestLogFactory,
    ScheduledTaskFactory,
    TenantFactory,
    UserFactory,
)
from tests.partitions import one_old_partition

pytestmark = pytest.mark.django_db

ACKNOWLEDGE = "admin:monitoring_performancealert_acknowledge"


def page(client: Client, name: str = "index", **query: str) -> str:
    response = client.get(reverse(f"admin:{name}"), query)
    assert response.status_code == 200
    return response.content.decode()


def signed_in(role: Role) -> Client:
    defaults_ensure(actor=Actor(service_name="test"))
    user = UserFactory(role=role, tenant=None, is_staff=True)
    user.groups.set(Group.objects.filter(name=role.value))
    client = Client()
    client.force_login(user)
    return client


def words(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


# --------------------------------------------------------------------------- the overview


def test_a_quiet_gateway_says_that_nothing_is_wrong(admin_client: Client) -> None:
    text = words(page(admin_client))
    assert "No calls." in text
    assert "All breakers are closed." in text
    assert "No tool was called." in text


@pytest.mark.parametrize(
    ("health", "breaker", "alarms"),
    [
        (HealthStatus.HEALTHY, BreakerState.CLOSED, 0),
        (HealthStatus.HEALTHY, BreakerState.HALF_OPEN, 0),
        (HealthStatus.HEALTHY, BreakerState.OPEN, 1),
        (HealthStatus.UNHEALTHY, BreakerState.CLOSED, 1),
    ],
)
def test_the_verdict_agrees_with_the_cards_below_it(
    health: str, breaker: str, alarms: int, admin_client: Client
) -> None:
    server = MCPServerFactory(health_status=health)
    CircuitBreaker.objects.filter(server=server).update(state=breaker)
    context = admin_client.get(reverse("admin:index")).context
    assert sum(card.is_alarm for card in context["cards"]) == alarms
    assert context["needs_a_look"] is bool(context["problems"] or alarms)
    assert ("Something needs a look." in page(admin_client)) is context["needs_a_look"]


def test_an_open_breaker_of_a_disabled_server_is_no_alarm(admin_client: Client) -> None:
    server = MCPServerFactory(is_enabled=False)
    CircuitBreaker.objects.filter(server=server).update(state=BreakerState.OPEN)
    context = admin_client.get(reverse("admin:index")).context
    assert not any(card.is_alarm for card in context["cards"])
    assert "All breakers are closed." in words(page(admin_client))


def test_open_breakers_are_counted_before_half_open_ones(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.dashboard.overview.MOST_BREAKERS", 2)
    for nth, state in enumerate(["open", "open", "half_open", "half_open", "half_open"]):
        changed = now() - timedelta(minutes=10 - nth)
        CircuitBreaker.objects.filter(server=MCPServerFactory(health_status="healthy")).update(
            state=state, last_state_change=changed
        )

    def told() -> str:
        cards = admin_client.get(reverse("admin:index")).context["cards"]
        return next(card.value for card in cards if card.title == "Open breakers")

    assert told() == "2"
    CircuitBreaker.objects.update(state=BreakerState.OPEN)
    assert told() == "2+"


@pytest.mark.parametrize(
    ("states", "note"),
    [
        ([], "every server may be called"),
        ([BreakerState.OPEN], "tried again after their time-outs"),
        ([BreakerState.HALF_OPEN], "1 half-open: one trial call at a time is let through"),
        (
            [BreakerState.OPEN, BreakerState.HALF_OPEN, BreakerState.HALF_OPEN],
            "tried again after their time-outs; 2 half-open: one trial call at a time is let "
            "through",
        ),
    ],
)
def test_a_half_open_breaker_lets_one_trial_call_through(
    states: list[str], note: str, admin_client: Client
) -> None:
    for state in states:
        CircuitBreaker.objects.filter(server=MCPServerFactory()).update(state=state)
    cards = {card.title: card for card in admin_client.get(reverse("admin:index")).context["cards"]}
    assert cards["Open breakers"].note == note


def test_what_is_wrong_stands_at_the_top_with_a_way_to_its_rows(admin_client: Client) -> None:
    server = MCPServerFactory(health_status=HealthStatus.UNHEALTHY)
    CircuitBreaker.objects.filter(server=server).update(state=BreakerState.OPEN)
    html = page(admin_client)
    text = words(html)
    assert "Something needs a look." in text
    assert f"Open breakers: 1 ({server.tenant.slug}/{server.slug}); the bound is 0" in text
    assert 'href="/admin/gateway/circuitbreaker/?state__exact=open"' in html
    assert f"{server.slug} unhealthy" in text


def test_failed_and_late_tasks_are_seen_first(admin_client: Client) -> None:
    at, hour = now(), timedelta(hours=1)
    ScheduledTaskFactory(name="well", next_run=at + hour, last_outcome=TaskOutcome.DONE)
    ScheduledTaskFactory(name="paused", next_run=at - hour, is_paused=True)
    ScheduledTaskFactory(
        name="broken",
        next_run=at + hour,
        last_outcome=TaskOutcome.FAILED,
        last_duration_ms=1500.0,
        last_error="the disk\nis <full>",
    )
    ScheduledTaskFactory(name="running", running_since=at - hour, lease_until=at, next_run=at)
    frozen = {"running_since": at - hour, "lease_until": at - timedelta(minutes=2)}
    ScheduledTaskFactory(name="frozen", next_run=at, **frozen)
    ScheduledTaskFactory(name="late", next_run=at - hour)
    html = page(admin_client)
    table = words(html[html.index('id="periodic-tasks"') :])
    assert f"Late tasks: late since {at - hour:%Y-%m-%d %H:%M:%S} UTC and 1 more" in words(html)
    assert f"broken failed – 1.5 s {at + hour:%Y-%m-%d %H:%M:%S} the disk is &lt;full&gt;" in table
    places = [table.index(f" {name} ") for name in ("late", "frozen", "broken", "paused", "well")]
    assert places == sorted(places)
    assert "running running" in table
    assert "frozen late" in table


@pytest.mark.parametrize(("window", "inside"), [("1", 1), ("24", 2), ("168", 3), ("nonsense", 2)])
def test_charts_and_tables_show_the_window(window: str, inside: int, admin_client: Client) -> None:
    one_old_partition(days=10)
    server, tenant = MCPServerFactory(), TenantFactory()
    for hours in (0, 5, 100, 200):
        RequestLogFactory(
            request_time=now() - timedelta(hours=hours, seconds=1),
            tenant_id=tenant.pk,
            target_server_id=server.pk,
            tool_name="add",
            status_code=502,
        )
    RequestLogFactory(status_code=401, request_time=now() - timedelta(seconds=1))
    RequestLogFactory(tenant_id=tenant.pk, request_time=now() - timedelta(seconds=1))
    rollups_compact()
    html = page(admin_client, window=window)
    failed = f"{100 * inside / (inside + 1):.3g} % failed"
    assert f"{inside + 2} calls, {failed}" in words(html), "a stranger's is not one of them"
    assert f"{failed}, 95 % within" in words(html), "on the card too"
    assert re.search(rf"tenant_id={tenant.pk}&amp;outcome=bad&amp;window=20\d\d-", html)
    [charted] = re.findall(r'aria-label="Calls: [^"]*" data-type="bar" data-value="([^"]*)"', html)
    data = json.loads(charted.replace("&quot;", '"'))
    assert [sum(line["data"]) for line in data["datasets"]] == [inside, 1, 1]
    assert {line["stack"] for line in data["datasets"]} == {"calls"}, "none hides another"


@pytest.mark.parametrize(("window", "hours"), [("24", 24), ("168", 168)])
def test_every_count_of_the_overview_is_of_the_same_calls(
    window: str, hours: int, admin_client: Client
) -> None:
    one_old_partition(days=8)
    server = MCPServerFactory()
    hour = now().replace(minute=0, second=0, microsecond=0)
    begin = hour - timedelta(hours=hours - 1)
    for at in (begin - timedelta(seconds=1), begin, begin + timedelta(minutes=29), now()):
        RequestLogFactory(
            request_time=at,
            tenant_id=server.tenant_id,
            target_server_id=server.pk,
            tool_name="add",
        )
    rollups_compact()
    html = page(admin_client, window=window)
    text = words(html)
    since = f"{begin:%a %H:%M} UTC" if hours == 24 else f"{begin:%Y-%m-%d %H:%M} UTC"
    assert f"Calls since {since} 3 0 % failed" in text
    assert "3 calls, 0 % failed" in text
    assert f"Calls of tools since {since}. tool server calls" in text
    assert f"add {server.slug} 3 0 %" in text
    assert f"{server.tenant.slug} 3 0 %" in text


@pytest.mark.parametrize("window", ["1", "24", "168"])
def test_the_lists_that_the_overview_links_to_begin_where_its_counts_do(
    window: str, admin_client: Client
) -> None:
    one_old_partition(days=8)
    server, moment = MCPServerFactory(), timedelta(seconds=1)
    begin = Window(int(window), "", "").since(now())
    for at in (begin - moment, begin, begin + moment):
        RequestLogFactory(
            request_time=at,
            tenant_id=server.tenant_id,
            target_server_id=server.pk,
            status_code=502,
        )
    rollups_compact()
    html = page(admin_client, window=window)
    log = reverse("admin:monitoring_requestlogentry_changelist")
    [card] = re.findall(rf'<a href="({log}[^"]*)" class="gw-panel', html)
    listed = admin_client.get(card.replace("&amp;", "&"))
    assert len(listed.context["cl"].result_list) == 2
    assert f"Since {begin:%Y-%m-%d %H:%M} UTC" in listed.text
    # With another choice of the filter the beginning is gone.
    assert len(admin_client.get(log, {"window": "720"}).context["cl"].result_list) == 3


def test_the_overview_costs_few_queries_however_much_there_is(admin_client: Client) -> None:
    for _ in range(12):
        tenant = TenantFactory()
        server = MCPServerFactory(tenant=tenant, health_status=HealthStatus.DEGRADED)
        PerformanceAlertFactory(is_triggered=True, first_triggered=now(), server=server)
        RequestLogFactory(tenant_id=tenant.pk, target_server_id=server.pk, tool_name="add")
        ScheduledTaskFactory()
    CircuitBreaker.objects.update(state=BreakerState.OPEN)
    page(admin_client)
    for name in ("index", "database"):
        with CaptureQueriesContext(connection) as captured:
            page(admin_client, name)
        assert len(captured) < 20, [query["sql"][:80] for query in captured]


def test_the_live_part_alone_is_asked_for_without_the_traffic(admin_client: Client) -> None:
    whole = page(admin_client)
    with CaptureQueriesContext(connection) as captured:
        part = admin_client.get(reverse("admin:index"), headers={"hx-target": "gw-live"})
    html = part.content.decode()
    live = re.compile(r'<section id="gw-live".*?</section>', re.DOTALL)
    clock = re.compile(r"As of [\d:]+ UTC")
    shown, asked = (clock.sub("", live.search(text).group()) for text in (whole, html))  # type: ignore[union-attr]
    assert shown == asked
    assert "Most called tools" in whole
    assert "Most called tools" not in html
    assert not [query for query in captured if "request_usage" in query["sql"]]
    dropped = re.compile("request_series|request_performance|performance_alerts")
    assert not [query for query in captured if dropped.search(query["sql"])]


def test_an_alert_is_acknowledged_where_it_is_seen(admin_client: Client, admin_user: Any) -> None:
    alert = PerformanceAlertFactory(is_triggered=True, first_triggered=now(), last_value=3)
    html = page(admin_client)
    assert f"Acknowledge {alert.name}" in html
    address = reverse(ACKNOWLEDGE, args=[alert.pk])
    assert admin_client.get(address).status_code == 405
    assert admin_client.post(address).status_code == 302
    alert.refresh_from_db()
    assert alert.acknowledged_by == admin_user
    assert AlertEvent.objects.get().kind == "acknowledged"
    assert AuditLog.objects.get(action="alert.acknowledge").user_id == admin_user.pk
    assert f"{admin_user} looks after it" in words(page(admin_client))
    admin_client.post(address)
    assert "somebody was faster" in words(page(admin_client))


def test_who_may_only_read_acknowledges_nothing() -> None:
    alert = PerformanceAlertFactory(is_triggered=True, first_triggered=now())
    reader = signed_in(Role.READONLY)
    assert "Acknowledge" not in page(reader)
    assert reader.post(reverse(ACKNOWLEDGE, args=[alert.pk])).status_code == 403
    assert PerformanceAlert.objects.get(pk=alert.pk).acknowledged_at is None


def test_who_may_not_read_the_log_sees_no_figures() -> None:
    user = UserFactory(role=Role.USER, tenant=None, is_staff=True)
    client = Client()
    client.force_login(user)
    assert "Firing alerts" not in page(client)
    assert client.get(reverse("admin:database")).status_code == 403
    assert Client().get(reverse("admin:database")).status_code == 302


# --------------------------------------------------------------------------- the database


def snapshot(query: str, **fields: Any) -> StatementSnapshot:
    known = {"calls": 10, "total_ms": 50.0, "window_calls": 4, "window_mean_ms": 2.5}
    return StatementSnapshot.objects.create(
        query_id=-StatementSnapshot.objects.count() - 1, query=query, **(known | fields)
    )


def test_the_database_page_names_tables_indexes_statements_and_figures(
    admin_client: Client,
) -> None:
    at = now()
    snapshot("SELECT count(*) FROM tenants WHERE slug = $1", taken_at=at)
    snapshot("SELECT never FROM again", window_mean_ms=None, taken_at=at)
    text = words(page(admin_client, "database"))
    for expected in ("request_logs", "idx_audit_logs_tenant_time", "Cache hit ratio"):
        assert expected in text
    assert "SELECT count(*) FROM tenants WHERE slug = $1 4 2.5 ms 10 ms show" in text
    assert "never" not in text


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("SELECT name FROM tenants WHERE slug = $1 LIMIT $2", "Limit  (cost="),
        ("UPDATE tenants SET name = $1 WHERE id = $2", "Update on tenants"),
        ("SELECT 1", "Result"),
        ("VACUUM tenants", "Only reading and writing statements have a plan."),
        ("SELECT * FROM gone WHERE id = $1", "PostgreSQL cannot plan it: relation"),
        ("SELECT 1; DROP TABLE tenants", "cannot insert multiple commands"),
    ],
)
def test_a_statement_is_shown_with_its_plan_and_never_run(
    query: str, shown: str, admin_client: Client
) -> None:
    TenantFactory(name="as it was")
    found = snapshot(query)
    response = admin_client.get(reverse("admin:statement", args=[found.pk]))
    assert response.status_code == 200
    assert shown in response.content.decode()
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM tenants WHERE name = 'as it was'")
        assert cursor.fetchone() == (1,)
        cursor.execute("SELECT count(*) FROM pg_prepared_statements WHERE name = 'gateway_plan'")
        assert cursor.fetchone() == (0,)


# --------------------------------------------------------------------------- figures in words


def figure(metric: str, value: float, status: str, **fields: Any) -> Measured:
    known = {"subject": "all", "unit": "percent", "threshold": 80.0, "measured_at": now()}
    return Measured(metric=metric, value=value, status=status, **(known | fields))


def test_problems_are_told_once_a_metric_the_worst_first() -> None:
    told = problems(
        [
            figure("dead_rows", 5000, "ok", unit="rows"),
            figure("index_usage_percent", 40, "warning"),
            figure("index_usage_percent", 12, "warning", subject="users"),
            figure("index_usage_percent", 40, "warning", subject="tenants"),
            figure("p95_duration_ms", 61_000, "critical", unit="ms", threshold=5000),
        ]
    )
    assert [(one.status, one.words) for one in told] == [
        ("critical", "95th percentile of durations: 61 s; the bound is 5 s"),
        ("warning", "Index usage: 12 % (users) and 1 more; the bound is 80 %"),
    ]
