"""What monitoring's indexes are for: the query, who runs it, how often.

Every query on a log bounds time at both ends, so that partitions can be pruned.
"""

from datetime import timedelta
from typing import Any

from django.db.models import Model, QuerySet
from django.utils.timezone import now

from monitoring.models import (
    AlertEvent,
    AuditLog,
    DatabaseSizeSnapshot,
    OptimizeRun,
    RequestLog,
    RequestRollupDelta,
    RequestUsageDelta,
    RequestUserDelta,
    StatementSnapshot,
)
from registry.db.catalogue import IndexEntry, sample

# How far the clocks of gateways may differ, and how late a row may be written.
LATENESS = timedelta(minutes=5)


def _last_day(field: str) -> dict[str, Any]:
    return {f"{field}__gte": now() - timedelta(days=1), f"{field}__lt": now()}


def _one_request() -> QuerySet[RequestLog]:
    """By X-Request-ID: a version 7 UUID says when it was made."""
    known = sample(RequestLog, "request_time", "request_id")
    made = known["request_time"] or now()
    span = (made - LATENESS, made + LATENESS)
    return RequestLog.objects.filter(request_id=known["request_id"], request_time__range=span)


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
        query=lambda: AuditLog.objects.filter(
            **sample(AuditLog, "tenant_id", **_last_day("timestamp")), **_last_day("timestamp")
        ).order_by("-timestamp")[:50],
        caller="a tenant's audit trail: the REST API and the admin",
        rate="page views",
    ),
    IndexEntry(
        index="idx_request_logs_tenant_time",
        query=lambda: RequestLog.objects.filter(
            **sample(RequestLog, "tenant_id", **_last_day("request_time")),
            **_last_day("request_time"),
        ).order_by("-request_time")[:50],
        caller="a tenant's requests: the REST API, the edges of its summaries (request_log_part)",
        rate="page views",
    ),
    IndexEntry(
        index="idx_request_logs_request_id",
        query=_one_request,
        caller="support: what happened to the request with this X-Request-ID?",
        rate="some a day",
    ),
    IndexEntry(
        index="idx_request_routing_composite",
        query=_fastest_route,
        caller="nobody yet: the guide's query for the fastest good calls of one route and server",
        rate="never",
    ),
    IndexEntry(
        index="idx_request_logs_time",
        query=lambda: RequestLog.objects.filter(
            request_time__gte=now() - timedelta(minutes=5), request_time__lt=now()
        ),
        caller="the raw rows of all tenants over a few minutes: performance_monitoring, the edges "
        "of get_request_performance_summary",
        rate="each look at the figures",
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
        index="idx_optimize_runs_started_at",
        query=lambda: _oldest(OptimizeRun, "started_at", days=365),
        caller="retention: the next runs to delete; optimize_db --rollback: the newest ones",
        rate="some an hour",
    ),
]
