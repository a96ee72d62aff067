"""What monitoring's indexes are for: the query, who runs it, how often.

Every query on a log bounds time at both ends, so that partitions can be pruned.
"""

from datetime import timedelta
from typing import Any
from uuid import UUID

from django.db.models import Model, QuerySet
from django.utils.timezone import now

from monitoring.api.filters import AuditLogFilter, RequestLogFilter
from monitoring.api.views import NewestAudit, NewestRequest
from monitoring.models import (
    AlertEvent,
    AuditLog,
    AuditLogEntry,
    DatabaseSizeSnapshot,
    MetricSnapshot,
    OptimizeRun,
    PerformanceAlert,
    RequestLog,
    RequestLogEntry,
    RequestRollupDelta,
    RequestUsageDelta,
    RequestUserDelta,
    StatementSnapshot,
)
from registry.db.catalogue import IndexEntry, sample

_TIME: dict[type[Model], str] = {AuditLog: "timestamp", RequestLog: "request_time"}

# What each evaluation of the alerts changes.
VOLATILE = {PerformanceAlert: {"last_measured", "last_value", "updated_at"}}


def _last_day(field: str) -> dict[str, Any]:
    return {f"{field}__gte": now() - timedelta(days=1), f"{field}__lt": now()}


def _audit(tenant_id: UUID | None = None, **asked: Any) -> QuerySet[AuditLogEntry]:
    """The first page of the REST list; within a day, as it is without a time."""
    rows = AuditLogEntry.objects.all()
    own = rows if tenant_id is None else rows.filter(tenant_id=tenant_id)
    return NewestAudit.first_page(AuditLogFilter(asked, queryset=own).qs)


def _requests(tenant_id: UUID | None = None, **asked: Any) -> QuerySet[RequestLogEntry]:
    rows = RequestLogEntry.objects.all()
    own = rows if tenant_id is None else rows.filter(tenant_id=tenant_id)
    return NewestRequest.first_page(RequestLogFilter(asked, queryset=own).qs)


def _known(model: type[Model], *fields: str) -> dict[str, Any]:
    """As sample(), from the last day of a log."""
    return sample(model, *fields, **_last_day(_TIME[model]))


def _tenant_of(model: type[Model]) -> UUID | None:
    found: UUID | None = _known(model, "tenant_id")["tenant_id"]
    return found


def _fastest_route() -> QuerySet[RequestLog]:
    good = {"status_code__lt": 400, **_last_day("request_time")}
    route = sample(RequestLog, "path", "method", "target_server_id", **good)
    return RequestLog.objects.filter(**route, **good).order_by("duration_ms")[:10]


def _newest_of_tenant(model: type[Model]) -> QuerySet[Any]:
    newest = _last_day("bucket")
    return model._default_manager.filter(**sample(model, "tenant_id", **newest), **newest)


def _oldest(model: type[Model], field: str, *, days: int) -> QuerySet[Any]:
    old = {f"{field}__lt": now() - timedelta(days=days)}
    return model._default_manager.filter(**old).order_by(field)[:1000]


