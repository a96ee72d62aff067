"""Tenants, servers and what they offer, for operators."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db.models import (
    BooleanField,
    Count,
    ExpressionWrapper,
    F,
    OuterRef,
    Q,
    QuerySet,
    Subquery,
)
from django.http import HttpRequest, HttpResponse
from unfold.contrib.filters.admin import (
    AutocompleteSelectFilter,
    BooleanRadioFilter,
    ChoicesDropdownFilter,
)
from unfold.widgets import UnfoldAdminTextareaWidget

from registry import services
from registry.admin_base import (
    NOTHING,
    CheckedModelForm,
    ListedInline,
    LogAdmin,
    OperatorAdmin,
    OwnedRowsMixin,
    ServerRowsMixin,
    ServiceAdmin,
    actor_of,
    byte_size,
    display,
    duration,
    link_to_list,
    link_to_row,
    name_or_id,
    percentage,
)
from registry.admin_filters import TimeWindowFilter
from registry.audit import Actor
from registry.db.search import Indexed
from registry.headers import parse_headers
from registry.models import (
    HealthStatus,
    MCPServer,
    ServerMetric,
    ServerMetricEntry,
    ServerPrompt,
    ServerResource,
    ServerTool,
    SystemConfig,
    Tenant,
    TenantStatus,
    Transport,
)

HEALTH_COLOURS = {
    HealthStatus.HEALTHY: "success",
    HealthStatus.DEGRADED: "warning",
    HealthStatus.UNHEALTHY: "danger",
    HealthStatus.UNKNOWN: "default",
    HealthStatus.MAINTENANCE: "info",
}


class WriteOnlyTextarea(UnfoldAdminTextareaWidget):  # type: ignore[misc]
    """Takes a secret and never gives one back, not even what was typed a moment ago."""

    def format_value(self, value: Any) -> str:  # noqa: ARG002
        return ""


# ---------------------------------------------------------------- tenants


@admin.register(Tenant)
class TenantAdmin(OperatorAdmin):
    list_display = ("name", "slug", "state", "servers_link", "default_access", "created_at")
    list_filter = (("status", ChoicesDropdownFilter),)
    search_fields = ("slug", "name")
    readonly_fields = ("id", "created_at", "updated_at")
    ordering = ("slug",)
    fieldsets = (
        (None, {"fields": (("name", "slug"), "status", "description")}),
        (
            "Settings",
            {
                "fields": ("settings",),
                "description": 'default_access, "allow" or "deny", says whether servers without '
                "a rule may be called; allow is the default.",
            },
        ),
        ("Record", {"fields": (("id", "created_at", "updated_at"),), "classes": ("tab",)}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Tenant]:
        rows: QuerySet[Tenant] = super().get_queryset(request)
        return rows.annotate(_servers=Count("servers"))

    @display(
        description="status",
        ordering="status",
        label={
            TenantStatus.ACTIVE: "success",
            TenantStatus.SUSPENDED: "warning",
            TenantStatus.DISABLED: "danger",
        },
    )
    def state(self, tenant: Tenant) -> str:
        return tenant.get_status_display()

    @display(description="servers", ordering="_servers")
    def servers_link(self, tenant: Tenant) -> str:
        count: int = tenant._servers  # type: ignore[attr-defined]
        return link_to_list("registry_mcpserver", count, tenant__id__exact=tenant.pk)

    @display(description="without a rule")
    def default_access(self, tenant: Tenant) -> str:
        return str(tenant.settings.get("default_access", "allow"))


# ---------------------------------------------------------------- servers


class MCPServerForm(CheckedModelForm):
    """A server's fields, and its credentials as a field that only takes."""

    new_credentials = forms.CharField(
        label="Headers for the server",
        required=False,
        widget=WriteOnlyTextarea({"rows": 3, "autocomplete": "off", "spellcheck": "false"}),
        help_text="One a line, such as Authorization: Bearer … They replace what is stored; "
        "empty keeps it. Stored encrypted and never shown again.",
    )
    forget_credentials = forms.BooleanField(
        label="Forget the stored headers",
        required=False,
        help_text="The server is then called without credentials.",
    )

    told_at = {"credentials": "new_credentials"}

    class Meta:
        model = MCPServer
        fields = "__all__"
        labels = {"endpoint_url": "Address", "transport_type": "Transport", "is_enabled": "Enabled"}
        help_texts = {
            "tenant": "Empty: shared by all tenants.",
            "endpoint_url": "Another scheme, host, port or transport forgets the stored headers, "
            "unless new ones are given.",
        }

    def clean_new_credentials(self) -> dict[str, str]:
        return parse_headers(self.cleaned_data["new_credentials"])

    def clean(self) -> dict[str, Any] | None:
        cleaned = super().clean()
        if self.cleaned_data.get("new_credentials") and self.cleaned_data["forget_credentials"]:
            self.add_error("forget_credentials", "Give new headers or forget the old: not both.")
        return cleaned


