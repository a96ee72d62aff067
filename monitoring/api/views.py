"""Alerts, policies, logs and summaries over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar
from uuid import UUID

from django.apps import apps
from django.conf import settings
from django.contrib.auth import get_user_model
from django.db.models import Exists, Func, OuterRef, Q, QuerySet, TextField, Value
from django.utils.functional import cached_property
from django.utils.timezone import now
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.decorators import action
from rest_framework.exceptions import PermissionDenied, ValidationError
from rest_framework.pagination import BasePagination
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from monitoring import queries, services
from monitoring.alerts.history import alert_preview
from monitoring.alerts.prometheus import prometheus_rules
from monitoring.api.filters import (
    AlertEventFilter,
    AlertFilter,
    AuditLogFilter,
    LogFilter,
    RequestLogFilter,
)
from monitoring.api.serializers import (
    AlertEventSerializer,
    AlertPreviewSerializer,
    AuditLogSerializer,
    DatabaseSizeSerializer,
    IndexUsageSerializer,
    MaterializedViewSerializer,
    PerformanceAlertSerializer,
    PerformanceMetricSerializer,
    RequestLogSerializer,
    RequestPerformanceSerializer,
    RequestSeriesSerializer,
    RetentionPolicySerializer,
    RetentionPreviewSerializer,
    ScheduledTaskSerializer,
    SlowStatementSerializer,
    TenantUsageSerializer,
)
from monitoring.models import (
    AlertEvent,
    AuditLogEntry,
    DataRetentionPolicy,
    MaterializedView,
    PerformanceAlert,
    RequestLogEntry,
    ScheduledTask,
)
from monitoring.querysets import AUDIT_INDEXED, REQUESTS_INDEXED, Window, within
from monitoring.retention.preview import preview
from monitoring.schedule import task_run_soon, task_update
from registry.api.base import Changeable, Creatable, Listed, Removable, ScopedViewSet
from registry.api.callers import Caller, actor_of, caller_of
from registry.api.errors import Conflict
from registry.api.filters import refuse_unknown, text_of
from registry.api.pagination import (
    CURSOR,
    PAGE_SIZE,
    PAGE_SIZE_SCHEMA,
    Keyset,
    NewestFirst,
)
from registry.api.schema import table_of
from registry.db.ids import uuid_or_none
from registry.db.search import Indexed
from registry.db.tenancy import operator_transaction
from registry.models import MCPServer, Tenant

__all__ = [
    "HOURS",
    "AlertEventViewSet",
    "AlertRulesViewSet",
    "AuditLogViewSet",
    "DatabaseIndexesView",
    "DatabasePerformanceView",
    "DatabaseSizeView",
    "MaterializedViewViewSet",
    "PerformanceAlertViewSet",
    "RequestLogViewSet",
    "RequestPerformanceView",
    "RetentionPolicyViewSet",
    "ScheduledTaskViewSet",
    "TableView",
    "TenantUsageView",
]

MAX_HOURS = 366 * 24
MOST_STATEMENTS = 50
HOURS = OpenApiParameter(
    "hours",
    {"type": "integer", "minimum": 1, "maximum": MAX_HOURS, "default": 24},
    description="How far back, from now.",
)


class YAMLRenderer(JSONRenderer):
    """Text that is YAML already; an error is an object and goes out as JSON."""

    media_type, format, charset = "application/yaml", "yaml", "utf-8"

    def render(
        self,
        data: Any,
        accepted_media_type: str | None = None,
        renderer_context: Mapping[str, Any] | None = None,
    ) -> bytes:
        if isinstance(data, str):
            return data.encode()
        if renderer_context is not None:
            renderer_context["response"]["Content-Type"] = "application/json"
        return super().render(data, "application/json", renderer_context)


def _with_acknowledgers(
    rows: QuerySet[PerformanceAlert], caller: Caller
) -> QuerySet[PerformanceAlert]:
    """With `by_own_user` and `by_own_key`: whether the caller's tenant acknowledged it."""
    prefix = Func(
        "acknowledged_with",
        Value(r"\(([^()]*)\)$"),
        function="substring",
        output_field=TextField(),
    )
    own = {"tenant_id": caller.tenant_id}
    users = get_user_model().objects.filter(**own, pk=OuterRef("acknowledged_by_id"))
    by_key = Q()
    for label in settings.KEY_MODELS:
        keys = apps.get_model(label).objects.filter(**own, key_prefix=OuterRef("prefix"))
        by_key |= Q(Exists(keys))
    return rows.alias(prefix=prefix).annotate(by_own_user=Exists(users), by_own_key=by_key)


