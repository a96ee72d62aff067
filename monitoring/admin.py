"""The logs, which nobody edits, and what watches and trims them."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any, ClassVar, cast
from uuid import UUID

from django import forms
from django.apps import apps
from django.conf import settings
from django.contrib import admin, messages
from django.contrib.auth import get_user_model
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import models
from django.db.models import OuterRef, QuerySet, Subquery
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.urls import URLPattern, path, reverse
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.timezone import now
from django.views.decorators.http import require_POST
from unfold.contrib.filters.admin import (
    AutocompleteSelectFilter,
    BooleanRadioFilter,
    ChoicesDropdownFilter,
    DropdownFilter,
)
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget

from monitoring import services
from monitoring.alerts.channels import channel_public
from monitoring.alerts.history import alert_preview
from monitoring.alerts.metrics import LEAST_CALLS, choices, unknown
from monitoring.alerts.units import written
from monitoring.models import (
    AlertEvent,
    AlertEventKind,
    AuditLog,
    AuditLogEntry,
    DataRetentionPolicy,
    MaterializedView,
    PerformanceAlert,
    RequestLog,
    RequestLogEntry,
    ScheduledTask,
    Severity,
)
from monitoring.querysets import AUDIT_INDEXED, REQUESTS_INDEXED, Window, within
from monitoring.retention.preview import preview_in_words
from monitoring.retention.tables import RETAINED
from monitoring.schedule import task_run_soon, task_update
from registry.admin_base import (
    NOTHING,
    CheckedModelForm,
    LogAdmin,
    NewestFirstMixin,
    OperatorAdmin,
    OwnedRowsMixin,
    ReadOnlyMixin,
    ServiceAdmin,
    actor_of,
    byte_size,
    display,
    duration,
    link_to_list,
    link_to_row,
    name_or_id,
)
from registry.admin_filters import OneOfFilter, TimeWindowFilter, TypedFilter, refused
from registry.audit import Actor
from registry.db.ids import uuid_or_none
from registry.figures import counted
from registry.models import MCPServer, Tenant


class NotedMixin:
    """A sentence above the list: what an operator should know before trusting it."""

    note: ClassVar[str]
    list_before_template = "monitoring/admin_note.html"


# ---------------------------------------------------------------- both logs


def _name_of(model: type[models.Model], column: str, *, by: str) -> Subquery:
    """The name behind a plain id, looked up for the rows of one page by their primary key."""
    found = model._default_manager.filter(pk=OuterRef(by)).values(column)
    return Subquery(found[:1])


class TenantFilter(DropdownFilter):  # type: ignore[misc]
    """One tenant's rows; the log's own index starts with the tenant."""

    title = "tenant"
    parameter_name = "tenant_id"

    def has_output(self) -> bool:
        return True  # without tenants, too: else an address with one would list every row

    def lookups(self, *_: Any) -> list[tuple[str, str]]:
        named = Tenant.objects.order_by("slug").values_list("id", "slug")[:500]
        return [(str(pk), slug) for pk, slug in named]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        text = self.value()
        if not text:
            return queryset
        tenant_id = uuid_or_none(text)
        if tenant_id is None:
            wanted = "In an address a tenant stands by its id, a UUID."
            return refused(request, queryset, title=self.title, text=text, wanted=wanted)
        return queryset.filter(tenant_id=tenant_id)


class IdFilter(TypedFilter):
    """Rows that carry exactly this id."""

    wanted = "Write an id, which is a UUID."

    def parsed(self, text: str) -> UUID | None:
        return uuid_or_none(text)


class WordFilter(TypedFilter):
    """Rows with exactly this word in the column that the parameter is named after."""

    wanted = "No text holds the character NUL."

    @classmethod
    def over(cls, field: str, title: str, *, lookup: str = "exact") -> type[WordFilter]:
        return type(
            "WordFilter", (cls,), {"parameter_name": field, "title": title, "lookup": lookup}
        )

    def parsed(self, text: str) -> str | None:
        return None if "\0" in text else text


def _key_models() -> dict[str, type[models.Model]]:
    """The models of keys, by the annotation that holds the prefix of a row's key."""
    return {f"_key_{n}": apps.get_model(label) for n, label in enumerate(settings.KEY_MODELS)}


def _pages_of(model: type[models.Model]) -> str:
    """The admin's name for a model's pages, such as registry_mcpserver."""
    return f"{model._meta.app_label}_{model._meta.model_name}"


