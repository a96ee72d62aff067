"""The admin site: who may enter, the sidebar, and the glance at the top of the first page."""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.contrib import admin
from django.db.models import Count
from django.http import HttpRequest
from django.templatetags.static import static
from django.urls import reverse
from unfold.sites import UnfoldAdminSite

from gateway.models import BreakerState, CircuitBreaker
from monitoring.models import PerformanceAlert
from monitoring.queries import request_performance
from registry.admin_base import NOTHING, duration, percentage
from registry.models import HealthStatus, MCPServer

__all__ = ["GatewayAdminSite", "glance", "icon", "script", "sidebar", "style"]

# The rooms of the house, each with its pages (app.Model) and their icons.
ROOMS: dict[str, tuple[tuple[str, str], ...]] = {
    "Registry": (
        ("registry.Tenant", "domain"),
        ("registry.MCPServer", "dns"),
        ("registry.ServerTool", "build"),
        ("registry.ServerResource", "description"),
        ("registry.ServerPrompt", "chat"),
        ("registry.ServerMetricEntry", "monitor_heart"),
        ("registry.SystemConfig", "tune"),
    ),
    "Security": (
        ("security.EnhancedAPIKey", "key"),
        ("security.ServerAccessControl", "rule"),
        ("security.User", "person"),
        ("auth.Group", "group"),
        ("security.Session", "devices"),
        ("security.APIKey", "key_off"),
    ),
    "Traffic": (
        ("gateway.CircuitBreaker", "electrical_services"),
        ("gateway.ConnectionPool", "lan"),
        ("gateway.RequestQueue", "hourglass_top"),
    ),
    "Monitoring": (
        ("monitoring.RequestLogEntry", "receipt_long"),
        ("monitoring.AuditLogEntry", "policy"),
        ("monitoring.PerformanceAlert", "notifications"),
        ("monitoring.AlertEvent", "history"),
        ("monitoring.DataRetentionPolicy", "auto_delete"),
        ("monitoring.MaterializedView", "table_view"),
        ("procrastinate.ProcrastinateJob", "schedule"),
    ),
}
TITLES = {
    "procrastinate.ProcrastinateJob": "background jobs",
    "monitoring.AlertEvent": "alert history",
}


class GatewayAdminSite(UnfoldAdminSite):  # type: ignore[misc]
    """For operators only: every page shows all tenants, so nobody who belongs to one may enter."""

    index_title = "Overview"

    def has_permission(self, request: HttpRequest) -> bool:
        user = request.user
        return bool(super().has_permission(request)) and getattr(user, "tenant_id", None) is None


def sidebar(request: HttpRequest) -> list[dict[str, Any]]:
    """The pages that this operator may see, by room."""
    groups = []
    for room, pages in ROOMS.items():
        items = [_item(request, label, icon) for label, icon in pages]
        if seen := [item for item in items if item]:
            groups.append({"title": room, "collapsible": False, "items": seen})
    return groups


def _item(request: HttpRequest, label: str, icon: str) -> dict[str, Any] | None:
    model = apps.get_model(label)
    if not admin.site.get_model_admin(model).has_view_or_change_permission(request):
        return None
    opts = model._meta
    name = TITLES.get(label) or str(opts.verbose_name_plural)
    return {
        "title": name[0].upper() + name[1:],
        "icon": icon,
        "link": reverse(f"admin:{opts.app_label}_{opts.model_name}_changelist"),
    }


def icon(_request: HttpRequest) -> str:
    return static("gateway/icon.svg")


def script(_request: HttpRequest) -> str:
    return static("gateway/admin.js")


def style(_request: HttpRequest) -> str:
    return static("gateway/admin.css")


# ---------------------------------------------------------------- the first page


def glance(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """The state of the gateway in one row of cards, in four short queries."""
    if request.user.has_perm("monitoring.view_requestlog"):
        context["cards"] = [_servers(), _breakers(), _requests(), _alerts()]
    return context


def _card(
    title: str, value: str, note: str, url_name: str, query: str = "", *, alarm: bool = False
) -> dict[str, Any]:
    url = f"{reverse(f'admin:{url_name}_changelist')}{query}"
    return {"title": title, "value": value, "note": note, "url": url, "alarm": alarm}


def _servers() -> dict[str, Any]:
    enabled = MCPServer.objects.filter(is_enabled=True).order_by()
    counted = enabled.values_list("health_status").annotate(Count("id"))
    counts: dict[str, int] = dict(counted)
    healthy = counts.get(HealthStatus.HEALTHY, 0)
    others = [
        f"{counts[status]} {status.label.lower()}"
        for status in HealthStatus
        if status != HealthStatus.HEALTHY and counts.get(status)
    ]
    return _card(
        "Healthy servers",
        f"{healthy} of {sum(counts.values())}",
        ", ".join(others) or "all enabled servers answer",
        "registry_mcpserver",
        alarm=bool(counts.get(HealthStatus.UNHEALTHY)),
    )


def _breakers() -> dict[str, Any]:
    shut = CircuitBreaker.objects.filter(state=BreakerState.OPEN).count()
    note = "their servers are not called" if shut else "every server may be called"
    query = f"?state__exact={BreakerState.OPEN}"
    return _card("Open breakers", str(shut), note, "gateway_circuitbreaker", query, alarm=shut > 0)


def _requests() -> dict[str, Any]:
    hour = request_performance(hours=1)
    total = hour["total_requests"]
    note = (
        f"{percentage(hour['error_rate'])} failed, 95 % within {duration(hour['p95_duration_ms'])}"
        if total
        else "none came in"
    )
    return _card(
        "Requests in the last hour", f"{total:,}", note, "monitoring_requestlogentry", "?window=1"
    )


def _alerts() -> dict[str, Any]:
    firing = PerformanceAlert.objects.filter(is_active=True, is_triggered=True)
    names = list(firing.order_by("name").values_list("name", flat=True)[:50])
    note = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
    looked_at = names or PerformanceAlert.objects.exclude(last_measured=None).exists()
    return _card(
        "Firing alerts",
        str(len(names)) if names or looked_at else NOTHING,
        note or ("no rule fires" if looked_at else "no rule was evaluated yet: start a worker"),
        "monitoring_performancealert",
        "?is_triggered__exact=1",
        alarm=bool(names),
    )