class Alerts(ScopedViewSet[PerformanceAlert]):
    """Alerts on the caller's own servers; those on all servers are the operators'."""

    queryset = PerformanceAlert.objects.none()
    of_gateway = True
    read_scope = "metrics"
    tenant_field = "server__tenant_id"
    server_field = "server"

    def rows(self) -> QuerySet[PerformanceAlert]:
        rows = PerformanceAlert.objects.all()
        return rows if self.caller.runs_gateway else _with_acknowledgers(rows, self.caller)

    def of_tenant(self, rows: QuerySet[PerformanceAlert]) -> QuerySet[PerformanceAlert]:
        own = super().of_tenant(rows)
        return own | rows.filter(server=None) if self.caller.runs_gateway else own


class PerformanceAlertViewSet(Listed, Creatable, Changeable, Removable, Alerts):
    """Rules over the metrics, and whether they fire."""

    serializer_class = PerformanceAlertSerializer
    filterset_class = AlertFilter
    write_scope = "write"

    def made(self, values: dict[str, Any]) -> PerformanceAlert:
        server = values.get("server")
        if server is not None:
            self.check_object_permissions(self.request, server)
        elif not self.caller.runs_gateway:
            raise PermissionDenied("Name one of your servers: operators alone watch all of them.")
        return services.alert_create(actor=actor_of(self.request), **values)

    def changed(self, row: PerformanceAlert, values: dict[str, Any]) -> None:
        services.alert_update(actor=actor_of(self.request), alert=row, **values)

    def removed(self, row: PerformanceAlert) -> None:
        services.alert_delete(actor=actor_of(self.request), alert=row)

    @extend_schema(
        summary="Say that somebody looks after it",
        request=None,
        description="409 when it does not fire, or when somebody does already.",
    )
    @action(detail=True, methods=["post"])
    def acknowledge(self, request: Request, pk: str) -> Response:
        alert = self.get_object()
        done = services.alert_acknowledge(
            actor=actor_of(request),
            alert=alert,
            user_id=self.caller.user_id,
            key=self.caller.key,
            at=now(),
        )
        if not done:
            raise Conflict("The alert does not fire, or it is acknowledged already.")
        return self.answer(alert)

    @extend_schema(
        operation_id="alerts_preview",
        summary="When it would have fired in the last week",
        description="The rule as it is now, held against what is remembered of its metric: of each"
        " five minutes the value furthest along the operator.",
        responses=AlertPreviewSerializer,
    )
    @action(detail=True, methods=["get"])
    def preview(self, request: Request, pk: str) -> Response:
        alert = self.rows().select_related("server__tenant").get(pk=self.get_object().pk)
        with operator_transaction():  # the figures of all servers lie in one table, of no tenant
            found = alert_preview(alert, at=now())
        return Response(AlertPreviewSerializer(found).data)


class AlertRulesViewSet(Alerts):
    """The rules for those who evaluate elsewhere."""

    renderer_classes = [YAMLRenderer]
    pagination_class = None

    @extend_schema(
        operation_id="alerts_prometheus",
        summary="The active alerts as a rule file of Prometheus",
        description="Over the metrics that /metrics gives: mcp_gateway_<metric>{subject=…}.",
        responses={(200, "application/yaml"): OpenApiTypes.OBJECT},
    )
    def prometheus(self, request: Request) -> Response:
        refuse_unknown(request, known=frozenset())
        alerts = self.filter_queryset(self.get_queryset()).filter(is_active=True)
        return Response(prometheus_rules(alerts.select_related("server__tenant").order_by("name")))


class AlertEventViewSet(Listed, ScopedViewSet[AlertEvent]):
    """What happened to the caller's alerts, newest first, and who was told."""

    queryset = AlertEvent.objects.none()
    of_gateway = True
    serializer_class = AlertEventSerializer
    filterset_class = AlertEventFilter
    read_scope = "metrics"
    tenant_field = "alert__server__tenant_id"
    server_field = "alert__server"

    def rows(self) -> QuerySet[AlertEvent]:
        return AlertEvent.objects.select_related("alert")

    def of_tenant(self, rows: QuerySet[AlertEvent]) -> QuerySet[AlertEvent]:
        own = super().of_tenant(rows)
        return own | rows.filter(alert__server=None) if self.caller.runs_gateway else own