class WhoseLogAdmin(LogAdmin):
    """A log whose rows name a tenant, a user and a key by their ids."""

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows: QuerySet[Any] = super().get_queryset(request)
        return rows.annotate(  # type: ignore[no-any-return]
            _tenant=_name_of(Tenant, "slug", by="tenant_id"),
            _user=_name_of(get_user_model(), "username", by="user_id"),
            **{
                name: _name_of(model, "key_prefix", by="api_key_id")
                for name, model in _key_models().items()
            },
        )

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """The request's id, exactly, near the time it says: text search would read all of a log."""
        if not search_term.strip():
            return queryset, False
        wanted = uuid_or_none(search_term)
        if wanted is None:
            hint = "Write a request's id, as X-Request-ID gave it: a UUID."
            none = refused(request, queryset, title="search", text=search_term, wanted=hint)
            return none, False
        return self.near_search(queryset.filter(request_id=wanted), search_term), False

    def near_search(self, rows: QuerySet[Any], search_term: str) -> QuerySet[Any]:
        """An id says when: not each of the audit log's partitions has to be read for it."""
        wanted = uuid_or_none(search_term)
        near = wanted and Window.around(wanted)
        return within(rows, field=self.time_field, window=near) if near else rows

    @display(description="tenant")
    def tenant_link(self, row: Any) -> str:
        return name_or_id("registry_tenant", row.tenant_id, row._tenant)

    @display(description="user")
    def user_link(self, row: Any) -> str:
        return name_or_id(_pages_of(get_user_model()), row.user_id, row._user)

    @display(description="API key")
    def key_link(self, row: Any) -> str:
        for name, model in _key_models().items():
            if prefix := getattr(row, name):
                return link_to_row(_pages_of(model), row.api_key_id, prefix)
        return str(row.api_key_id or NOTHING)


def _short(row_id: UUID | None) -> str | None:
    """The random end of an id, enough to tell rows apart in a list."""
    return None if row_id is None else f"…{str(row_id)[-8:]}"


# ---------------------------------------------------------------- request log


class OutcomeFilter(OneOfFilter):
    title = "outcome"
    parameter_name = "outcome"
    RANGES = {"ok": (100, 399), "bad": (400, 999), "refused": (400, 499), "failed": (500, 999)}

    def lookups(self, *_: Any) -> list[tuple[str, str]]:
        return [
            ("ok", "Answered (below 400)"),
            ("bad", "Refused or failed (400 and above)"),
            ("refused", "Refused (400 to 499)"),
            ("failed", "Failed (500 and above)"),
        ]

    def chosen(self, rows: QuerySet[Any], choice: str) -> QuerySet[Any]:
        return rows.filter(status_code__range=self.RANGES[choice])


class StatusFilter(TypedFilter):
    """One status code; `outcome` has the classes."""

    title = "status code"
    parameter_name = "status_code"
    wanted = "Write three digits, such as 503; the filter by outcome has whole classes."

    def parsed(self, text: str) -> int | None:
        is_code = text.isascii() and text.isdigit() and len(text) == 3
        return int(text) if is_code else None


class SlownessFilter(OneOfFilter):
    title = "duration"
    parameter_name = "slower"

    def lookups(self, *_: Any) -> list[tuple[str, str]]:
        return [("100", "Over 100 ms"), ("1000", "Over 1 s"), ("10000", "Over 10 s")]

    def chosen(self, rows: QuerySet[Any], choice: str) -> QuerySet[Any]:
        return rows.filter(duration_ms__gt=float(choice))


STATUS_COLOURS = {
    str(code): colour
    for first, colour in ((200, "success"), (300, "info"), (400, "warning"), (500, "danger"))
    for code in range(first, first + 100)
}


class ServerIdFilter(IdFilter):
    title = "server's id"
    parameter_name = "target_server_id"


class KeyIdFilter(IdFilter):
    title = "API key's id"
    parameter_name = "api_key_id"


class UserIdFilter(IdFilter):
    title = "user's id"
    parameter_name = "user_id"


