"""Rules held against what is remembered, and rules for Prometheus."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import yaml
from django.conf import settings
from django.urls import reverse
from django.utils.timezone import now

from gateway.defaults import defaults_ensure
from gateway.models import CircuitBreaker
from monitoring.alerts.evaluate import alerts_evaluate
from monitoring.alerts.history import BUCKET, alert_preview, history_keep
from monitoring.alerts.metrics import METRICS
from monitoring.models import DataRetentionPolicy, MetricSnapshot, PerformanceAlert
from monitoring.queries import performance_metrics
from monitoring.retention.run import policies_run
from registry.audit import Actor
from tests.api import client_of
from tests.factories import MCPServerFactory, PerformanceAlertFactory, TenantFactory

pytestmark = pytest.mark.django_db

AT = datetime(2026, 6, 15, 12, 2, tzinfo=UTC)
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)


def kept(metric: str, subject: str = "") -> list[tuple[datetime, float, float]]:
    rows = MetricSnapshot.objects.filter(metric=metric, subject=subject).order_by("bucket")
    return list(rows.values_list("bucket", "lowest", "highest"))


def breakers(state: str) -> None:
    CircuitBreaker.objects.update(state=state)


# ---------------------------------------------------------------- what passes keep


def test_a_pass_widens_the_bounds_of_its_five_minutes() -> None:
    watched = MCPServerFactory(tenant=TenantFactory(slug="acme"), slug="mail")
    other = MCPServerFactory()
    PerformanceAlertFactory(server=watched)
    alerts_evaluate(at=AT)
    breakers("open")
    alerts_evaluate(at=AT + MINUTE)
    breakers("closed")
    alerts_evaluate(at=AT + 2 * MINUTE)
    alerts_evaluate(at=AT + 3 * MINUTE)
    began = AT.replace(minute=0)
    assert kept("open_breakers") == [(began, 0, 2), (began + BUCKET, 0, 0)]
    assert kept("open_breakers", "acme/mail") == [(began, 0, 1), (began + BUCKET, 0, 0)]
    assert kept("database_connections"), "also what no rule looks at"
    subjects = set(MetricSnapshot.objects.values_list("subject", flat=True))
    assert subjects == {"", "acme/mail"}, f"not each of many servers, such as {other.slug}"


def test_old_figures_go_by_the_default_policy() -> None:
    for age in (31, 29):
        history_keep([("dead_rows", "", 1.0, 2.0)], at=now() - age * DAY)
    defaults_ensure(actor=Actor(service_name="test"))
    DataRetentionPolicy.objects.exclude(table_name="metric_snapshots").delete()
    assert policies_run(at=now(), rest=lambda _: None) == 1
    assert MetricSnapshot.objects.get().bucket > now() - 30 * DAY


def test_the_metrics_are_those_of_the_view_within_its_units() -> None:
    rows = performance_metrics()
    # A database without standbys has no row of theirs.
    assert {row["metric"] for row in rows} | {"replication_lag_seconds"} == METRICS.keys()
    for row in rows:
        assert METRICS[row["metric"]].unit == row["unit"], row["metric"]
        wanted = {"ratio": 1.0, "percent": 100.0}.get(row["unit"])
        if row["metric"] != "table_growth_percent":  # twice as large is 200 %
            assert METRICS[row["metric"]].ceiling == wanted, row["metric"]


def test_what_is_watched_is_in_the_guide() -> None:
    guide = (settings.BASE_DIR / "docs/alerts.md").read_text(encoding="utf-8")
    assert [name for name in METRICS if f"`{name}`" not in guide] == []


# ---------------------------------------------------------------- previews


def burst(alert: PerformanceAlert, *, days_ago: float, minutes: int, value: float) -> None:
    began = AT - timedelta(days=days_ago)
    for number in range(-1, minutes // 5 + 4):
        high = value if 0 <= number < minutes // 5 else 0.0
        history_keep([(alert.metric_name, "", 0.0, high)], at=began + number * BUCKET)


def test_a_rule_is_held_against_the_last_week() -> None:
    alert = PerformanceAlertFactory(threshold_value=10, duration_minutes=10)
    for days_ago, minutes in ((8, 60), (5, 60), (3, 5), (1, 20)):
        burst(alert, days_ago=days_ago, minutes=minutes, value=50 + days_ago)
    found = alert_preview(alert, at=AT)
    assert [firing.worst for firing in found.firings] == [55, 51], "too old, and too short"
    since = [firing.since for firing in found.firings]
    began = AT.replace(minute=0)
    assert since == [began - 5 * DAY + 10 * MINUTE, began - DAY + 10 * MINUTE]
    assert str(found).startswith("Would have fired 2 times since 2026-06-10 11:55 UTC: 06-10 12:10")


def test_a_preview_leaves_out_what_too_few_calls_say() -> None:
    alert = PerformanceAlertFactory(metric_name="error_rate", duration_minutes=0)
    for number, calls in enumerate((19.0, 20.0, 19.0)):
        at = AT + number * BUCKET
        history_keep([("error_rate", "", 0.0, 0.5), ("recent_calls", "", 0.0, calls)], at=at)
    found = alert_preview(alert, at=AT + 3 * BUCKET).firings
    assert [firing.since for firing in found] == [AT.replace(minute=5)]


def test_a_preview_of_a_server_knows_that_server_alone() -> None:
    server = MCPServerFactory(tenant=None, slug="shared")
    alert = PerformanceAlertFactory(server=server, duration_minutes=0)
    history_keep([("open_breakers", "", 0.0, 5.0)], at=AT)
    assert str(alert_preview(alert, at=AT)) == "Nothing is remembered of this metric yet."
    history_keep([("open_breakers", "shared", 0.0, 1.0)], at=AT)
    (firing,) = alert_preview(alert, at=AT).firings
    assert (firing.until, firing.worst) == (None, 1.0)


def test_the_api_and_the_admin_show_it(admin_client) -> None:
    alert = PerformanceAlertFactory(duration_minutes=0)
    history_keep([("open_breakers", "", 0.0, 2.0)], at=now() - timedelta(hours=3))
    answer = client_of(None).get(f"/api/v1/alerts/{alert.pk}/preview").json()
    assert answer["count"] == 1
    assert answer["firings"][0]["worst"] == 2.0
    assert answer["firings"][0]["since"] == answer["known_since"]
    page = reverse("admin:monitoring_performancealert_change", args=[alert.pk])
    assert "Would have fired once since" in admin_client.get(page).text


# ---------------------------------------------------------------- Prometheus


def rules_of(client) -> list[dict]:
    answer = client.get("/api/v1/alerts/prometheus")
    assert answer.status_code == 200
    assert answer["Content-Type"].startswith("application/yaml")
    (group,) = yaml.safe_load(answer.content)["groups"]
    return group["rules"]


def test_the_rules_of_prometheus_are_those_of_the_rows() -> None:
    server = MCPServerFactory(tenant=TenantFactory(slug="acme"), slug="mail")
    made = {
        "a": {"metric_name": "dead_rows", "threshold_value": 1e6, "description": "Many {{ x }}"},
        "b": {"metric_name": "cache_hit_ratio", "threshold_value": 0.9, "comparison_operator": "<"},
        "c": {"server": server, "comparison_operator": "<=", "duration_minutes": 0},
        "d": {"metric_name": "error_rate", "threshold_value": 0.05},
        "e": {"metric_name": "failed_tasks", "threshold_value": 2, "comparison_operator": "=="},
        "off": {"is_active": False},
    }
    for name, fields in made.items():
        PerformanceAlertFactory(name=name, severity="critical", **fields)
    found = {rule["alert"]: rule for rule in rules_of(client_of(None))}
    assert {name: rule["expr"] for name, rule in found.items()} == {
        "a": "max(mcp_gateway_dead_rows) > 1000000",
        "b": "min(mcp_gateway_cache_hit_ratio) < 0.9",
        "c": '(sum(mcp_gateway_open_breakers{subject="acme/mail"}) or vector(0)) <= 0',
        "d": "max(mcp_gateway_error_rate) > 0.05 and on() max(mcp_gateway_recent_calls) >= 20",
        "e": "count(mcp_gateway_failed_tasks == 2) > 0",
    }
    assert (found["a"]["for"], found["a"]["keep_firing_for"]) == ("5m", "5m")
    assert (found["c"]["for"], found["c"]["keep_firing_for"]) == ("0m", "2m")
    assert found["a"]["labels"] == {"severity": "critical"}
    assert found["a"]["annotations"]["summary"] == "Many { { x }}"


def test_a_tenant_gets_its_own_rules() -> None:
    mine, other = TenantFactory(), TenantFactory()
    PerformanceAlertFactory(name="mine", server=MCPServerFactory(tenant=mine))
    PerformanceAlertFactory(name="other", server=MCPServerFactory(tenant=other))
    PerformanceAlertFactory(name="everywhere")
    assert [rule["alert"] for rule in rules_of(client_of(mine))] == ["mine"]
    assert client_of(mine).get("/api/v1/alerts/prometheus?x=1").status_code == 400


def test_every_default_rule_names_a_metric_that_there_is() -> None:
    defaults_ensure(actor=Actor(service_name="test"))
    known = {f"mcp_gateway_{row['metric']}" for row in performance_metrics()}
    for rule in rules_of(client_of(None)):
        assert rule["expr"].partition("(")[2].partition(")")[0] in known
