"""Alerts, policies, logs and summaries as JSON."""

from __future__ import annotations

from typing import Any

from django.utils.timezone import now
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from monitoring.alerts.channels import channel_public, check_channels
from monitoring.alerts.events import AN_OPERATOR
from monitoring.alerts.history import Preview
from monitoring.alerts.metrics import METRICS
from monitoring.models import (
    CHANNELS_HELP,
    AlertEvent,
    AuditLogEntry,
    DataRetentionPolicy,
    MaterializedView,
    PerformanceAlert,
    RequestLogEntry,
    ScheduledTask,
    TaskOutcome,
)
from monitoring.retention.tables import RETAINED
from registry.api.base import OwnServerField
from registry.api.callers import caller_of
from registry.api.fields import FiniteFloatField, RoundedField, SafeJSONField
from registry.api.serializers import refuse_changes

__all__ = [
    "AlertEventSerializer",
    "AlertPreviewSerializer",
    "AuditLogSerializer",
    "DatabaseSizeSerializer",
    "IndexUsageSerializer",
    "MaterializedViewSerializer",
    "PerformanceAlertSerializer",
    "PerformanceMetricSerializer",
    "RequestLogSerializer",
    "RequestPerformanceSerializer",
    "RequestSeriesSerializer",
    "RetentionPolicySerializer",
    "RetentionPreviewSerializer",
    "ScheduledTaskSerializer",
    "SlowStatementSerializer",
    "TenantUsageSerializer",
]


ANOTHERS_KEY = f"{AN_OPERATOR}'s API key, or one that is gone"


@extend_schema_field({"type": "array", "items": {"type": "object"}})
class ChannelsField(SafeJSONField):
    """Notification channels. Secrets are written, never shown again.

    Of a webhook's URL the path is for those who may change it.
    """

    def to_representation(self, value: Any) -> Any:
        channels: Any = super().to_representation(value)
        if caller_of(self.context["request"]).has("write"):
            return channels
        return [channel_public(channel) for channel in channels]


# Not an enumeration by itself: an alert from before names were checked shows another one.
@extend_schema_field(
    {"anyOf": [{"type": "string", "enum": list(METRICS)}, {"type": "string", "maxLength": 63}]}
)
class MetricField(serializers.CharField):
    """A metric's name; which there are, the service knows."""


class PerformanceAlertSerializer(serializers.ModelSerializer[PerformanceAlert]):
    server = OwnServerField(
        required=False, allow_null=True, help_text="Null: all servers, for operators only."
    )
    metric_name = MetricField(
        max_length=63,
        help_text="; ".join(f"`{one.name}`: {one.about}" for one in METRICS.values()),
    )
    threshold_value = FiniteFloatField()
    notification_channels = ChannelsField(
        required=False, validators=[check_channels], help_text=CHANNELS_HELP
    )
    state = serializers.CharField(
        read_only=True,
        help_text="off, firing, acknowledged, no data, not evaluated, too few calls, pending or "
        "ok.",
    )

    class Meta:
        model = PerformanceAlert
        fields = [
            "id", "name", "description", "server", "metric_name", "threshold_value",
            "comparison_operator", "duration_minutes", "severity", "is_active", "is_triggered",
            "first_triggered", "last_triggered", "trigger_count", "acknowledged_by",
            "acknowledged_with", "acknowledged_at", "notification_channels", "cooldown_minutes",
            "last_notification",
            "state", "pending_since", "no_data_since", "last_measured", "last_value",
            "created_at", "updated_at",
        ]  # fmt: skip
        read_only_fields = [
            "is_triggered", "first_triggered", "last_triggered", "trigger_count",
            "pending_since", "no_data_since", "last_measured", "last_value", "acknowledged_by",
            "acknowledged_with", "acknowledged_at", "last_notification", "created_at", "updated_at",
        ]  # fmt: skip

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        refuse_changes(self, "server")
        return attrs

    def to_representation(self, alert: PerformanceAlert) -> dict[str, Any]:
        """Who of others than the caller's tenant looks after it is not for the tenant to know."""
        shown: dict[str, Any] = super().to_representation(alert)
        if caller_of(self.context["request"]).runs_gateway:
            return shown
        if shown["acknowledged_by"] and not alert.by_own_user:  # type: ignore[attr-defined]
            return shown | {"acknowledged_by": None, "acknowledged_with": AN_OPERATOR}
        if shown["acknowledged_with"] and not alert.by_own_key:  # type: ignore[attr-defined]
            return shown | {"acknowledged_with": ANOTHERS_KEY}
        return shown


class DeliverySerializer(serializers.Serializer[Any]):
    """One channel that was to be told."""

    channel = serializers.CharField()
    attempts = serializers.IntegerField()
    sent_at = serializers.DateTimeField(allow_null=True)
    error = serializers.CharField(help_text="Of the last attempt; empty: none, or it was sent.")


class PartSerializer(serializers.Serializer[Any]):
    """One server, table or statement beyond the threshold."""

    subject = serializers.CharField()
    value = serializers.FloatField()
    text = serializers.CharField(required=False, help_text="Of a statement: its text.")


