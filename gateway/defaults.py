"""What every database of the gateway starts with, whoever made it. Safe to repeat.

Rows that exist are left as they are: an operator may have changed them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from django.contrib.auth.models import Group, Permission
from django.db import models, transaction
from django.db.models import Q

from monitoring.audit import Actor, audit_write
from monitoring.matviews import views_describe
from monitoring.models import (
    ComparisonOperator,
    DataRetentionPolicy,
    MaterializedView,
    PerformanceAlert,
    RefreshStrategy,
    Severity,
)
from registry.models import Tenant
from security.models import Role

__all__ = ["DEFAULT_TENANT", "Defaults", "defaults_ensure"]

DEFAULT_TENANT = "default"
Row = TypeVar("Row", bound=models.Model)

APPS = ("registry", "monitoring", "security", "gateway")
# What each role may do in the admin. Staff alone get in; the API goes by scopes, not by groups.
PERMISSIONS: dict[Role, Q] = {
    Role.ADMIN: Q(content_type__app_label__in=APPS),
    Role.USER: Q(content_type__app_label="registry", codename__startswith="view_")
    | Q(content_type__app_label="registry", codename__in=["add_mcpserver", "change_mcpserver"]),
    Role.SERVICE: Q(content_type__app_label="registry", codename__startswith="view_"),
    Role.READONLY: Q(content_type__app_label__in=APPS, codename__startswith="view_"),
}

ALERTS = (
    PerformanceAlert(
        name="Slow statements",
        description="A statement takes more than a second on average.",
        metric_name="slow_statement_ms",
        threshold_value=1000,
    ),
    PerformanceAlert(
        name="Low index usage",
        description="Less than four fifths of the rows read of a large table since yesterday "
        "were found by an index.",
        metric_name="index_usage_percent",
        threshold_value=80,
        comparison_operator=ComparisonOperator.LESS,
        duration_minutes=60,
    ),
    PerformanceAlert(
        name="Fast table growth",
        description="A table grew by more than a fifth within thirty days.",
        metric_name="table_growth_percent",
        threshold_value=20,
        duration_minutes=60,
        severity=Severity.INFO,
    ),
    PerformanceAlert(
        name="Connection pools nearly full",
        description="More than 85 % of the upstream connections of a pool are in use.",
        metric_name="pool_utilisation_percent",
        threshold_value=85,
    ),
    PerformanceAlert(
        name="Open circuit breakers",
        description="At least one server is not called because it failed too often.",
        metric_name="open_breakers",
        threshold_value=0,
        duration_minutes=0,
        severity=Severity.CRITICAL,
    ),
    PerformanceAlert(
        name="Many failing calls",
        description="More than one in twenty calls of the last minutes failed, of twenty or more.",
        metric_name="error_rate",
        threshold_value=0.05,
    ),
    PerformanceAlert(
        name="Slow calls",
        description="One in twenty calls of the last minutes took longer than five seconds, of "
        "twenty or more.",
        metric_name="p95_duration_ms",
        threshold_value=5000,
    ),
    PerformanceAlert(
        name="Long queues",
        description="More than half of what a queue holds by default waits for a connection.",
        metric_name="queue_depth",
        threshold_value=500,
        duration_minutes=1,
    ),
    PerformanceAlert(
        name="Many dead rows",
        description="Vacuum does not keep up: look for old transactions and for its settings.",
        metric_name="dead_rows",
        threshold_value=1_000_000,
        duration_minutes=60,
    ),
    PerformanceAlert(
        name="Long transaction",
        description="A transaction is open for more than five minutes; vacuum waits for its end.",
        metric_name="longest_transaction_seconds",
        threshold_value=300,
        duration_minutes=0,
    ),
    PerformanceAlert(
        name="Standby behind",
        description="A standby is more than a minute behind. Switch it on where there is one.",
        metric_name="replication_lag_seconds",
        threshold_value=60,
        is_active=False,
    ),
    PerformanceAlert(
        name="Transaction ids run out",
        description="A database has used two fifths of its transaction ids or multixacts since "
        "they were last frozen: vacuum does not get through.",
        metric_name="wraparound_percent",
        threshold_value=40,
        duration_minutes=60,
        severity=Severity.CRITICAL,
    ),
    PerformanceAlert(
        name="Partitions are missing",
        description="A log has partitions for less than three days: soon its rows have nowhere to "
        "go. Look at the task partitions_create.",
        metric_name="partition_days_ahead",
        threshold_value=3,
        comparison_operator=ComparisonOperator.LESS,
        duration_minutes=0,
        severity=Severity.CRITICAL,
    ),
    PerformanceAlert(
        name="Failed tasks",
        description="A periodic task has failed and has not gone well since.",
        metric_name="failed_tasks",
        threshold_value=0,
    ),
    PerformanceAlert(
        name="Late tasks",
        description="A periodic task has been due for five minutes, or its run gives no sign of "
        "life: are there enough workers?",
        metric_name="task_late_seconds",
        threshold_value=300,
    ),
    PerformanceAlert(
        name="Invalid indexes",
        description="An index's build was cut off: it costs and serves nobody. Run optimize_db.",
        metric_name="invalid_indexes",
        threshold_value=0,
        duration_minutes=60,
    ),
    PerformanceAlert(
        name="Rollups behind",
        description="The oldest calls that wait for the rollups have waited for five minutes.",
        metric_name="rollup_lag_seconds",
        threshold_value=300,
    ),
    PerformanceAlert(
        name="Log rows in files",
        description="A gateway process cannot bring its log rows to the database.",
        metric_name="spooled_log_rows",
        threshold_value=0,
    ),
    PerformanceAlert(
        name="Log rows lost",
        description="A gateway process dropped log rows in the last hour; the audit log says when.",
        metric_name="lost_log_rows",
        threshold_value=0,
        duration_minutes=0,
        severity=Severity.CRITICAL,
    ),
)
for _alert in ALERTS:
    _alert.notification_channels = [{"type": "log"}]

POLICIES = (
    DataRetentionPolicy(
        name="Request log",
        description="Calls through the gateway.",
        table_name="request_logs",
        date_column="request_time",
        retention_days=90,
    ),
    DataRetentionPolicy(
        name="Audit log",
        description="Who changed what.",
        table_name="audit_logs",
        date_column="timestamp",
        retention_days=365,
    ),
    DataRetentionPolicy(
        name="Server metrics",
        description="What health checks measured.",
        table_name="server_metrics",
        date_column="timestamp",
        retention_days=30,
    ),
    DataRetentionPolicy(
        name="Alert history",
        description="When which alert fired, and who was told.",
        table_name="alert_events",
        date_column="occurred_at",
        retention_days=365,
    ),
    DataRetentionPolicy(
        name="Sessions",
        description="Logins, counted from their end: so long they can still be looked into.",
        table_name="sessions",
        date_column="expires_at",
        retention_days=7,
    ),
    DataRetentionPolicy(
        name="Size snapshots",
        description="What each table weighed a day; growth is told from them.",
        table_name="database_size_snapshots",
        date_column="taken_on",
        retention_days=400,
    ),
    DataRetentionPolicy(
        name="Statement snapshots",
        description="Statements that PostgreSQL has not listed for that long.",
        table_name="statement_snapshots",
        date_column="taken_at",
        retention_days=7,
    ),
    DataRetentionPolicy(
        name="Metric history",
        description="Between which values each metric was in five minutes.",
        table_name="metric_snapshots",
        date_column="bucket",
        retention_days=30,
    ),
    DataRetentionPolicy(
        name="Optimisation runs",
        description="What optimize_db did; an older run cannot be rolled back.",
        table_name="optimize_runs",
        date_column="started_at",
        retention_days=365,
    ),
)

VIEWS = (
    MaterializedView(
        name="tool_leaderboard",
        description="Which tools are used most, and how well they do.",
        refresh_strategy=RefreshStrategy.TRIGGERED,
        refresh_triggers=["server_tools"],
    ),
    MaterializedView(
        name="tenant_daily_usage",
        description="What each tenant used a day, for the last 31 days.",
    ),
    MaterializedView(
        name="server_hourly_health",
        description="What health checks measured an hour, for the last 7 days.",
        refresh_interval_minutes=15,
    ),
)


@dataclass(frozen=True, slots=True)
class Defaults:
    """How many rows were missing and are there now."""

    tenants: int
    groups: int
    alerts: int
    policies: int
    views: int


@transaction.atomic
def defaults_ensure(*, actor: Actor) -> Defaults:
    """Make the default tenant, a group a role, default alerts, policies and refresh schedules."""
    made = Defaults(
        tenants=_tenant(actor),
        groups=_groups(),
        alerts=_missing(PerformanceAlert, ALERTS),
        policies=_missing(DataRetentionPolicy, POLICIES),
        views=_missing(MaterializedView, VIEWS),
    )
    views_describe()
    return made


def _tenant(actor: Actor) -> int:
    _, made = Tenant.objects.get_or_create(
        slug=DEFAULT_TENANT,
        defaults={
            "name": "Default",
            "description": "Who is told of no other tenant uses this.",
            # Its members see figures of the whole gateway; other tenants see their own only.
            "settings": {"runs_gateway": True},
        },
    )
    if made:
        tenant = Tenant.objects.get(slug=DEFAULT_TENANT)
        audit_write(actor=actor, action="tenant.create", resource=tenant)
    return int(made)


def _groups() -> int:
    """A new group gets its role's permissions; an existing one keeps what it was given."""
    made = 0
    for role, wanted in PERMISSIONS.items():
        group, is_new = Group.objects.get_or_create(name=role.value)
        if is_new:
            group.permissions.set(Permission.objects.filter(wanted))
            made += 1
    return made


def _missing(model: type[Row], rows: tuple[Row, ...]) -> int:
    """Insert those whose name is not taken; the unique constraint decides."""
    manager = model._default_manager
    before = manager.count()
    fields = [field.attname for field in model._meta.concrete_fields if not field.primary_key]
    fresh = [model(**{name: getattr(row, name) for name in fields}) for row in rows]
    manager.bulk_create(fresh, ignore_conflicts=True)
    return manager.count() - before
