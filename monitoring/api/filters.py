"""Filters of alerts and logs."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any, ClassVar

import django_filters
from django import forms
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db.models import QuerySet, Subquery
from django.utils.timezone import now
from django_filters.fields import IsoDateTimeField
from django_filters.rest_framework import FilterSet
from drf_spectacular.utils import extend_schema_field

from monitoring.models import (
    AlertEvent,
    AlertEventKind,
    AuditLogEntry,
    PerformanceAlert,
    RequestLogEntry,
    Severity,
)
from monitoring.querysets import Window, within
from registry.api.filters import ChoicesFilter, ExactFilter, IdFilter, TenantFilter, TruthFilter
from registry.models import Tenant

__all__ = ["AlertEventFilter", "AlertFilter", "AuditLogFilter", "LogFilter", "RequestLogFilter"]

# Outside, a day more or less leaves what a datetime can hold.
SENSIBLE = (
    MinValueValidator(datetime(1970, 1, 1, tzinfo=UTC)),
    MaxValueValidator(datetime(9000, 1, 1, tzinfo=UTC)),
)

NO_TIME = {"invalid": "Write a time as ISO 8601 has it, such as 2026-01-31T12:00:00Z."}


class TimeField(IsoDateTimeField):  # type: ignore[misc]
    """A time in UTC: PostgreSQL takes no offset of 16 hours and more."""

    default_validators = SENSIBLE

    def clean(self, value: Any) -> datetime | None:
        at: datetime | None = super().clean(value)
        return at and at.astimezone(UTC)


class TimeFilter(django_filters.IsoDateTimeFilter):  # type: ignore[misc]
    field_class = TimeField

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(error_messages=NO_TIME, **kwargs)


class WindowForm(forms.Form):
    """A window that holds some time; the ends that are left out fit those that are given."""

    def clean(self) -> dict[str, Any]:
        given = super().clean() or self.cleaned_data
        since, until = given.get("since"), given.get("until")
        if since and until and since >= until:
            self.add_error("since", "Write a time before `until`.")
            self.add_error("until", "Write a time after `since`.")
        return given


@extend_schema_field({"type": "integer", "minimum": 100, "maximum": 599})
class StatusFilter(django_filters.NumberFilter):  # type: ignore[misc]
    """Calls by their HTTP status."""

    field_class = forms.IntegerField

    def __init__(self, **kwargs: Any) -> None:
        wanted = "Write a status from 100 to 599, such as 503. All from 500 on: status_min=500."
        errors = dict.fromkeys(("invalid", "min_value", "max_value"), wanted)
        bounds = {"min_value": 100, "max_value": 599}
        super().__init__("status_code", error_messages=errors, **bounds, **kwargs)


class AlertFilter(FilterSet):  # type: ignore[misc]
    tenant = TenantFilter("server__tenant__slug")
    server = IdFilter("server_id", of="a server's")
    metric_name = ExactFilter()
    severity = ChoicesFilter(choices=Severity.choices)
    is_active = TruthFilter()
    is_triggered = TruthFilter()

    class Meta:
        model = PerformanceAlert
        fields: list[str] = []


class AlertEventFilter(FilterSet):  # type: ignore[misc]
    tenant = TenantFilter("alert__server__tenant__slug")
    alert = IdFilter("alert_id", of="an alert's")
    kind = ChoicesFilter(choices=AlertEventKind.choices)

    class Meta:
        model = AlertEvent
        fields: list[str] = []


class LogFilter(FilterSet):  # type: ignore[misc]
    """A log is always read within a window of time.

    Without `since` and `until` it is the last 24 hours, or the time that a `request_id` tells;
    with one of them, the other end is now or 24 hours earlier.
    """

    time_field: ClassVar[str]

    since = TimeFilter(
        method="bound",
        help_text="From this time on (ISO 8601; UTC where no zone is given). Default: 24 hours "
        "before `until`.",
    )
    until = TimeFilter(
        method="bound",
        help_text="Before this time (ISO 8601; UTC where no zone is given). Default: now.",
    )
    tenant = TenantFilter("tenant_id", method="of_tenant")
    user = IdFilter("user_id", of="a user's")
    api_key = IdFilter("api_key_id", of="an API key's")
    request_id = IdFilter(
        "request_id",
        of="a request's",
        help_text="As X-Request-ID gave it. It tells the time, so no window is needed.",
    )

    class Meta:
        form = WindowForm

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

    action = ExactFilter(help_text="Such as server.register.")
    resource_type = ExactFilter(help_text="A table's name, such as mcp_servers.")
    resource_id = ExactFilter()
    success = TruthFilter()

    class Meta(LogFilter.Meta):
        model = AuditLogEntry
        fields: list[str] = []


class RequestLogFilter(LogFilter):
    time_field = "request_time"

    server = IdFilter("target_server_id", of="a server's")
    tool = ExactFilter("tool_name")
    rpc_method = ExactFilter(help_text="Such as tools/call.")
    status = StatusFilter()
    status_min = StatusFilter(lookup_expr="gte", help_text="This status or a higher one.")
    error_type = ExactFilter(help_text="Such as circuit_open.")

    class Meta(LogFilter.Meta):
        model = RequestLogEntry
        fields: list[str] = []