@admin.register(RequestLogEntry)
class RequestLogAdmin(WhoseLogAdmin):
    log = RequestLog
    rows_name = "request logs"
    time_field = "request_time"
    indexed = REQUESTS_INDEXED
    list_display = (
        "request_time",
        "status",
        "rpc",
        "server_link",
        "tenant_link",
        "key_link",
        "took",
        "response_size",
        "error_type",
    )
    list_filter = (
        TimeWindowFilter.over("request_time"),
        TenantFilter,
        OutcomeFilter,
        StatusFilter,
        WordFilter.over("error_type", "error"),
        SlownessFilter,
        WordFilter.over("rpc_method", "method"),
        WordFilter.over("tool_name", "tool"),
        ServerIdFilter,
        KeyIdFilter,
    )
    search_fields = ("request_id",)
    search_help_text = "X-Request-ID of one call"
    fields = (
        ("request_time", "request_id"),
        ("status", "method", "path"),
        ("rpc_method", "tool_name", "protocol_version"),
        ("server_link", "tenant_link"),
        ("user_link", "key_link", "ip_address"),
        ("took", "upstream_took", "queued"),
        ("request_size", "response_size"),
        ("error_type", "error_message"),
        "request_metadata",
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[RequestLogEntry]:
        rows: QuerySet[RequestLogEntry] = super().get_queryset(request)
        return rows.annotate(_server=_name_of(MCPServer, "slug", by="target_server_id"))

    @display(description="status", label=STATUS_COLOURS)
    def status(self, row: RequestLogEntry) -> str:
        return str(row.status_code)

    @display(description="call")
    def rpc(self, row: RequestLogEntry) -> str:
        call = row.rpc_method or f"{row.method} {row.path}"
        return f"{call} {row.tool_name}".strip()

    @display(description="server")
    def server_link(self, row: RequestLogEntry) -> str:
        return name_or_id("registry_mcpserver", row.target_server_id, row._server)  # type: ignore[attr-defined]

    @display(description="took")
    def took(self, row: RequestLogEntry) -> str:
        return duration(row.duration_ms)

    @display(description="of it at the server")
    def upstream_took(self, row: RequestLogEntry) -> str:
        return duration(row.upstream_ms)

    @display(description="of it in the queue")
    def queued(self, row: RequestLogEntry) -> str:
        return duration(row.queue_ms)

    @display(description="request")
    def request_size(self, row: RequestLogEntry) -> str:
        return byte_size(row.request_size_bytes)

    @display(description="answer")
    def response_size(self, row: RequestLogEntry) -> str:
        return byte_size(row.response_size_bytes)


# ---------------------------------------------------------------- audit log


class OriginFilter(OneOfFilter):
    title = "origin"
    parameter_name = "origin"

    def lookups(self, *_: Any) -> list[tuple[str, str]]:
        return [(name, name) for name in ("admin", "api", "cli", "proxy", "worker")]

    def chosen(self, rows: QuerySet[Any], choice: str) -> QuerySet[Any]:
        return rows.filter(service_name=choice)


class SuccessFilter(OneOfFilter):
    title = "result"
    parameter_name = "success"

    def lookups(self, *_: Any) -> list[tuple[str, str]]:
        return [("yes", "Done"), ("no", "Refused or failed")]

    def chosen(self, rows: QuerySet[Any], choice: str) -> QuerySet[Any]:
        return rows.filter(success=choice == "yes")


@admin.register(AuditLogEntry)
class AuditLogAdmin(WhoseLogAdmin):
    log = AuditLog
    rows_name = "audit logs"
    time_field = "timestamp"
    indexed = AUDIT_INDEXED
    list_display = (
        "timestamp",
        "what",
        "result",
        "resource",
        "user_link",
        "key_link",
        "tenant_link",
        "service_name",
        "ip_address",
    )
    list_filter = (
        TimeWindowFilter.over("timestamp"),
        TenantFilter,
        WordFilter.over("action", "action", lookup="startswith"),  # api_key or api_key.create
        SuccessFilter,
        OriginFilter,
        WordFilter.over("resource_type", "resource's table"),
        WordFilter.over("resource_id", "resource's id"),
        UserIdFilter,
    )
    search_fields = ("request_id",)
    search_help_text = "X-Request-ID of one request"
    fields = (
        ("timestamp", "request_id"),
        ("what", "result", "service_name"),
        ("resource", "resource_id"),
        ("user_link", "key_link", "tenant_link"),
        ("ip_address", "user_agent"),
        "error_message",
        "details",
    )

    @display(description="action")
    def what(self, row: AuditLogEntry) -> str:
        return row.action

    @display(description="result", label={"done": "success", "refused": "danger"})
    def result(self, row: AuditLogEntry) -> str:
        return "done" if row.success else "refused"

    @display(description="resource")
    def resource(self, row: AuditLogEntry) -> str:
        if not row.resource_type:
            return _tried(row.details)
        text = str(
            row.details.get("name") or _short(uuid_or_none(row.resource_id)) or row.resource_id
        )
        return name_or_id(_url_name(row.resource_type), row.resource_id, text)


def _tried(details: dict[str, Any]) -> str:
    """As whom somebody wanted to sign in, and how often in that minute."""
    name, count = details.get("username"), details.get("count", 1)
    if not name:
        return NOTHING
    return f"{name} ×{count}" if count > 1 else str(name)


def _url_name(table: str) -> str:
    """The admin's name for a table's pages, such as registry_mcpserver for mcp_servers."""
    for model in apps.get_models():
        if model._meta.db_table == table:
            return _pages_of(model)
    return table


# ---------------------------------------------------------------- alerts


ALERTS_NOTE = (
    "The worker holds active rules against the SQL view performance_monitoring every 30 seconds. "
    "An alert without a server looks at every server, table or statement of its metric."
)
EVENT_COLOURS = {
    AlertEventKind.TRIGGERED: "danger",
    AlertEventKind.REMINDED: "danger",
    AlertEventKind.RESOLVED: "success",
    AlertEventKind.ACKNOWLEDGED: "warning",
    AlertEventKind.NO_DATA: "warning",
    AlertEventKind.MEASURED: "info",
}


# What a rule's past follows from; the rest of a form may still be wrong.
RULE_FIELDS = {
    "server",
    "metric_name",
    "comparison_operator",
    "threshold_value",
    "duration_minutes",
    "cooldown_minutes",
}
PREVIEW = "_preview"
TELLS_NOBODY = "tells nobody"


class MetricField(forms.ChoiceField):
    """One of the metrics that there are; another name is told what is near it."""

    def validate(self, value: str) -> None:
        forms.Field.validate(self, value)
        if not self.valid_value(value):
            raise ValidationError(unknown(value), code="invalid_choice")


class PerformanceAlertForm(CheckedModelForm):
    """Sent by the button Preview it counts as not valid: shown again as typed, never saved."""

    is_preview: ClassVar[bool] = False
    metric_name = MetricField(widget=UnfoldAdminSelectWidget())

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        stored = self.instance.metric_name
        # From before names were checked: the rest of such an alert can be edited still.
        is_gone = stored and unknown(stored)
        gone = [(stored, f"{stored}: there is no such metric")] if is_gone else []
        field = cast("MetricField", self.fields["metric_name"])
        field.choices = [("", "Select value"), *choices(), *gone]

    def is_valid(self) -> bool:
        return super().is_valid() and not self.is_preview


@admin.register(PerformanceAlert)
class PerformanceAlertAdmin(NotedMixin, ServiceAdmin):
    note = ALERTS_NOTE
    form = PerformanceAlertForm
    actions = ("acknowledge",)
    change_form_outer_before_template = "monitoring/alert_firing.html"
    list_display = (
        "name",
        "severity_label",
        "state",
        "condition",
        "value_now",
        "server",
        "tells",
        "last_fired",
    )
    list_filter = (
        ("is_triggered", BooleanRadioFilter),
        ("severity", ChoicesDropdownFilter),
        ("is_active", BooleanRadioFilter),
        ("server", AutocompleteSelectFilter),
    )
    list_select_related = ("server", "acknowledged_by")
    search_fields = ("name", "metric_name")
    autocomplete_fields = ("server",)
    ordering = ("-is_triggered", "name")
    readonly_fields = (
        "state",
        "value_now",
        "last_measured",
        "first_triggered",
        "last_triggered",
        "trigger_count",
        "acknowledged",
        "acknowledged_at",
        "last_notification",
        "history",
        "would_have_fired",
        "channels_shown",
    )
    fieldsets = (
        (
            None,
            {
                "fields": (("name", "severity"), "description", ("server", "is_active")),
                "description": ALERTS_NOTE,
            },
        ),
        (
            "Condition",
            {
                "fields": (
                    "metric_name",
                    ("comparison_operator", "threshold_value"),
                    ("duration_minutes", "cooldown_minutes"),
                    "would_have_fired",
                    "notification_channels",
                ),
                "description": "The metric is one of the view performance_monitoring. Of fewer "
                f"than {LEAST_CALLS} calls in the last minutes, error_rate and p95_duration_ms "
                "say nothing.",
            },
        ),
        (
            "State",
            {
                "fields": (
                    ("state", "value_now", "last_measured"),
                    ("trigger_count", "history"),
                    ("first_triggered", "last_triggered"),
                    ("acknowledged", "acknowledged_at", "last_notification"),
                ),
                "classes": ("tab",),
            },
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[PerformanceAlert]:
        rows: QuerySet[PerformanceAlert] = super().get_queryset(request)
        return rows.select_related("server").defer("server__credentials")

    def save_model(self, request: HttpRequest, obj: models.Model, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        for text in cast("PerformanceAlert", obj).remarks():
            self.message_user(request, f"{obj}: {text}", messages.WARNING)

    def service_create(self, actor: Actor, fields: dict[str, Any]) -> PerformanceAlert:
        return services.alert_create(actor=actor, **fields)

    def service_update(
        self, actor: Actor, row: PerformanceAlert, changes: dict[str, Any]
    ) -> PerformanceAlert:
        return services.alert_update(actor=actor, alert=row, **changes)

    def service_delete(self, actor: Actor, row: PerformanceAlert) -> None:
        services.alert_delete(actor=actor, alert=row)

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(require_POST(self.acknowledge_one))
        name = "monitoring_performancealert_acknowledge"
        return [path("<uuid:alert_id>/acknowledge/", view, name=name), *super().get_urls()]

    def acknowledge_one(self, request: HttpRequest, alert_id: UUID) -> HttpResponse:
        """Say that the operator looks after an alert; back to the page that has the button."""
        alert = get_object_or_404(PerformanceAlert, pk=alert_id)
        if not self.has_change_permission(request, alert):
            raise PermissionDenied
        actor = actor_of(request)
        if services.alert_acknowledge(actor=actor, alert=alert, user_id=actor.user_id, at=now()):
            text = f"You look after {alert.name}: no reminders until it is over."
            self.message_user(request, text, messages.SUCCESS)
        else:
            text = f"{alert.name} does not fire any more, or somebody was faster."
            self.message_user(request, text, messages.INFO)
        return HttpResponseRedirect(_own_page(request) or reverse("admin:index"))

    @admin.action(description="Acknowledge the selected alerts", permissions=["change"])
    def acknowledge(self, request: HttpRequest, queryset: QuerySet[PerformanceAlert]) -> None:
        actor, at = actor_of(request), now()
        self.apply(
            request,
            queryset,
            lambda alert: services.alert_acknowledge(
                actor=actor, alert=alert, user_id=actor.user_id, at=at
            ),
            done="alert(s) acknowledged",
            idle="not firing or acknowledged before",
        )

    def get_fieldsets(self, request: HttpRequest, obj: PerformanceAlert | None = None) -> Any:
        fieldsets = super().get_fieldsets(request, obj)
        if obj is None:
            return fieldsets[:-1]
        return fieldsets if self.has_change_permission(request, obj) else _with_masks(fieldsets)

    def get_form(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        form = super().get_form(request, *args, **kwargs)
        form.is_preview = PREVIEW in request.POST
        return form

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        form, obj = context["adminform"].form, kwargs.get("obj")
        if form.is_preview:
            self._preview(request, form)
        if self.has_change_permission(request, obj) if obj else self.has_add_permission(request):
            context["actions_submit_line"] = [{"action_name": PREVIEW, "description": "Preview"}]
        return cast("HttpResponse", super().render_change_form(request, context, *args, **kwargs))

    def _preview(self, request: HttpRequest, form: Any) -> None:
        """Leave with the form's row what the typed rule would have done in the last week."""
        if RULE_FIELDS & set(form.errors):
            return
        faults = form.instance.rule_faults()
        for field, text in faults.items():
            form.add_error(field, text)
        if not faults:
            form.instance.preview = alert_preview(form.instance, at=now())
            text = f"Not saved yet. With these values: {form.instance.preview}"
            self.message_user(request, text, messages.INFO)

    @display(
        description="severity",
        ordering="severity",
        label={
            Severity.INFO: "info",
            Severity.WARNING: "warning",
            Severity.CRITICAL: "danger",
        },
    )
    def severity_label(self, alert: PerformanceAlert) -> str:
        return alert.get_severity_display()

    @display(
        description="state",
        ordering="is_triggered",
        label={
            "firing": "danger",
            "acknowledged": "warning",
            "no data": "warning",
            "too few calls": "success",
            "pending": "info",
            "ok": "success",
            "not evaluated": "default",
            "off": "default",
        },
    )
    def state(self, alert: PerformanceAlert) -> str:
        return alert.state

    @display(description="tells", label={TELLS_NOBODY: "warning"})
    def tells(self, alert: PerformanceAlert) -> str:
        kinds = dict.fromkeys(str(one["type"]) for one in alert.notification_channels)
        return TELLS_NOBODY if alert.tells_nobody else ", ".join(kinds)

    @display(description="value", ordering="last_value")
    def value_now(self, alert: PerformanceAlert) -> str:
        return alert.value_written

    @display(description="last fired", ordering="last_triggered")
    def last_fired(self, alert: PerformanceAlert) -> str:
        moment = alert.last_triggered
        return NOTHING if moment is None else f"{moment:%Y-%m-%d %H:%M}"

    @display(description="acknowledged by")
    def acknowledged(self, alert: PerformanceAlert) -> str:
        return NOTHING if alert.acknowledged_at is None else alert.acknowledger

    @display(description="history")
    def history(self, alert: PerformanceAlert) -> str:
        return link_to_list("monitoring_alertevent", "events", alert__id__exact=alert.pk)

    @display(description="notification channels")
    def channels_shown(self, alert: PerformanceAlert) -> str:
        return json.dumps([channel_public(one) for one in alert.notification_channels])

    @display(description="in the last week")
    def would_have_fired(self, alert: PerformanceAlert) -> str:
        if typed := getattr(alert, "preview", None):
            return str(typed)
        # What is stored, not what the form just refused.
        stored = PerformanceAlert.objects.select_related("server__tenant").filter(pk=alert.pk)
        if found := stored.first():
            return str(alert_preview(found, at=now()))
        return "Preview, below, holds these values against the last week without saving them."

    @display(description="condition")
    def condition(self, alert: PerformanceAlert) -> str:
        held = f" for {alert.duration_minutes} min" if alert.duration_minutes else ""
        return f"{alert.condition}{held}"


def _own_page(request: HttpRequest) -> str | None:
    """The page that a form names as the next one, unless it is none of this host."""
    wanted = request.POST.get("next", "")
    return wanted if url_has_allowed_host_and_scheme(wanted, allowed_hosts=None) else None


def _with_masks(fieldsets: Any) -> list[Any]:
    """For readers: a webhook's path is often its secret."""
    shown = {"notification_channels": "channels_shown"}
    return [
        (title, {**options, "fields": [shown.get(field, field) for field in options["fields"]]})
        for title, options in fieldsets
    ]


@admin.register(AlertEvent)
class AlertEventAdmin(NewestFirstMixin, OwnedRowsMixin, OperatorAdmin):
    """What happened to which alert, and who was told. Comes and goes with its alert."""

    rows_name = "alert events"
    time_field = "occurred_at"
    list_display = ("occurred_at", "what", "alert_link", "figure", "subject", "told")
    list_filter = (
        ("alert", AutocompleteSelectFilter),
        ("kind", ChoicesDropdownFilter),
    )
    list_select_related = ("alert",)
    fields = (
        ("occurred_at", "what", "alert_link"),
        ("figure", "subject"),
        "message",
        "parts",
        "deliveries",
    )

    def has_change_permission(self, *_: Any, **__: Any) -> bool:
        return False

    @display(description="event", label=EVENT_COLOURS)
    def what(self, event: AlertEvent) -> str:
        return event.get_kind_display()

    @display(description="alert")
    def alert_link(self, event: AlertEvent) -> str:
        return link_to_row("monitoring_performancealert", event.alert_id, event.alert.name)

    @display(description="value")
    def figure(self, event: AlertEvent) -> str:
        return written(event.value, event.unit)

    @display(description="told")
    def told(self, event: AlertEvent) -> str:
        reached = [row["channel"] for row in event.deliveries.values() if row["sent_at"]]
        rest = len(event.deliveries) - len(reached)
        words = [*reached, *([f"{rest} not reached"] if rest else [])]
        return ", ".join(words) or NOTHING


# ---------------------------------------------------------------- retention


class DataRetentionPolicyForm(CheckedModelForm):
    """The table is chosen; the column that tells a row's age follows from it."""

    table_name = forms.ChoiceField(
        choices=[("", "Select value"), *((name, name) for name in RETAINED)],
        widget=UnfoldAdminSelectWidget(),
    )
    date_column = forms.CharField(
        widget=UnfoldAdminTextInputWidget(),
        help_text="; ".join(f"{table}: {column}" for table, column in RETAINED.items()),
    )

    class Meta:
        model = DataRetentionPolicy
        fields = "__all__"


RETENTION_NOTE = (
    "Rows older than a policy keeps them are deleted by the worker, every hour and in small "
    "batches; the logs are partitioned and lose whole partitions, every night. Each policy's page "
    "shows what would go now, as does run_maintenance --task retention_run --dry-run."
)
CONDITIONS_HELP = (
    'Empty ({}): every old row. Otherwise {"column": {"operator": value}}, such as '
    '{"is_active": {"=": false}}; all of it must hold. Operators: = != < <= > >=, '
    "in (a list), is_null (true or false)."
)


@admin.register(DataRetentionPolicy)
class DataRetentionPolicyAdmin(NotedMixin, ServiceAdmin):
    note = RETENTION_NOTE
    form = DataRetentionPolicyForm
    list_display = (
        "name",
        "table_name",
        "kept",
        "state",
        "last_run",
        "next_run",
        "deleted_last",
        "deleted",
        "took",
    )
    list_filter = (("is_active", BooleanRadioFilter),)
    search_fields = ("name", "table_name")
    ordering = ("name",)
    readonly_fields = (
        "would_go",
        "state",
        "last_error",
        "last_run",
        "next_run",
        "deleted",
        "deleted_last",
        "took",
    )
    fieldsets = (
        (
            None,
            {"fields": (("name", "is_active"), "description"), "description": RETENTION_NOTE},
        ),
        (
            "What is kept",
            {
                "fields": (
                    ("table_name", "date_column"),
                    ("retention_days", "batch_size"),
                    "conditions",
                    "archive",
                ),
                "description": CONDITIONS_HELP,
            },
        ),
        (
            "What goes",
            {
                "fields": (
                    "would_go",
                    ("state", "last_run", "next_run"),
                    "last_error",
                    ("deleted", "deleted_last", "took"),
                ),
            },
        ),
    )

    def get_fieldsets(self, request: HttpRequest, obj: DataRetentionPolicy | None = None) -> Any:
        fieldsets = super().get_fieldsets(request, obj)
        return fieldsets if obj else fieldsets[:-1]

    def service_create(self, actor: Actor, fields: dict[str, Any]) -> DataRetentionPolicy:
        return services.retention_policy_create(actor=actor, **fields)

    def service_update(
        self, actor: Actor, row: DataRetentionPolicy, changes: dict[str, Any]
    ) -> DataRetentionPolicy:
        return services.retention_policy_update(actor=actor, policy=row, **changes)

    def service_delete(self, actor: Actor, row: DataRetentionPolicy) -> None:
        services.retention_policy_delete(actor=actor, policy=row)

    @display(description="kept for", ordering="retention_days")
    def kept(self, policy: DataRetentionPolicy) -> str:
        return f"{policy.retention_days} days"

    @display(description="would go now")
    def would_go(self, policy: DataRetentionPolicy) -> str:
        # What is stored, not what the form just refused.
        stored = DataRetentionPolicy.objects.get(pk=policy.pk)
        return preview_in_words(stored, at=now())

    @display(
        description="state",
        label={"ok": "success", "failed": "danger", "not run yet": "info", "off": "default"},
    )
    def state(self, policy: DataRetentionPolicy) -> str:
        if not policy.is_active:
            return "off"
        if policy.last_error:
            return "failed"
        return "ok" if policy.last_run else "not run yet"

    @display(description="deleted last", ordering="last_deleted_count")
    def deleted_last(self, policy: DataRetentionPolicy) -> str:
        return f"{policy.last_deleted_count:,} rows"

    @display(description="deleted so far", ordering="total_deleted")
    def deleted(self, policy: DataRetentionPolicy) -> str:
        return f"{policy.total_deleted:,} rows"

    @display(description="average run", ordering="avg_execution_time_ms")
    def took(self, policy: DataRetentionPolicy) -> str:
        return duration(policy.avg_execution_time_ms)


# ---------------------------------------------------------------- periodic tasks


TASKS_NOTE = (
    "Workers run what is due, each task once at a time over all of them; a pause is made up for by "
    "one run. A run that fails is tried again after half a minute, then less and less often."
)


@admin.register(ScheduledTask)
class ScheduledTaskAdmin(NotedMixin, ReadOnlyMixin, OperatorAdmin):
    note = TASKS_NOTE
    actions = ("run_soon", "pause", "resume")
    list_display = (
        "name",
        "state",
        "schedule",
        "next_run",
        "last_started",
        "took",
        "dealt_with",
        "description",
    )
    list_filter = (("is_paused", BooleanRadioFilter),)
    search_fields = ("name",)
    ordering = ("name",)
    fields = (
        ("name", "schedule"),
        "description",
        ("state", "next_run", "running_since", "claimed_by"),
        ("last_started", "last_finished", "took", "dealt_with"),
        ("runs", "failures", "failures_in_a_row"),
        "last_error",
    )

    def has_run_permission(self, request: HttpRequest) -> bool:
        """Nobody edits a row; whoever may change tasks may have them run."""
        return bool(request.user.has_perm("monitoring.change_scheduledtask"))

    @admin.action(description="Run the selected tasks now", permissions=["run"])
    def run_soon(self, request: HttpRequest, queryset: QuerySet[ScheduledTask]) -> None:
        actor, at = actor_of(request), now()
        self.apply(
            request,
            queryset,
            lambda task: task_run_soon(actor=actor, task=task, at=at),
            done="task(s) wait for a worker",
            idle="paused: resume them first",
        )

    @admin.action(description="Pause the selected tasks", permissions=["run"])
    def pause(self, request: HttpRequest, queryset: QuerySet[ScheduledTask]) -> None:
        self._set_paused(request, queryset, is_paused=True)

    @admin.action(description="Resume the selected tasks", permissions=["run"])
    def resume(self, request: HttpRequest, queryset: QuerySet[ScheduledTask]) -> None:
        self._set_paused(request, queryset, is_paused=False)

    def _set_paused(
        self, request: HttpRequest, queryset: QuerySet[ScheduledTask], *, is_paused: bool
    ) -> None:
        actor, tasks = actor_of(request), list(queryset)
        for task in tasks:
            task_update(actor=actor, task=task, is_paused=is_paused)
        word = "paused" if is_paused else "resumed"
        self.message_user(request, f"{len(tasks)} task(s) {word}.", messages.SUCCESS)

    @display(
        description="state",
        label={
            "ok": "success",
            "running": "info",
            "queued": "info",
            "not run yet": "default",
            "paused": "warning",
            "late": "danger",
            "failed": "danger",
            "cut off": "danger",
        },
    )
    def state(self, task: ScheduledTask) -> str:
        return task.state_at(now())

    @display(description="last run took", ordering="last_duration_ms")
    def took(self, task: ScheduledTask) -> str:
        return duration(task.last_duration_ms)

    @display(description="dealt with", ordering="last_count")
    def dealt_with(self, task: ScheduledTask) -> str:
        return NOTHING if task.last_count is None else counted(task.last_count, task.unit)


# ---------------------------------------------------------------- materialised views


VIEWS_NOTE = (
    "The worker refreshes the views: on a schedule, some seconds after one of their trigger "
    "tables changed (and no later than the interval), or when asked here. Readers go on; a "
    "refresh that fails leaves the data as they were."
)


@admin.register(MaterializedView)
class MaterializedViewAdmin(NotedMixin, ServiceAdmin):
    note = VIEWS_NOTE
    actions = ("refresh",)
    list_display = (
        "name",
        "refresh_strategy",
        "interval",
        "freshness",
        "last_refreshed",
        "next_refresh",
        "rows",
        "size",
        "took",
    )
    list_filter = (("refresh_strategy", ChoicesDropdownFilter), ("is_active", BooleanRadioFilter))
    search_fields = ("name",)
    ordering = ("name",)
    readonly_fields = (
        "name",
        "query",
        "indexes",
        "freshness",
        "last_error",
        "last_refreshed",
        "next_refresh",
        "refresh_count",
        "rows",
        "size",
        "took",
    )
    fieldsets = (
        (None, {"fields": (("name", "is_active"), "description"), "description": VIEWS_NOTE}),
        (
            "Refresh",
            {
                "fields": (
                    ("refresh_strategy", "refresh_interval_minutes"),
                    "refresh_triggers",
                )
            },
        ),
        (
            "State",
            {
                "fields": (
                    ("freshness", "last_refreshed", "next_refresh"),
                    "last_error",
                    ("rows", "size", "took", "refresh_count"),
                )
            },
        ),
        (
            "Definition",
            {
                "fields": ("query", "indexes"),
                "description": "From the SQL files of the release; not editable.",
                "classes": ("tab",),
            },
        ),
    )

    def has_add_permission(self, request: HttpRequest) -> bool:  # noqa: ARG002
        return False

    def has_delete_permission(self, *_: Any, **__: Any) -> bool:
        return False

    def service_update(
        self, actor: Actor, row: MaterializedView, changes: dict[str, Any]
    ) -> MaterializedView:
        return services.materialized_view_update(actor=actor, view=row, **changes)

    @display(description="every", ordering="refresh_interval_minutes")
    def interval(self, view: MaterializedView) -> str:
        return duration(view.refresh_interval_minutes * 60_000)

    @admin.action(description="Refresh the selected views now", permissions=["change"])
    def refresh(self, request: HttpRequest, queryset: QuerySet[MaterializedView]) -> None:
        actor, views = actor_of(request), list(queryset)
        for view in views:
            services.materialized_view_refresh(actor=actor, view=view)
        self.message_user(request, f"{len(views)} view(s) wait for the worker.", messages.SUCCESS)

    @display(
        description="state",
        label={
            "fresh": "success",
            "never refreshed": "info",
            "overdue": "warning",
            "failed": "danger",
            "off": "default",
        },
    )
    def freshness(self, view: MaterializedView) -> str:
        if not view.is_active:
            return "off"
        if view.last_error:
            return "failed"
        if view.last_refreshed is None:
            return "never refreshed"
        late = view.next_refresh and view.next_refresh < now() - timedelta(minutes=1)
        return "overdue" if late else "fresh"

    @display(description="rows", ordering="row_count")
    def rows(self, view: MaterializedView) -> str:
        return NOTHING if view.row_count is None else f"{view.row_count:,}"

    @display(description="size", ordering="size_bytes")
    def size(self, view: MaterializedView) -> str:
        return byte_size(view.size_bytes)

    @display(description="average refresh", ordering="avg_refresh_time_ms")
    def took(self, view: MaterializedView) -> str:
        return duration(view.avg_refresh_time_ms)