class AlertEventSerializer(serializers.ModelSerializer[AlertEvent]):
    alert_name = serializers.CharField(source="alert.name", read_only=True)
    parts = PartSerializer(many=True, read_only=True)
    deliveries = serializers.SerializerMethodField()

    class Meta:
        model = AlertEvent
        fields = [
            "id", "alert", "alert_name", "kind", "occurred_at", "value", "unit", "subject",
            "message", "parts", "deliveries",
        ]  # fmt: skip
        read_only_fields = fields

    @extend_schema_field(DeliverySerializer(many=True))
    def get_deliveries(self, event: AlertEvent) -> Any:
        return DeliverySerializer(list(event.deliveries.values()), many=True).data


class FiringSerializer(serializers.Serializer[Any]):
    since = serializers.DateTimeField()
    until = serializers.DateTimeField(allow_null=True, help_text="Null: it would fire still.")
    worst = serializers.FloatField(help_text="The value furthest along the operator.")


class AlertPreviewSerializer(serializers.Serializer[Any]):
    known_since = serializers.DateTimeField(
        allow_null=True, help_text="Null: nothing is remembered of the metric and the server."
    )
    count = serializers.SerializerMethodField(help_text="How often it would have fired.")
    firings = FiringSerializer(many=True)

    def get_count(self, preview: Preview) -> int:
        return len(preview.firings)


class RetentionPolicySerializer(serializers.ModelSerializer[DataRetentionPolicy]):
    table_name = serializers.ChoiceField(choices=sorted(RETAINED))
    conditions = SafeJSONField(
        required=False,
        help_text='What must hold besides the age: {"column": {"operator": value}}, operators'
        " =, !=, <, <=, >, >=, in, is_null.",
    )

    class Meta:
        model = DataRetentionPolicy
        fields = [
            "id", "name", "description", "table_name", "date_column", "retention_days",
            "batch_size", "conditions", "archive", "is_active", "last_run", "next_run",
            "total_deleted", "last_deleted_count", "avg_execution_time_ms", "last_error",
            "created_at", "updated_at",
        ]  # fmt: skip
        read_only_fields = [
            "last_run", "next_run", "total_deleted", "last_deleted_count",
            "avg_execution_time_ms", "last_error", "created_at", "updated_at",
        ]  # fmt: skip

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        refuse_changes(self, "table_name", "date_column")
        return attrs


class RetentionPreviewSerializer(serializers.Serializer[Any]):
    table = serializers.CharField()
    column = serializers.CharField(help_text="Tells a row's age.")
    before = serializers.DateTimeField(help_text="Rows older than this would go.")
    rows = serializers.IntegerField()
    size_bytes = serializers.IntegerField(help_text="About; with their share of indexes.")
    is_estimate = serializers.BooleanField(help_text="Whether `rows` is the planner's estimate.")
    partitions = serializers.IntegerField(
        allow_null=True, help_text="How many would go whole; null: rows go in batches."
    )


class MaterializedViewSerializer(serializers.ModelSerializer[MaterializedView]):
    indexes = serializers.JSONField(read_only=True)

    class Meta:
        model = MaterializedView
        fields = [
            "id", "name", "description", "query", "indexes", "refresh_strategy",
            "refresh_interval_minutes", "refresh_triggers", "is_active", "last_refreshed",
            "next_refresh", "refresh_count", "avg_refresh_time_ms", "row_count", "size_bytes",
            "last_error", "created_at", "updated_at",
        ]  # fmt: skip
        read_only_fields = [
            "name", "query", "last_refreshed", "next_refresh", "refresh_count",
            "avg_refresh_time_ms", "row_count", "size_bytes", "last_error", "created_at",
            "updated_at",
        ]  # fmt: skip


class ScheduledTaskSerializer(serializers.ModelSerializer[ScheduledTask]):
    state = serializers.SerializerMethodField(
        help_text="running, queued, paused, late, failed, cut off, ok or not run yet."
    )
    is_late = serializers.SerializerMethodField(
        help_text="Due, or without a sign of life, for more than a minute."
    )
    last_outcome = serializers.ChoiceField(
        choices=TaskOutcome.choices, read_only=True, allow_blank=True, help_text="Empty: none yet."
    )

    class Meta:
        model = ScheduledTask
        fields = [
            "id", "name", "description", "schedule", "unit", "state", "is_late", "is_paused",
            "next_run", "running_since", "claimed_by", "last_started", "last_finished",
            "last_duration_ms", "last_outcome", "last_count", "last_error", "runs", "failures",
            "failures_in_a_row", "created_at", "updated_at",
        ]  # fmt: skip
        read_only_fields = sorted(set(fields) - {"is_paused"})

    def get_state(self, task: ScheduledTask) -> str:
        return task.state_at(now())

    def get_is_late(self, task: ScheduledTask) -> bool:
        return task.is_late(now())


