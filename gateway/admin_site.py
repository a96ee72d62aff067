"""The admin site: who may enter, the sidebar, the pages of figures."""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.templatetags.static import static
from django.urls import URLPattern, path, reverse
from django.utils.text import capfirst
from unfold.sites import UnfoldAdminSite

from gateway.errors import too_many

__all__ = ["GatewayAdminSite", "icon", "script", "sidebar", "style"]

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
        ("monitoring.ScheduledTask", "schedule"),
        ("procrastinate.ProcrastinateJob", "work_history"),
    ),
}


class GatewayAdminSite(UnfoldAdminSite):  # type: ignore[misc]
    """For operators only: every page shows all tenants, so nobody who belongs to one may enter."""

    index_title = "Overview"

    def extra_urls(self) -> list[URLPattern]:
        from gateway.dashboard import views

        return [
            path("database/", self.admin_view(views.database), name="database"),
            path(
                "database/statements/<uuid:snapshot_id>/",
                self.admin_view(views.statement),
                name="statement",
            ),
        ]

    def login(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Django's page; 429 where the form sends somebody away who guesses."""
        response: HttpResponse = super().login(request, extra_context)
        form = (getattr(response, "context_data", None) or {}).get("form")
        if form is not None and (wait := getattr(form, "retry_after", None)):
            [text] = form.non_field_errors()
            return too_many(request, text, wait=wait)
        return response

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
    if request.user.has_perm("monitoring.view_requestlog"):
        groups.insert(0, {"title": "Figures", "collapsible": False, "items": _figures()})
    return groups


def _figures() -> list[dict[str, Any]]:
    pages = (("Overview", "monitoring", "index"), ("Database", "database", "database"))
    return [
        {"title": title, "icon": icon, "link": reverse(f"admin:{name}")}
        for title, icon, name in pages
    ]


def _item(request: HttpRequest, label: str, icon: str) -> dict[str, Any] | None:
    page = admin.site.get_model_admin(apps.get_model(label))
    if not page.has_view_or_change_permission(request):
        return None
    return {
        "title": capfirst(str(page.opts.verbose_name_plural)),
        "icon": icon,
        "link": reverse(f"admin:{page.opts.app_label}_{page.opts.model_name}_changelist"),
    }


def icon(_request: HttpRequest) -> str:
    return static("gateway/icon.svg")


def script(_request: HttpRequest) -> str:
    return static("gateway/admin.js")


def style(_request: HttpRequest) -> str:
    return static("gateway/admin.css")