class RetentionPolicyViewSet(
    Listed, Creatable, Changeable, Removable, ScopedViewSet[DataRetentionPolicy]
):
    """How long the logs are kept: one policy holds for all tenants."""

    queryset = DataRetentionPolicy.objects.none()
    serializer_class = RetentionPolicySerializer
    read_scope, write_scope = "admin", "admin"
    operators_only = True

    def rows(self) -> QuerySet[DataRetentionPolicy]:
        return DataRetentionPolicy.objects.all()

    def made(self, values: dict[str, Any]) -> DataRetentionPolicy:
        return services.retention_policy_create(actor=actor_of(self.request), **values)

    def changed(self, row: DataRetentionPolicy, values: dict[str, Any]) -> None:
        services.retention_policy_update(actor=actor_of(self.request), policy=row, **values)

    def removed(self, row: DataRetentionPolicy) -> None:
        services.retention_policy_delete(actor=actor_of(self.request), policy=row)

    @extend_schema(
        operation_id="retention_policies_preview",
        summary="What the policy would delete now",
        description="Counted up to 100,000 rows, estimated above; deletes nothing.",
        responses=RetentionPreviewSerializer,
    )
    @action(detail=True, methods=["get"])
    def preview(self, request: Request, pk: str) -> Response:
        return Response(RetentionPreviewSerializer(preview(self.get_object(), at=now())).data)


class MaterializedViewViewSet(Listed, Changeable, ScopedViewSet[MaterializedView]):
    """When the materialised views are refreshed, and what it costs."""

    queryset = MaterializedView.objects.none()
    serializer_class = MaterializedViewSerializer
    read_scope, write_scope = "admin", "admin"
    operators_only = True

    def rows(self) -> QuerySet[MaterializedView]:
        return MaterializedView.objects.all()

    def changed(self, row: MaterializedView, values: dict[str, Any]) -> None:
        services.materialized_view_update(actor=actor_of(self.request), view=row, **values)

    @extend_schema(
        summary="Refresh it soon, whatever its schedule",
        request=None,
        description="The worker does it; `last_refreshed` and `last_error` tell how it went.",
        responses={202: MaterializedViewSerializer},
    )
    @action(detail=True, methods=["post"])
    def refresh(self, request: Request, pk: str) -> Response:
        view = self.get_object()
        services.materialized_view_refresh(actor=actor_of(request), view=view)
        return self.answer(view, status=202)


class ScheduledTaskViewSet(Listed, Changeable, ScopedViewSet[ScheduledTask]):
    """The worker's periodic tasks: when each is due, and how its last run went."""

    queryset = ScheduledTask.objects.none()
    serializer_class = ScheduledTaskSerializer
    read_scope, write_scope = "metrics", "admin"
    operators_only = True

    def rows(self) -> QuerySet[ScheduledTask]:
        return ScheduledTask.objects.all()

    def changed(self, row: ScheduledTask, values: dict[str, Any]) -> None:
        task_update(actor=actor_of(self.request), task=row, **values)

    @extend_schema(
        operation_id="tasks_run",
        summary="Run it soon, whatever its schedule",
        request=None,
        description="A worker does it, after a run that goes on; 409 when the task is paused.",
        responses={202: ScheduledTaskSerializer},
    )
    @action(detail=True, methods=["post"])
    def run(self, request: Request, pk: str) -> Response:
        task = self.get_object()
        if not task_run_soon(actor=actor_of(request), task=task, at=now()):
            raise Conflict("The task is paused. Resume it, or run it with run_maintenance --task.")
        return self.answer(task, status=202)