class AuditLogSerializer(serializers.ModelSerializer[AuditLogEntry]):
    details = serializers.DictField(read_only=True)

    class Meta:
        model = AuditLogEntry
        fields = [
            "id", "timestamp", "tenant_id", "user_id", "api_key_id", "service_name", "action",
            "resource_type", "resource_id", "details", "request_id", "ip_address", "user_agent",
            "success", "error_message",
        ]  # fmt: skip
        read_only_fields = fields


class RequestLogSerializer(serializers.ModelSerializer[RequestLogEntry]):
    request_metadata = serializers.DictField(read_only=True)

    class Meta:
        model = RequestLogEntry
        fields = [
            "id", "request_time", "request_id", "tenant_id", "user_id", "api_key_id",
            "ip_address", "method", "path", "rpc_method", "tool_name", "target_server_id",
            "status_code", "duration_ms", "upstream_ms", "queue_ms", "request_size_bytes",
            "response_size_bytes", "error_type", "error_message", "protocol_version",
            "request_metadata",
        ]  # fmt: skip
        read_only_fields = fields


class RequestPerformanceSerializer(serializers.Serializer[Any]):
    """Over the window; durations in milliseconds, null where nothing was measured."""

    total_requests = serializers.IntegerField()
    successful_requests = serializers.IntegerField()
    failed_requests = serializers.IntegerField()
    error_rate = RoundedField(places=6, allow_null=True, help_text="0 to 1.")
    avg_duration_ms = RoundedField(places=3, allow_null=True)
    p50_duration_ms = RoundedField(places=3, allow_null=True)
    p95_duration_ms = RoundedField(places=3, allow_null=True)
    p99_duration_ms = RoundedField(places=3, allow_null=True)
    max_duration_ms = RoundedField(places=3, allow_null=True)
    requests_per_minute = RoundedField(places=3)


class TenantUsageSerializer(serializers.Serializer[Any]):
    tenant = serializers.CharField(help_text="Its slug.")
    tenant_id = serializers.UUIDField()
    total_requests = serializers.IntegerField()
    successful_requests = serializers.IntegerField()
    failed_requests = serializers.IntegerField()
    error_rate = RoundedField(places=6, allow_null=True, help_text="0 to 1.")
    avg_duration_ms = RoundedField(places=3, allow_null=True)
    p95_duration_ms = RoundedField(places=3, allow_null=True)
    unique_users = serializers.IntegerField()
    servers_used = serializers.IntegerField()
    tools_used = serializers.IntegerField()
    bytes_out = serializers.IntegerField()
    active_api_keys = serializers.IntegerField()
    registered_servers = serializers.IntegerField()


class DatabaseSizeSerializer(serializers.Serializer[Any]):
    """Sizes in bytes."""

    table_name = serializers.CharField()
    table_size = serializers.IntegerField()
    index_size = serializers.IntegerField()
    total_size = serializers.IntegerField()
    total_size_pretty = serializers.CharField()
    row_estimate = serializers.IntegerField()
    partitions = serializers.IntegerField()
    growth_30d_percent = RoundedField(places=3, allow_null=True)


class IndexUsageSerializer(serializers.Serializer[Any]):
    table_name = serializers.CharField()
    index_name = serializers.CharField()
    index_size = serializers.IntegerField(help_text="Bytes.")
    index_size_pretty = serializers.CharField()
    scans = serializers.IntegerField()
    rows_read = serializers.IntegerField()
    usage_category = serializers.ChoiceField(choices=["Unused", "Low", "Moderate", "High"])
    is_valid = serializers.BooleanField()  # type: ignore[assignment]
    is_unique = serializers.BooleanField()
    is_declared = serializers.BooleanField(allow_null=True)
    definition = serializers.CharField()


class PerformanceMetricSerializer(serializers.Serializer[Any]):
    metric = serializers.CharField()
    subject = serializers.CharField(allow_null=True)
    value = RoundedField(places=6, allow_null=True)
    unit = serializers.CharField(allow_null=True)
    threshold = serializers.FloatField(allow_null=True)
    status = serializers.ChoiceField(choices=["ok", "warning", "critical"], allow_null=True)
    measured_at = serializers.DateTimeField(allow_null=True)


class RequestSeriesSerializer(serializers.Serializer[Any]):
    """Durations in milliseconds; null without calls."""

    bucket = serializers.DateTimeField(help_text="Where the step begins.")
    requests = serializers.IntegerField()
    errors = serializers.IntegerField(help_text="Calls with a status of 400 or above.")  # type: ignore[assignment]
    avg_duration_ms = RoundedField(places=3, allow_null=True)
    p50_duration_ms = RoundedField(places=3, allow_null=True)
    p95_duration_ms = RoundedField(places=3, allow_null=True)
    p99_duration_ms = RoundedField(places=3, allow_null=True)


class SlowStatementSerializer(serializers.Serializer[Any]):
    query_id = serializers.IntegerField(help_text="As pg_stat_statements has it.")
    query = serializers.CharField(help_text="Normalised: $1, $2, … stand for the values.")
    window_calls = serializers.IntegerField(help_text="Between the last two readings.")
    window_mean_ms = RoundedField(places=3)
    calls = serializers.IntegerField(help_text="Since the statistics were reset.")
    taken_at = serializers.DateTimeField()