class ToolInline(ListedInline):
    model = ServerTool
    fields = readonly_fields = ("name", "is_enabled", "calls", "errors", "average")
    ordering = ("name",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[ServerTool]:
        rows: QuerySet[ServerTool] = super().get_queryset(request)
        return rows.defer("input_schema", "output_schema", "annotations")

    @display(description="calls")
    def calls(self, tool: ServerTool) -> str:
        return f"{tool.total_calls:,}"

    @display(description="errors")
    def errors(self, tool: ServerTool) -> str:
        return f"{tool.error_count:,}"

    @display(description="average time")
    def average(self, tool: ServerTool) -> str:
        return duration(tool.avg_execution_time)


class ResourceInline(ListedInline):
    model = ServerResource
    fields = readonly_fields = ("uri_template", "name", "mime_type", "total_accesses")
    ordering = ("uri_template",)


class PromptInline(ListedInline):
    model = ServerPrompt
    fields = readonly_fields = ("name", "description")
    ordering = ("name",)


@admin.register(MCPServer)
class MCPServerAdmin(ServiceAdmin):
    form = MCPServerForm
    actions = ("enable", "disable", "maintenance_begin", "maintenance_end")
    list_display = (
        "name",
        "slug",
        "tenant_link",
        "health",
        "is_enabled",
        "transport_type",
        "tools_link",
        "response_time",
        "success",
        "last_health_check",
    )
    list_filter = (
        ("health_status", ChoicesDropdownFilter),
        ("transport_type", ChoicesDropdownFilter),
        ("is_enabled", BooleanRadioFilter),
        ("tenant", AutocompleteSelectFilter),
    )
    list_select_related = ("tenant",)
    search_fields = ("slug", "name", "endpoint_url")
    search_help_text = "Slug, name or address"
    autocomplete_fields = ("tenant",)
    ordering = ("slug",)
    readonly_fields = (
        "id",
        "created_at",
        "updated_at",
        "version",
        "health",
        "last_health_check",
        "health_metadata",
        "response_time",
        "success",
        "active_connections",
        "capabilities",
        "protocol_versions",
        "credentials_state",
    )
    inlines = (ToolInline, ResourceInline, PromptInline)
    fieldsets = (
        (
            None,
            {
                "fields": (
                    ("name", "slug"),
                    "tenant",
                    "description",
                    ("endpoint_url", "transport_type"),
                    ("tags", "registry_name"),
                    ("is_enabled", "version"),
                )
            },
        ),
        (
            "Credentials",
            {
                "fields": ("credentials_state", "new_credentials", "forget_credentials"),
                "description": "Sent to the server in place of the caller's own.",
            },
        ),
        (
            "Health",
            {
                "fields": (
                    ("health", "last_health_check"),
                    ("response_time", "success", "active_connections"),
                    "protocol_versions",
                    "capabilities",
                    "health_metadata",
                ),
                "classes": ("tab",),
            },
        ),
        ("Record", {"fields": (("id", "created_at", "updated_at"),), "classes": ("tab",)}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[MCPServer]:
        rows: QuerySet[MCPServer] = super().get_queryset(request)
        is_set = ExpressionWrapper(Q(credentials__isnull=False), output_field=BooleanField())
        # Not read at all: no page shows the credentials, and a lost key must not break the list.
        return rows.defer("credentials").annotate(_tools=Count("tools"), _has_credentials=is_set)

    def changeform_view(
        self, request: HttpRequest, object_id: str | None = None, *args: Any, **kwargs: Any
    ) -> HttpResponse:
        # Django opens its transaction in the next line, and a look-up may take seconds: the
        # typed address is looked up now. What is wrong with it is then told by the form.
        if request.method == "POST":
            request.refusal = self._address_refusal(request, object_id)  # type: ignore[attr-defined]
        return super().changeform_view(request, object_id, *args, **kwargs)

    def _address_refusal(
        self, request: HttpRequest, object_id: str | None
    ) -> ValidationError | None:
        """What speaks against a new address; an unchanged one was checked when it was new."""
        url = request.POST.get("endpoint_url", "").strip()
        transport = request.POST.get("transport_type", "")
        may = self.has_add_permission if object_id is None else self.has_change_permission
        if not url or not may(request) or self._stands(request, object_id, url, transport):
            return None
        try:
            services.address_check(url=url, transport=transport)
        except ValidationError as refusal:
            return refusal
        return None

    def _stands(
        self, request: HttpRequest, object_id: str | None, url: str, transport: str
    ) -> bool:
        row = None if object_id is None else self.get_object(request, object_id)
        if row is None:
            return False
        fixed = row.transport_type == Transport.STDIO  # its command is not editable here
        return fixed or (row.endpoint_url, row.transport_type) == (url, transport)

    def get_fieldsets(self, request: HttpRequest, obj: MCPServer | None = None) -> Any:
        fieldsets = super().get_fieldsets(request, obj)
        if obj is None:  # a server that is being registered has no health yet
            return tuple(part for part in fieldsets if part[0] in (None, "Credentials"))
        if not self.has_change_permission(request, obj):
            shown = {"fields": ("credentials_state",)}
            return tuple((n, shown if n == "Credentials" else f) for n, f in fieldsets)
        return fieldsets

    def get_readonly_fields(self, request: HttpRequest, obj: MCPServer | None = None) -> Any:
        fixed = super().get_readonly_fields(request, obj)
        is_command = obj is not None and obj.transport_type == Transport.STDIO
        return (*fixed, "endpoint_url", "transport_type") if is_command else fixed

    def service_fields(self, form: forms.ModelForm[Any], names: Iterable[str]) -> dict[str, Any]:
        fields = super().service_fields(form, names)
        if headers := form.cleaned_data.get("new_credentials"):
            fields["credentials"] = {"headers": headers}
        elif form.cleaned_data.get("forget_credentials"):
            fields["credentials"] = None
        return fields

    def service_create(self, actor: Actor, fields: dict[str, Any]) -> MCPServer:
        fields["url"] = fields.pop("endpoint_url")
        fields["transport"] = fields.pop("transport_type")
        return services.server_register(actor=actor, address_checked=True, **fields)

    def service_update(self, actor: Actor, row: MCPServer, changes: dict[str, Any]) -> MCPServer:
        # The command of a stdio server is not editable here, so its other fields may change.
        kept = not {"endpoint_url", "transport_type"} & changes.keys()
        return services.server_update(
            actor=actor, server=row, allow_stdio=kept, address_checked=True, **changes
        )

    def service_delete(self, actor: Actor, row: MCPServer) -> None:
        services.server_delete(actor=actor, server=row)

    @admin.action(description="Enable the selected servers", permissions=["change"])
    def enable(self, request: HttpRequest, queryset: QuerySet[MCPServer]) -> None:
        self._set_enabled(request, queryset, enabled=True)

    @admin.action(description="Disable the selected servers", permissions=["change"])
    def disable(self, request: HttpRequest, queryset: QuerySet[MCPServer]) -> None:
        self._set_enabled(request, queryset, enabled=False)

    def _set_enabled(
        self, request: HttpRequest, queryset: QuerySet[MCPServer], *, enabled: bool
    ) -> None:
        actor, word = actor_of(request), "enabled" if enabled else "disabled"
        self.apply(
            request,
            queryset,
            lambda server: services.server_set_enabled(actor=actor, server=server, enabled=enabled),
            done=f"server(s) {word}",
            idle=f"{word} already",
        )

    @admin.action(description="Put the selected servers under maintenance", permissions=["change"])
    def maintenance_begin(self, request: HttpRequest, queryset: QuerySet[MCPServer]) -> None:
        self._set_maintenance(request, queryset, on=True)

    @admin.action(description="End maintenance of the selected servers", permissions=["change"])
    def maintenance_end(self, request: HttpRequest, queryset: QuerySet[MCPServer]) -> None:
        self._set_maintenance(request, queryset, on=False)

    def _set_maintenance(
        self, request: HttpRequest, queryset: QuerySet[MCPServer], *, on: bool
    ) -> None:
        actor, word = actor_of(request), "under" if on else "out of"
        self.apply(
            request,
            queryset,
            lambda server: services.server_set_maintenance(actor=actor, server=server, on=on),
            done=f"server(s) now {word} maintenance",
            idle=f"{word} maintenance already",
        )

    @display(description="health", ordering="health_status", label=HEALTH_COLOURS)
    def health(self, server: MCPServer) -> str:
        return server.get_health_status_display()

    @display(description="tenant", ordering="tenant__slug")
    def tenant_link(self, server: MCPServer) -> str:
        if server.tenant is None:
            return "shared by all"
        return link_to_row("registry_tenant", server.tenant_id, server.tenant.slug)

    @display(description="tools", ordering="_tools")
    def tools_link(self, server: MCPServer) -> str:
        count: int = server._tools  # type: ignore[attr-defined]
        return link_to_list("registry_servertool", count, server__id__exact=server.pk)

    @display(description="response time", ordering="avg_response_time")
    def response_time(self, server: MCPServer) -> str:
        return duration(server.avg_response_time)

    @display(description="success", ordering="success_rate")
    def success(self, server: MCPServer) -> str:
        return percentage(server.success_rate)

    @display(description="stored headers")
    def credentials_state(self, server: MCPServer) -> str:
        return "Set, hidden" if getattr(server, "_has_credentials", False) else "none stored"


# ---------------------------------------------------------------- what servers offer


class OfferedAdmin(OwnedRowsMixin, ServerRowsMixin, OperatorAdmin):
    """What a server lists: written by the sync, so nothing is added or removed by hand."""

    search_fields: tuple[str, ...] = ("name", "server__slug")
    search_help_text = "Name or the server's slug"
    ordering = ("name",)


class ListedOnlyAdmin(OfferedAdmin):
    def has_change_permission(self, *_: Any, **__: Any) -> bool:
        return False


class ServerToolForm(CheckedModelForm):
    class Meta:
        model = ServerTool
        fields = "__all__"
        help_texts = {
            "is_enabled": "A switched-off tool cannot be called through the gateway.",
        }


@admin.register(ServerTool)
class ServerToolAdmin(OfferedAdmin, ServiceAdmin):
    form = ServerToolForm
    list_display = (
        "name",
        "server_link",
        "is_enabled",
        "calls",
        "success",
        "average_time",
        "last_used_at",
    )
    list_filter = (("is_enabled", BooleanRadioFilter), ("server", AutocompleteSelectFilter))
    fieldsets = (
        (None, {"fields": (("name", "server_link"), "title", "description")}),
        ("Operation", {"fields": (("is_enabled", "tags"),)}),
        (
            "Use",
            {
                "fields": (("calls", "success"), ("average_time", "last_used_at")),
                "classes": ("tab",),
            },
        ),
        (
            "Schemas",
            {
                "fields": ("input_schema", "output_schema", "annotations", "schema_hash"),
                "classes": ("tab",),
            },
        ),
    )
    readonly_fields = (
        "name",
        "server_link",
        "title",
        "description",
        "calls",
        "success",
        "average_time",
        "last_used_at",
        "input_schema",
        "output_schema",
        "annotations",
        "schema_hash",
    )

    def service_update(self, actor: Actor, row: ServerTool, changes: dict[str, Any]) -> ServerTool:
        return services.tool_update(actor=actor, tool=row, **changes)

    @display(description="calls", ordering="total_calls")
    def calls(self, tool: ServerTool) -> str:
        return f"{tool.total_calls:,}"

    @display(description="success")
    def success(self, tool: ServerTool) -> str:
        return percentage(tool.success_count / tool.total_calls) if tool.total_calls else NOTHING

    @display(description="average time", ordering="avg_execution_time")
    def average_time(self, tool: ServerTool) -> str:
        return duration(tool.avg_execution_time)


@admin.register(ServerResource)
class ServerResourceAdmin(ListedOnlyAdmin):
    list_display = ("uri_template", "name", "server_link", "mime_type", "accesses", "size")
    list_filter = (("server", AutocompleteSelectFilter),)
    search_fields = ("uri_template", "name", "server__slug")
    ordering = ("uri_template",)
    fields = readonly_fields = (
        "uri_template",
        "name",
        "server_link",
        "description",
        "mime_type",
        "accesses",
        "size",
    )

    @display(description="accesses", ordering="total_accesses")
    def accesses(self, resource: ServerResource) -> str:
        return f"{resource.total_accesses:,}"

    @display(description="average size", ordering="avg_size_bytes")
    def size(self, resource: ServerResource) -> str:
        return byte_size(resource.avg_size_bytes)


@admin.register(ServerPrompt)
class ServerPromptAdmin(ListedOnlyAdmin):
    list_display = ("name", "server_link", "description")
    list_filter = (("server", AutocompleteSelectFilter),)
    fields = readonly_fields = ("name", "server_link", "description", "arguments")


@admin.register(ServerMetricEntry)
class ServerMetricAdmin(LogAdmin):
    log = ServerMetric
    time_field = "timestamp"
    indexed = Indexed((("server__id__exact",),))
    list_display = (
        "timestamp",
        "server_link",
        "response_time",
        "requests",
        "errors",
        "active_connections",
    )
    list_filter = (TimeWindowFilter.over("timestamp"), ("server", AutocompleteSelectFilter))
    fields = (
        "timestamp",
        "server_link",
        ("response_time", "requests", "errors"),
        ("active_connections", "connection_pool_size"),
        "custom_metrics",
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[ServerMetricEntry]:
        # No join: a measurement outlives its server.
        slug = MCPServer.objects.filter(pk=OuterRef("server_id")).values("slug")
        rows: QuerySet[ServerMetricEntry] = super().get_queryset(request)
        return rows.annotate(_slug=Subquery(slug))

    @display(description="server")
    def server_link(self, metric: ServerMetricEntry) -> str:
        return name_or_id("registry_mcpserver", metric.server_id, metric._slug)  # type: ignore[attr-defined]

    @display(description="response time")
    def response_time(self, metric: ServerMetricEntry) -> str:
        return duration(metric.response_time_ms)

    @display(description="requests")
    def requests(self, metric: ServerMetricEntry) -> str:
        rate = metric.requests_per_second
        return NOTHING if rate is None else f"{rate:.3g} / s"

    @display(description="errors")
    def errors(self, metric: ServerMetricEntry) -> str:
        return percentage(metric.error_rate)


# ---------------------------------------------------------------- settings in the database

HIDDEN = "•••••• (hidden)"


class SystemConfigForm(CheckedModelForm):
    """A sensitive value can be replaced, never read."""

    class Meta:
        model = SystemConfig
        fields = "__all__"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.was_hidden = bool(self.instance.pk and self.instance.is_sensitive)
        if self.was_hidden and "value" in self.fields:
            self.initial["value"] = None
            self.fields["value"].required = False
            self.fields["value"].widget = WriteOnlyTextarea({"rows": 2})
            self.fields["value"].help_text = "Hidden. Leave it empty to keep the stored value."

    def clean(self) -> dict[str, Any] | None:
        cleaned = super().clean()
        if self.was_hidden and "value" in self.fields and self.cleaned_data.get("value") is None:
            self._keep_hidden()
        return cleaned

    def _keep_hidden(self) -> None:
        if not self.cleaned_data.get("is_sensitive"):
            self.add_error("value", "A setting that becomes readable needs a new value.")
        self.cleaned_data["value"] = self.instance.value


@admin.register(SystemConfig)
class SystemConfigAdmin(OperatorAdmin):
    form = SystemConfigForm
    audit_noun = "config"
    list_display = ("key", "shown_value", "tenant", "category", "is_sensitive", "version")
    list_filter = (
        "category",
        ("is_sensitive", BooleanRadioFilter),
        ("tenant", AutocompleteSelectFilter),
    )
    list_select_related = ("tenant",)
    search_fields = ("key", "description")
    autocomplete_fields = ("tenant",)
    ordering = ("key",)
    readonly_fields = ("shown_value", "version", "created_at", "updated_at")

    def get_fields(self, request: HttpRequest, obj: SystemConfig | None = None) -> Any:
        editable = obj is None or (
            obj.is_runtime_configurable and self.has_change_permission(request, obj)
        )
        return (
            "key",
            "tenant",
            "value" if editable else "shown_value",
            "description",
            "category",
            ("is_sensitive", "is_runtime_configurable"),
            ("version", "created_at", "updated_at"),
        )

    def get_readonly_fields(
        self,
        request: HttpRequest,  # noqa: ARG002
        obj: SystemConfig | None = None,
    ) -> tuple[str, ...]:
        # What hides a value or fixes it cannot be switched off while the value is fixed.
        fixed = ("is_sensitive", "is_runtime_configurable")
        locked = obj is not None and not obj.is_runtime_configurable
        return self.readonly_fields + (fixed if locked else ())

    def save_model(
        self, request: HttpRequest, obj: Any, form: forms.ModelForm[Any], change: bool
    ) -> None:
        super().save_model(request, obj, form, change)
        if change and form.changed_data:
            SystemConfig.objects.filter(pk=obj.pk).update(version=F("version") + 1)
            obj.refresh_from_db(fields=["version"])

    def audit_changes(self, form: forms.BaseForm) -> dict[str, Any]:
        changes = super().audit_changes(form)
        hidden = getattr(form, "was_hidden", False) or form.cleaned_data.get("is_sensitive")
        if "value" in changes and hidden:
            changes["value"] = "not shown"
        return changes

    @display(description="value")
    def shown_value(self, config: SystemConfig) -> str:
        return HIDDEN if config.is_sensitive else str(config.value)
