"""Filters of alerts and logs."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any, ClassVar

import django_filters
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db.models import QuerySet, Subquery
from django.utils.timezone import now
from django_filters.rest_framework import FilterSet

from monitoring.models import (
    AlertEvent,
    AlertEventKind,
    AuditLogEntry,
    PerformanceAlert,
    RequestLogEntry,
    Severity,
)
from monitoring.querysets import Window, within
from registry.api.filters import TenantFilter, TruthFilter
from registry.models import Tenant

__all__ = ["AlertEventFilter", "AlertFilter", "AuditLogFilter", "LogFilter", "RequestLogFilter"]

# Outside, a day more or less leaves what a datetime can hold.
SENSIBLE = (
    MinValueValidator(datetime(1970, 1, 1, tzinfo=UTC)),
    MaxValueValidator(datetime(9000, 1, 1, tzinfo=UTC)),
)


class AlertFilter(FilterSet):  # type: ignore[misc]
    tenant = TenantFilter("server__tenant")
    server = django_filters.UUIDFilter(field_name="server_id", help_text="A server's id.")
    metric_name = django_filters.CharFilter()
    severity = django_filters.MultipleChoiceFilter(choices=Severity.choices)
    is_active = TruthFilter()
    is_triggered = TruthFilter()

    class Meta:
        model = PerformanceAlert
        fields: list[str] = []


class AlertEventFilter(FilterSet):  # type: ignore[misc]
    tenant = TenantFilter("alert__server__tenant")
    alert = django_filters.UUIDFilter(field_name="alert_id", help_text="An alert's id.")
    kind = django_filters.MultipleChoiceFilter(choices=AlertEventKind.choices)

    class Meta:
        model = AlertEvent
        fields: list[str] = []


class LogFilter(FilterSet):  # type: ignore[misc]
    """A log is always read within a window of time.

    Without `since` and `until` it is the last 24 hours, or the time that a `request_id` tells;
    with one of them, the other end is now or 24 hours earlier.
    """

    time_field: ClassVar[str]

    since = django_filters.IsoDateTimeFilter(
        method="bound",
        validators=SENSIBLE,
        help_text="From this time on (ISO 8601). Default: 24 hours before `until`.",
    )
    until = django_filters.IsoDateTimeFilter(
        method="bound",
        validators=SENSIBLE,
        help_text="Before this time (ISO 8601). Default: now.",
    )
    tenant = django_filters.CharFilter(
        "tenant_id", method="of_tenant", help_text="A tenant's slug; of use to operators."
    )
    user = django_filters.UUIDFilter(field_name="user_id")
    api_key = django_filters.UUIDFilter(field_name="api_key_id")
    request_id = django_filters.UUIDFilter(
        help_text="As X-Request-ID gave it. It tells the time, so no window is needed."
    )

    def bound(self, rows: QuerySet[Any], _name: str, _value: datetime) -> QuerySet[Any]:
        return rows  # both ends together, in filter_queryset

    def of_tenant(self, rows: QuerySet[Any], _name: str, slug: str) -> QuerySet[Any]:
        # One id, so that its index gives the rows in order; as one of several it would not.
        return rows.filter(tenant_id=Subquery(Tenant.objects.filter(slug=slug).values("pk")[:1]))

    def filter_queryset(self, queryset: QuerySet[Any]) -> QuerySet[Any]:
        rows = super().filter_queryset(queryset)
        return within(rows, field=self.time_field, window=self._window())

    def walked(self, leading: Collection[str]) -> QuerySet[Any]:
        """The rows of the window that the filters of these columns alone leave; all are valid."""
        rows, given = self.queryset, self.form.cleaned_data
        for name, one in self.filters.items():
            if one.field_name in leading:
                rows = one.filter(rows, given[name])
        return within(rows, field=self.time_field, window=self._window())

    def _window(self) -> Window:
        given = self.form.cleaned_data
        since, until, request_id = (given[name] for name in ("since", "until", "request_id"))
        told = Window.around(request_id) if request_id and not (since or until) else None
        return told or Window.of(since=since, until=until, at=now())


class AuditLogFilter(LogFilter):
    time_field = "timestamp"

    action = django_filters.CharFilter(help_text="Such as server.register.")
    resource_type = django_filters.CharFilter(help_text="A table's name, such as mcp_servers.")
    resource_id = django_filters.CharFilter()
    success = TruthFilter()

    class Meta:
        model = AuditLogEntry
        fields: list[str] = []


class RequestLogFilter(LogFilter):
    time_field = "request_time"

    server = django_filters.UUIDFilter(field_name="target_server_id", help_text="A server's id.")
    tool = django_filters.CharFilter(field_name="tool_name")
    rpc_method = django_filters.CharFilter(help_text="Such as tools/call.")
    status = django_filters.NumberFilter(field_name="status_code", min_value=100, max_value=599)
    status_min = django_filters.NumberFilter(
        field_name="status_code", lookup_expr="gte", min_value=100, max_value=599
    )
    error_type = django_filters.CharFilter(help_text="Such as circuit_open.")

    class Meta:
        model = RequestLogEntry
        fields: list[str] = []