class LogViewSet(Listed, ScopedViewSet[Any]):
    """A log: read-only, and always within a window of time."""

    read_scope = "metrics"
    tenant_field: ClassVar[str] = "tenant_id"
    time_field: ClassVar[str]
    filterset_class: ClassVar[type[LogFilter]]
    indexed: ClassVar[Indexed]

    @property
    def paginator(self) -> BasePagination | None:
        """Such rows are read along that index; all rows along the primary key."""
        if not hasattr(self, "_paginator") and not self._leading():
            self._paginator: BasePagination = NewestFirst(time_field=self.time_field)
        return super().paginator

    def _leading(self) -> frozenset[str]:
        """The columns by whose index the log is read."""
        return self.indexed.leading((self._asked() | self._opened()) - self.crowded)

    @cached_property
    def crowded(self) -> frozenset[str]:
        """Columns that may not lead: among what their index finds, the caller's rows are rare."""
        return frozenset()

    def _asked(self) -> set[str]:
        """The columns that parameters narrow, besides the time."""
        given = {name for name, value in self.request.query_params.items() if str(value).strip()}
        filters = self.filterset_class.base_filters.items()
        return {one.field_name for name, one in filters if name in given - {"since", "until"}}

    def _opened(self) -> set[str]:
        """The column that get_queryset() narrows."""
        return set() if self.caller.is_operator else {self.tenant_field}

    def paginate_queryset(self, queryset: Any) -> Any:
        self.paginator.walked = self._walked()  # type: ignore[union-attr]
        return super().paginate_queryset(queryset)

    def _walked(self) -> QuerySet[Any] | None:
        """The rows to look through for those that are asked for; see registry.db.search."""
        asked, leading = self._asked(), self._leading()
        if asked <= leading | self._opened() or asked & self.indexed.few:
            return None
        filters = self.filterset_class(self.request.query_params, queryset=self.get_queryset())
        filters.form.is_valid()  # it is: the list has been filtered
        return filters.walked(leading)

    def get_queryset(self) -> QuerySet[Any]:
        """For one entry its id tells the time: one partition is read and not all of them."""
        rows = super().get_queryset()
        if "pk" not in self.kwargs:
            return rows  # a list: its filters set the window
        window = Window.around(UUID(self.kwargs["pk"]))
        return rows.none() if window is None else within(rows, field=self.time_field, window=window)


class NewestAudit(Keyset):
    ordering = ("timestamp", "id")


class NewestRequest(Keyset):
    ordering = ("request_time", "id")


class AuditLogViewSet(LogViewSet):
    """Who changed what, newest first. The last 24 hours, unless a time is given."""

    queryset = AuditLogEntry.objects.none()
    serializer_class = AuditLogSerializer
    filterset_class = AuditLogFilter
    pagination_class = NewestAudit
    time_field = "timestamp"
    indexed = AUDIT_INDEXED

    def rows(self) -> QuerySet[AuditLogEntry]:
        return AuditLogEntry.objects.all()


class RequestLogViewSet(LogViewSet):
    """The calls through the gateway, newest first. The last 24 hours, unless a time is given."""

    queryset = RequestLogEntry.objects.none()
    serializer_class = RequestLogSerializer
    filterset_class = RequestLogFilter
    pagination_class = NewestRequest
    time_field = "request_time"
    indexed = REQUESTS_INDEXED

    @cached_property
    def crowded(self) -> frozenset[str]:
        """A server that is not a tenant's own: most of its calls may be those of others."""
        server = uuid_or_none(self.request.query_params.get("server"))
        if self.caller.is_operator or server is None:
            return frozenset()
        own = MCPServer.objects.filter(pk=server, tenant_id=self.caller.own_tenant_id)
        return frozenset() if own.exists() else frozenset(("target_server_id",))

    def rows(self) -> QuerySet[RequestLogEntry]:
        return RequestLogEntry.objects.all()


class TableView(APIView):
    """A few rows of a SQL function or view, all at once, in the envelope of a list."""

    read_scope: ClassVar[str | None] = None
    parameters: ClassVar[frozenset[str]] = frozenset()

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        refuse_unknown(request, known=self.parameters)

    def envelope(self, rows: list[dict[str, Any]], serializer: Any) -> Response:
        return Response(
            {"next": None, "previous": None, "results": serializer(rows, many=True).data}
        )

    @property
    def hours(self) -> int:
        text = self.request.query_params.get("hours", "24")
        if not (text.isascii() and text.isdigit() and len(text) < 6 and 0 < int(text) <= MAX_HOURS):
            raise ValidationError({"hours": [f"Write a whole number from 1 to {MAX_HOURS}."]})
        return int(text)


