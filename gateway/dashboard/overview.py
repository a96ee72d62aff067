"""The first page: is anything wrong, how is the traffic, who uses what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import Case, Count, Q, QuerySet, When
from django.http import HttpRequest
from django.urls import reverse
from django.utils.http import urlencode
from django.utils.timezone import now

from gateway.dashboard.charts import failed_share, latency_chart, traffic_chart
from gateway.dashboard.metrics import Measured, problems
from gateway.dashboard.tables import Table, chip, date_and_time, link
from gateway.dashboard.tasks import known_tasks, late_problems, tasks_table
from gateway.dashboard.window import WINDOWS, Window, chosen_window
from gateway.models import BreakerState, CircuitBreaker
from monitoring import queries
from monitoring.models import PerformanceAlert, Severity
from registry.admin_base import NOTHING, duration, percentage
from registry.admin_filters import TimeWindowFilter
from registry.models import HealthStatus, MCPServer

__all__ = ["overview"]

TOP = 8
MOST_BREAKERS = 50
HEALTH_STATUS = {
    HealthStatus.UNHEALTHY: "critical",
    HealthStatus.DEGRADED: "warning",
    HealthStatus.UNKNOWN: "warning",
}


def overview(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """What the first page shows to operators who may read the log; others get its links alone."""
    if not request.user.has_perm("monitoring.view_requestlog"):
        return context
    at, window = now(), chosen_window(request.GET.dict())
    figures = [Measured(**row) for row in queries.performance_metrics()]
    breakers = _breakers()
    tasks = known_tasks()
    live = {
        **context,
        "window": window,
        "at": at,
        "live": [_servers(), _breakers_table(breakers), _load(figures)],
        "tasks": tasks_table(tasks, at),
    }
    if _is_live_alone(request):
        return live
    since = window.since(at)
    series = queries.traffic_series(since=since, until=at, step=window.step)
    holding = _holding()
    alerts = [alert for alert in holding if alert.is_triggered]
    out_of_bounds = [*late_problems(tasks, at), *problems(figures)]
    cards = [
        _servers_card(_health()),
        _breakers_card(breakers),
        _requests_card(window, series, at),
        _alerts_card(alerts, holding[len(alerts) :]),
    ]
    return {
        **live,
        "windows": WINDOWS,
        "problems": out_of_bounds,
        "cards": cards,
        "needs_a_look": bool(out_of_bounds) or any(card.is_alarm for card in cards),
        "alerts": alerts[:TOP],
        "may_acknowledge": request.user.has_perm("monitoring.change_performancealert"),
        "charts": [traffic_chart(series, window), latency_chart(series, window)],
        "tables": [_tools(window, at), _tenants(window, at)],
    }


def _is_live_alone(request: HttpRequest) -> bool:
    """The page asks for its live part every half minute and drops the rest of the answer."""
    return request.headers.get("hx-target") == "gw-live"


# --------------------------------------------------------------------------- at a glance


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    title: str
    value: str
    note: str
    url: str
    is_alarm: bool = False


def _list(url_name: str, **filters: object) -> str:
    query = urlencode({name: str(value) for name, value in filters.items()})
    url = reverse(f"admin:{url_name}_changelist")
    return f"{url}?{query}" if query else url


def _health() -> dict[str, int]:
    enabled = MCPServer.objects.filter(is_enabled=True).order_by()
    return dict(enabled.values_list("health_status").annotate(Count("id")))


def _servers_card(counts: dict[str, int]) -> Card:
    others = [
        f"{counts[status]} {status.label.lower()}"
        for status in HealthStatus
        if status != HealthStatus.HEALTHY and counts.get(status)
    ]
    return Card(
        title="Healthy servers",
        value=f"{counts.get(HealthStatus.HEALTHY, 0):,} of {sum(counts.values()):,}",
        note=", ".join(others) or "all enabled servers answer",
        url=_list("registry_mcpserver"),
        is_alarm=bool(counts.get(HealthStatus.UNHEALTHY)),
    )


def _breakers_card(breakers: Sequence[CircuitBreaker]) -> Card:
    """Of what `_breakers` found."""
    shut = [breaker for breaker in breakers if breaker.state == BreakerState.OPEN]
    tried = len(breakers) - len(shut)
    notes = [
        *(["tried again after their time-outs"] if shut else []),
        *([f"{tried} half-open: one trial call at a time is let through"] if tried else []),
    ]
    return Card(
        title="Open breakers",
        value=f"{MOST_BREAKERS}+" if len(shut) > MOST_BREAKERS else str(len(shut)),
        note="; ".join(notes) or "every server may be called",
        url=_list("gateway_circuitbreaker", state__exact=BreakerState.OPEN),
        is_alarm=bool(shut),
    )


def _requests_card(window: Window, series: Sequence[dict[str, Any]], at: datetime) -> Card:
    since = window.since(at)
    total = sum(row["requests"] for row in series)
    slow = duration(queries.request_figures(since=since, until=at)["p95_ms"])
    note = f"{percentage(failed_share(series))} failed, 95 % within {slow}"
    return Card(
        title=f"Calls since {window.written(since)}",
        value=f"{total:,}",
        note=note if total else "none came in",
        url=_list("monitoring_requestlogentry", window=TimeWindowFilter.beginning(since)),
    )


def _holding() -> list[PerformanceAlert]:
    """Alerts that fire, the worst first, then those that will if it lasts."""
    holding = PerformanceAlert.objects.filter(
        Q(is_triggered=True) | Q(pending_since__isnull=False), is_active=True
    )
    rows = holding.select_related("server", "acknowledged_by").defer("server__credentials")
    worst_first = [Severity.CRITICAL, Severity.WARNING, Severity.INFO]
    found = rows.order_by("-is_triggered", "name")[:50]
    return sorted(
        found,
        key=lambda alert: (not alert.is_triggered, worst_first.index(Severity(alert.severity))),
    )


def _alerts_card(firing: Sequence[PerformanceAlert], pending: Sequence[PerformanceAlert]) -> Card:
    names = [alert.name for alert in firing]
    looked_at = names or PerformanceAlert.objects.exclude(last_measured=None).exists()
    idle = "no rule fires" if looked_at else "no rule was evaluated: start a worker"
    soon = f"; pending: {_some([alert.name for alert in pending])}" if pending else ""
    return Card(
        title="Firing alerts",
        value=str(len(names)) if looked_at else NOTHING,
        note=f"{_some(names) or idle}{soon}",
        url=_list("monitoring_performancealert", is_triggered__exact=1),
        is_alarm=bool(names),
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")


# --------------------------------------------------------------------------- traffic


def _tools(window: Window, at: datetime) -> Table:
    since = window.whole_hours(at)
    rows = queries.top_tools(since=since, limit=TOP)
    log = {"window": TimeWindowFilter.beginning(since)}
    return Table(
        title="Most called tools",
        heads=("tool", "server", "calls", "failed", "average"),
        numbers=frozenset({2, 3, 4}),
        rows=[
            (
                link(_list("registry_servertool", q=row["tool_name"]), row["tool_name"]),
                _server(row["server_id"], row["server"]),
                link(_log(row["server_id"], **log), f"{row['requests']:,}"),
                link(
                    _log(row["server_id"], outcome="bad", **log),
                    percentage(row["errors"] / row["requests"]),
                ),
                duration(row["avg_duration_ms"]),
            )
            for row in rows
        ],
        empty="No tool was called.",
        note=f"Calls of tools since {window.written(since)}.",
        more=_list("registry_servertool"),
    )


def _tenants(window: Window, at: datetime) -> Table:
    since = window.whole_hours(at)
    rows = queries.top_tenants(since=since, until=at, limit=TOP)
    log = {"window": TimeWindowFilter.beginning(since)}
    return Table(
        title="Busiest tenants",
        heads=("tenant", "calls", "failed", "average"),
        numbers=frozenset({1, 2, 3}),
        rows=[
            (
                _tenant(row["tenant_id"], row["tenant"]),
                link(_tenant_log(row["tenant_id"], **log), f"{row['requests']:,}"),
                link(
                    _tenant_log(row["tenant_id"], outcome="bad", **log),
                    percentage(row["errors"] / row["requests"]),
                ),
                duration(row["avg_duration_ms"]),
            )
            for row in rows
        ],
        empty="No tenant called.",
        note=f"Calls of tenants since {window.written(since)}; strangers and operators have none.",
        more=_list("registry_tenant"),
    )


def _server(server_id: UUID, slug: str | None) -> str:
    if slug is None:
        return str(server_id)
    return link(reverse("admin:registry_mcpserver_change", args=[server_id]), slug)


def _tenant(tenant_id: UUID, slug: str) -> str:
    return link(reverse("admin:registry_tenant_change", args=[tenant_id]), slug)


def _log(server_id: UUID, **filters: str) -> str:
    return _list("monitoring_requestlogentry", target_server_id=server_id, **filters)


def _tenant_log(tenant_id: UUID, **filters: str) -> str:
    return _list("monitoring_requestlogentry", tenant_id=tenant_id, **filters)


# --------------------------------------------------------------------------- live


def _servers() -> Table:
    troubled: QuerySet[MCPServer] = (
        MCPServer.objects.filter(is_enabled=True, health_status__in=HEALTH_STATUS)
        .only("id", "slug", "health_status", "last_health_check", "avg_response_time")
        .order_by("-health_status", "slug")[:TOP]
    )
    return Table(
        title="Servers in trouble",
        heads=("server", "health", "last check", "answers in"),
        numbers=frozenset({3}),
        whole=frozenset({2}),
        rows=[
            (
                _server(server.pk, server.slug),
                chip(
                    server.get_health_status_display().lower(),
                    HEALTH_STATUS[HealthStatus(server.health_status)],
                ),
                date_and_time(server.last_health_check),
                duration(server.avg_response_time),
            )
            for server in troubled
        ],
        empty="Every enabled server is healthy or in maintenance.",
        more=_list("registry_mcpserver"),
    )


def _breakers() -> list[CircuitBreaker]:
    """Those that let not every call through to a server that is to be called, open ones first.

    One more than are shown. They are few, so a scan of the small table finds them.
    """
    troubled = CircuitBreaker.objects.exclude(state=BreakerState.CLOSED).select_related("server")
    to_be_called = troubled.filter(server__is_enabled=True).defer("server__credentials")
    open_first = Case(When(state=BreakerState.OPEN, then=0), default=1)
    return list(to_be_called.order_by(open_first, "-last_state_change")[: MOST_BREAKERS + 1])


def _breakers_table(breakers: Sequence[CircuitBreaker]) -> Table:
    return Table(
        title="Breakers that hold calls back",
        heads=("server", "state", "since", "tried again after"),
        numbers=frozenset({3}),
        whole=frozenset({2}),
        rows=[
            (
                link(
                    reverse("admin:gateway_circuitbreaker_change", args=[breaker.pk]),
                    breaker.server.slug,
                ),
                chip(
                    breaker.get_state_display().lower(),
                    "critical" if breaker.state == BreakerState.OPEN else "warning",
                ),
                date_and_time(breaker.last_state_change),
                duration(breaker.timeout_ms),
            )
            for breaker in breakers[:TOP]
        ],
        empty="All breakers are closed.",
        more=_list("gateway_circuitbreaker"),
    )


LOAD = {
    "pool_utilisation_percent": ("pool", "gateway_connectionpool"),
    "queue_depth": ("queue", "gateway_requestqueue"),
}


def _load(figures: Sequence[Measured]) -> Table:
    loaded = [one for one in figures if one.metric in LOAD and one.value and one.subject != "all"]
    loaded.sort(key=lambda one: (one.status == "ok", one.metric, -(one.value or 0)))
    return Table(
        title="Pools and queues in use",
        heads=("server", "what", "in use", "status"),
        numbers=frozenset({2}),
        rows=[
            (
                one.subject,
                link(_list(LOAD[one.metric][1], q=_slug(one)), LOAD[one.metric][0]),
                one.written,
                chip(one.status, one.status),
            )
            for one in loaded[:TOP]
        ],
        empty="No connection is in use and nothing waits.",
        more=_list("gateway_connectionpool"),
    )


def _slug(one: Measured) -> str:
    """The subject of a server is tenant/slug, of a shared one its slug."""
    return one.subject.rpartition("/")[2]