CATALOGUE = [
    IndexEntry(
        index="idx_audit_logs_tenant_time",
        query=lambda: _audit(_tenant_of(AuditLog)),
        tenant=lambda: _tenant_of(AuditLog),
        caller="a tenant's audit trail: the REST API and the admin",
        rate="page views",
    ),
    IndexEntry(
        index="idx_audit_logs_user_time",
        query=lambda: _audit(user=_known(AuditLog, "user_id")["user_id"]),
        caller="what did this user do? the REST list with ?user=",
        rate="some a day",
    ),
    IndexEntry(
        index="idx_audit_logs_resource_time",
        query=lambda: _audit(**_known(AuditLog, "resource_type", "resource_id")),
        caller="what happened to this server, key, …? the REST list with ?resource_type= and "
        "?resource_id=",
        rate="some a day",
    ),
    IndexEntry(
        index="idx_request_logs_tenant_time",
        query=lambda: _requests(_tenant_of(RequestLog)),
        tenant=lambda: _tenant_of(RequestLog),
        caller="a tenant's requests: the REST API, the edges of its summaries (request_log_part)",
        rate="page views",
    ),
    IndexEntry(
        index="idx_request_logs_server_time",
        query=lambda: _requests(server=_known(RequestLog, "target_server_id")["target_server_id"]),
        caller="the calls of one server: the REST list with ?server=, the admin's filter",
        rate="page views",
    ),
    IndexEntry(
        index="idx_request_logs_request_id",
        query=lambda: _requests(request_id=_known(RequestLog, "request_id")["request_id"]),
        caller="support: what happened to the request with this X-Request-ID?",
        rate="some a day",
    ),
    IndexEntry(
        index="idx_request_routing_composite",
        query=_fastest_route,
        caller="nobody: the guide's query for the fastest good calls of one route and server",
        rate="never",
        loses="The duration stands before the time, so that no time bounds a scan: of the calls of "
        "a server it can tell nothing but which ones were fast.",
        sibling="idx_request_logs_server_time",
        costs="100 bytes a row and 167 of the 1,000 bytes of WAL that a row is written with, where "
        "the sibling costs 48 and 85; 93 % of all rows are in it.",
    ),
    IndexEntry(
        index="idx_request_logs_time",
        query=lambda: RequestLog.objects.filter(
            request_time__gte=now() - timedelta(minutes=5), request_time__lt=now()
        ),
        caller="the raw rows of all tenants over a few minutes: the edges of "
        "get_request_performance_summary",
        rate="each summary of all tenants",
    ),
    IndexEntry(
        index="idx_request_rollup_deltas_tenant",
        query=lambda: _newest_of_tenant(RequestRollupDelta),
        caller="request_figures: the calls that are not in the rollups yet",
        rate="each summary",
    ),
    IndexEntry(
        index="idx_request_usage_deltas_tenant",
        query=lambda: _newest_of_tenant(RequestUsageDelta),
        caller="get_tenant_usage_summary: the calls that are not in the rollups yet",
        rate="each summary",
    ),
    IndexEntry(
        index="idx_request_user_deltas_tenant",
        query=lambda: _newest_of_tenant(RequestUserDelta),
        caller="get_tenant_usage_summary: the users that are not in the rollups yet",
        rate="each summary",
    ),
    IndexEntry(
        index="uq_database_size_snapshots_table_day",
        query=lambda: DatabaseSizeSnapshot.objects.filter(
            **sample(DatabaseSizeSnapshot, "table_name"),
            taken_on__lt=now().date(),
        ),
        caller="database_size_summary: what did the table weigh before?",
        rate="each row of the view",
    ),
    IndexEntry(
        index="idx_performance_alerts_server",
        query=lambda: PerformanceAlert.objects.filter(**sample(PerformanceAlert, "server_id")),
        caller="the REST list with ?server=; deleting a server: its alerts go too",
        rate="page views",
    ),
    IndexEntry(
        index="idx_alert_events_alert_newest",
        query=lambda: AlertEvent.objects.filter(**sample(AlertEvent, "alert_id")).order_by("-id")[
            :50
        ],
        caller="one alert's history: the REST API and the admin; deleting an alert",
        rate="page views",
    ),
    IndexEntry(
        index="idx_alert_events_occurred_at",
        query=lambda: _oldest(AlertEvent, "occurred_at", days=365),
        caller="retention: the next events to delete",
        rate="some an hour",
    ),
    IndexEntry(
        index="idx_database_size_snapshots_taken_on",
        query=lambda: _oldest(DatabaseSizeSnapshot, "taken_on", days=390),
        caller="retention: the next readings to delete",
        rate="some an hour",
    ),
    IndexEntry(
        index="idx_statement_snapshots_taken_at",
        query=lambda: _oldest(StatementSnapshot, "taken_at", days=7),
        caller="retention: what to forget next; performance_monitoring: the newest reading",
        rate="some an hour",
    ),
    IndexEntry(
        index="idx_metric_snapshots_bucket",
        query=lambda: _oldest(MetricSnapshot, "bucket", days=29),
        caller="retention: the next figures to delete",
        rate="some an hour",
    ),
    IndexEntry(
        index="idx_optimize_runs_started_at",
        query=lambda: _oldest(OptimizeRun, "started_at", days=365),
        caller="retention: the next runs to delete; optimize_db --rollback: the newest ones",
        rate="some an hour",
    ),
]