class RequestPerformanceView(TableView):
    read_scope = "metrics"
    parameters = frozenset({"hours"})

    @extend_schema(
        operation_id="summaries_request_performance",
        summary="Calls of the last hours",
        description="Of the caller's tenant; of the whole gateway for an operator.",
        parameters=[HOURS],
        responses=RequestPerformanceSerializer,
    )
    def get(self, request: Request) -> Response:
        row = queries.request_performance(hours=self.hours, tenant_id=caller_of(request).tenant_id)
        return Response(RequestPerformanceSerializer(row).data)


class RequestSeriesView(TableView):
    read_scope = "metrics"
    parameters = frozenset({"hours"})

    @extend_schema(
        operation_id="summaries_request_series",
        summary="Calls of the last hours as a series over time",
        description="Of the caller's tenant; of the whole gateway for an operator. Steps of 5 "
        "minutes for an hour, 30 for a day, 3 hours for 7 days (168); the last one is not over.",
        parameters=[OpenApiParameter("hours", int, enum=list(queries.SERIES_STEPS), default=24)],
        responses=table_of(RequestSeriesSerializer),
    )
    def get(self, request: Request) -> Response:
        if self.hours not in queries.SERIES_STEPS:
            known = ", ".join(map(str, queries.SERIES_STEPS))
            raise ValidationError({"hours": [f"Write one of {known}."]})
        tenant_id = caller_of(request).tenant_id
        rows = queries.request_series(hours=self.hours, at=now(), tenant_id=tenant_id)
        return self.envelope(rows, RequestSeriesSerializer)


class TenantUsageView(TableView):
    read_scope = "metrics"
    parameters = frozenset({"hours", "tenant", "cursor", "page_size"})

    @extend_schema(
        operation_id="summaries_tenant_usage",
        summary="What tenants used in the last hours",
        description="The caller's own tenant; for an operator every tenant, newest first.",
        parameters=[
            HOURS,
            OpenApiParameter(
                "tenant",
                {"type": "string", "minLength": 1},
                description="One tenant, by its slug.",
            ),
            OpenApiParameter("cursor", OpenApiTypes.STR, description=CURSOR),
            OpenApiParameter("page_size", PAGE_SIZE_SCHEMA, description=PAGE_SIZE),
        ],
        responses=table_of(TenantUsageSerializer),
    )
    def get(self, request: Request) -> Response:
        hours = self.hours
        tenants = Tenant.objects.all()
        if not caller_of(request).is_operator:
            tenants = tenants.filter(pk=caller_of(request).own_tenant_id)
        if slug := text_of(request, "tenant"):
            tenants = tenants.filter(slug=slug)
        pages = NewestFirst()
        page = pages.paginate_queryset(tenants, request, self)
        rows = queries.tenant_usage(tenant_ids=[tenant.pk for tenant in page], hours=hours)
        return pages.get_paginated_response(TenantUsageSerializer(rows, many=True).data)


class DatabaseSizeView(TableView):
    read_scope = "metrics"
    operators_only = True

    @extend_schema(
        operation_id="database_size",
        summary="What each table weighs",
        responses=table_of(DatabaseSizeSerializer),
    )
    def get(self, _request: Request) -> Response:
        return self.envelope(queries.database_sizes(), DatabaseSizeSerializer)


class DatabaseIndexesView(TableView):
    read_scope = "metrics"
    operators_only = True

    @extend_schema(
        operation_id="database_indexes",
        summary="What each index is used for",
        responses=table_of(IndexUsageSerializer),
    )
    def get(self, _request: Request) -> Response:
        return self.envelope(queries.index_usage(), IndexUsageSerializer)


class DatabasePerformanceView(TableView):
    read_scope = "metrics"
    operators_only = True

    @extend_schema(
        operation_id="database_performance",
        summary="The gateway's figures, as alerts see them",
        responses=table_of(PerformanceMetricSerializer),
    )
    def get(self, _request: Request) -> Response:
        return self.envelope(queries.performance_metrics(), PerformanceMetricSerializer)


class DatabaseStatementsView(TableView):
    read_scope = "metrics"
    operators_only = True

    @extend_schema(
        operation_id="database_statements",
        summary="What the database spent most time on between the worker's last two readings",
        responses=table_of(SlowStatementSerializer),
    )
    def get(self, _request: Request) -> Response:
        rows = queries.slowest_statements(limit=MOST_STATEMENTS)
        return self.envelope(rows, SlowStatementSerializer)
