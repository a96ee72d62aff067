"""What is remembered and watched: logs, alerts, retention, materialised views."""

from __future__ import annotations

from datetime import datetime, timedelta

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import BrinIndex
from django.core.exceptions import ValidationError
from django.core.validators import MinValueValidator
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now
from django.utils.timezone import now

from monitoring.alerts.channels import check_channels
from monitoring.alerts.metrics import metric_of, rule_faults, rule_remark
from monitoring.alerts.rules import Rule
from monitoring.alerts.units import written
from monitoring.retention.tables import relation_of
from monitoring.retention.target import target_of
from registry.db.base import TimestampedModel, UUIDModel, choices_constraint
from registry.db.encryption import EncryptedJSONField
from registry.db.ids import uuid7
from registry.db.indexes import NamedIndex
from registry.db.partitions import PartitionedModel, RangePartitioning
from registry.models import MCPServer

__all__ = [
    "AlertEvent",
    "AlertEventKind",
    "AuditLog",
    "AuditLogEntry",
    "ComparisonOperator",
    "DataRetentionPolicy",
    "DatabaseSizeSnapshot",
    "DeclaredIndex",
    "MaterializedView",
    "MetricSnapshot",
    "OptimizeOutcome",
    "OptimizeRun",
    "PerformanceAlert",
    "RefreshStrategy",
    "RequestLog",
    "RequestLogEntry",
    "RequestRollup",
    "RequestRollupDelta",
    "RequestUsage",
    "RequestUsageDelta",
    "RequestUser",
    "RequestUserDelta",
    "RollupHorizon",
    "ScheduledTask",
    "Severity",
    "StatementSnapshot",
    "TaskOutcome",
]


class AuditColumns(models.Model):
    id = models.UUIDField(default=uuid7, editable=False)
    timestamp = models.DateTimeField(default=now)
    tenant_id = models.UUIDField(null=True)
    user_id = models.UUIDField(null=True)
    api_key_id = models.UUIDField(null=True)
    service_name = models.CharField(max_length=63)
    action = models.CharField(max_length=63)
    resource_type = models.CharField(max_length=63, blank=True)
    resource_id = models.CharField(max_length=255, blank=True)
    details = models.JSONField(default=dict)
    request_id = models.UUIDField(null=True)
    ip_address = models.GenericIPAddressField(null=True)
    user_agent = models.CharField(max_length=512, blank=True)
    success = models.BooleanField(default=True)
    error_message = models.TextField(blank=True)

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return f"{self.action} {self.resource_type} {self.resource_id}".strip()


class AuditLog(AuditColumns, PartitionedModel):  # type: ignore[misc]  # the id is no integer
    """Who did what to which resource. Plain ids: the log outlives what it names."""

    pk = models.CompositePrimaryKey("id", "timestamp")
    objects = models.Manager()

    class PartitioningMeta(RangePartitioning):
        key = ["timestamp"]

    class Meta:
        db_table = "audit_logs"
        verbose_name = "audit log entry"
        verbose_name_plural = "audit log"
        indexes = [
            NamedIndex(fields=["tenant_id", "-timestamp"], name="idx_audit_logs_tenant_time"),
            NamedIndex(fields=["user_id", "-timestamp"], name="idx_audit_logs_user_time"),
            NamedIndex(
                fields=["resource_type", "resource_id", "-timestamp"],
                name="idx_audit_logs_resource_time",
            ),
        ]


class AuditLogEntry(AuditColumns):
    """An entry of the audit log as pages show it; see Note [Two models of a log]."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)

    class Meta:
        managed = False
        default_permissions = ()  # the log's own count
        db_table = "audit_logs"
        verbose_name = "audit log entry"
        verbose_name_plural = "audit log"


class RequestColumns(models.Model):
    id = models.UUIDField(default=uuid7, editable=False)
    request_time = models.DateTimeField(default=now)
    request_id = models.UUIDField(default=uuid7)  # X-Request-ID, made by the gateway
    tenant_id = models.UUIDField(null=True)
    user_id = models.UUIDField(null=True)
    api_key_id = models.UUIDField(null=True)
    ip_address = models.GenericIPAddressField(null=True)
    method = models.CharField(max_length=16)
    path = models.CharField(max_length=512)
    rpc_method = models.CharField(max_length=255, blank=True)
    tool_name = models.CharField(max_length=255, blank=True)
    target_server_id = models.UUIDField(null=True)
    status_code = models.PositiveSmallIntegerField()
    duration_ms = models.FloatField()
    upstream_ms = models.FloatField(null=True)
    queue_ms = models.FloatField(null=True)
    request_size_bytes = models.PositiveBigIntegerField(default=0)
    response_size_bytes = models.PositiveBigIntegerField(default=0)
    error_type = models.CharField(max_length=63, blank=True)
    error_message = models.TextField(blank=True)
    protocol_version = models.CharField(max_length=32, blank=True)
    request_metadata = models.JSONField(default=dict)

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return f"{self.method} {self.path} {self.status_code}"


class RequestLog(RequestColumns, PartitionedModel):  # type: ignore[misc]  # the id is no integer
    """One call through the gateway. Plain ids, no secrets, no bodies."""

    pk = models.CompositePrimaryKey("id", "request_time")
    objects = models.Manager()

    class PartitioningMeta(RangePartitioning):
        key = ["request_time"]

    class Meta:
        db_table = "request_logs"
        verbose_name = "request log entry"
        verbose_name_plural = "request log"
        indexes = [
            NamedIndex(fields=["tenant_id", "-request_time"], name="idx_request_logs_tenant_time"),
            NamedIndex(fields=["request_id"], name="idx_request_logs_request_id"),
            NamedIndex(
                fields=["target_server_id", "-request_time"], name="idx_request_logs_server_time"
            ),
            NamedIndex(
                fields=["path", "method", "target_server_id", "duration_ms", "-request_time"],
                name="idx_request_routing_composite",
                condition=Q(status_code__lt=400),
            ),
            BrinIndex(
                fields=["request_time"],
                name="idx_request_logs_time",
                pages_per_range=32,
                autosummarize=True,
            ),
        ]


class RequestLogEntry(RequestColumns):
    """A call as pages show it; see Note [Two models of a log]."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)

    class Meta:
        managed = False
        default_permissions = ()  # the log's own count
        db_table = "request_logs"
        verbose_name = "request log entry"
        verbose_name_plural = "request log"


# --------------------------------------------------------------------------- rollups of the log
# See Note [Rollups] in rollups.py: a trigger on request_logs writes the deltas, the worker moves
# them into the tables without "delta" in their names, and readers add both.


class Figures(models.Model):
    """What the calls of one tenant in one span of time add up to, in a form that can be added.

    With all bits of the tenant's id set (`queries.STRANGERS`): calls that were refused with a 4xx
    before a key was known. They are among all calls too.
    """

    tenant_id = models.UUIDField(db_comment="The zero UUID: all calls, those of no tenant too.")
    bucket = models.DateTimeField(db_comment="Where the span begins, in UTC.")
    requests = models.BigIntegerField()
    errors = models.BigIntegerField(db_comment="Calls with a status of 400 or above.")
    sum_ms = models.FloatField(db_comment="Sum of durations, in milliseconds.")
    max_ms = models.FloatField(db_comment="The longest duration, in milliseconds.")
    bytes_in = models.BigIntegerField()
    bytes_out = models.BigIntegerField()
    bins = ArrayField(
        models.SmallIntegerField(),
        db_comment="Bins of the durations that occur, ascending; see request_duration_bin().",
    )
    counts = ArrayField(models.BigIntegerField(), db_comment="Calls a bin, in the order of bins.")

    class Meta:
        abstract = True


class RequestRollup(Figures):
    """The figures of a tenant, or of all together, a five minutes, an hour and a day."""

    pk = models.CompositePrimaryKey("tenant_id", "minutes", "bucket")
    minutes = models.SmallIntegerField(db_comment="Length of the span: 5, 60 or 1440.")

    class Meta:
        db_table = "request_rollups"
        db_table_comment = "Calls added up; request_rollup_deltas holds what is not in here yet."

    def __str__(self) -> str:
        return f"{self.tenant_id}, {self.minutes} minutes from {self.bucket:%Y-%m-%d %H:%M}"


class RequestRollupDelta(Figures):
    """The figures of one statement's rows, a tenant and five minutes."""

    id = models.BigAutoField(primary_key=True)
    written_at = models.DateTimeField(
        db_default=Now(), db_comment="Tells how far behind the worker is."
    )

    class Meta:
        db_table = "request_rollup_deltas"
        db_table_comment = "What statements added to request_logs since the worker last took it."
        indexes = [
            NamedIndex(fields=["tenant_id", "bucket"], name="idx_request_rollup_deltas_tenant"),
        ]

    def __str__(self) -> str:
        return f"{self.tenant_id}, 5 minutes from {self.bucket:%Y-%m-%d %H:%M}"


class Seen(models.Model):
    """When within an hour something occurred, so that a window that cuts the hour can tell."""

    tenant_id = models.UUIDField(db_comment="The zero UUID: calls of no tenant.")
    bucket = models.DateTimeField(db_comment="Where the hour begins, in UTC.")
    first_seen = models.DateTimeField(db_comment="The first such call of the hour.")
    last_seen = models.DateTimeField(db_comment="The last such call of the hour.")

    class Meta:
        abstract = True


class Usage(Seen):
    """What the calls of one tenant to one server and tool in one hour add up to."""

    server_id = models.UUIDField(db_comment="The zero UUID: calls that reached no server.")
    tool_name = models.CharField(max_length=255, db_comment="Empty: a call of no tool.")
    requests = models.BigIntegerField()
    errors = models.BigIntegerField(db_comment="Calls with a status of 400 or above.")
    sum_ms = models.FloatField(db_comment="Sum of durations, in milliseconds.")
    max_ms = models.FloatField(db_comment="The longest duration, in milliseconds.")
    bytes_in = models.BigIntegerField()
    bytes_out = models.BigIntegerField()

    class Meta:
        abstract = True


class RequestUsage(Usage):
    """Calls a tenant, server and tool, by the hour."""

    pk = models.CompositePrimaryKey("tenant_id", "bucket", "server_id", "tool_name")

    class Meta:
        db_table = "request_usage"
        db_table_comment = "Calls of servers and tools; request_usage_deltas holds what is new."

    def __str__(self) -> str:
        return f"{self.server_id} {self.tool_name}, hour of {self.bucket:%Y-%m-%d %H:%M}"


class RequestUsageDelta(Usage):
    """The usage in one statement's rows."""

    id = models.BigAutoField(primary_key=True)

    class Meta:
        db_table = "request_usage_deltas"
        db_table_comment = "What statements added to request_logs since the worker last took it."
        indexes = [
            NamedIndex(fields=["tenant_id", "bucket"], name="idx_request_usage_deltas_tenant"),
        ]

    def __str__(self) -> str:
        return f"{self.server_id} {self.tool_name}, hour of {self.bucket:%Y-%m-%d %H:%M}"


class RequestToolDay(models.Model):
    """Calls of a server's tool in a day (UTC), all tenants together: what is called most."""

    pk = models.CompositePrimaryKey("day", "server_id", "tool_name")
    day = models.DateField(db_comment="In UTC.")
    server_id = models.UUIDField(db_comment="The zero UUID: calls that reached no server.")
    tool_name = models.CharField(max_length=255)
    requests = models.BigIntegerField()
    errors = models.BigIntegerField(db_comment="Calls with a status of 400 or above.")
    sum_ms = models.FloatField(db_comment="Sum of durations, in milliseconds.")

    class Meta:
        db_table = "request_tool_days"
        db_table_comment = "Calls of tools by day; request_usage_deltas holds what is new."

    def __str__(self) -> str:
        return f"{self.server_id} {self.tool_name}, {self.day:%Y-%m-%d}"


class RequestUser(Seen):
    """Who of a tenant called in an hour: distinct users over any window are counted from this."""

    pk = models.CompositePrimaryKey("tenant_id", "bucket", "user_id")
    user_id = models.UUIDField()

    class Meta:
        db_table = "request_users"
        db_table_comment = "Users that called; request_user_deltas holds what is new."

    def __str__(self) -> str:
        return f"{self.user_id}, hour of {self.bucket:%Y-%m-%d %H:%M}"


class RequestUserDelta(Seen):
    """The users in one statement's rows."""

    id = models.BigAutoField(primary_key=True)
    user_id = models.UUIDField()

    class Meta:
        db_table = "request_user_deltas"
        db_table_comment = "What statements added to request_logs since the worker last took it."
        indexes = [
            NamedIndex(fields=["tenant_id", "bucket"], name="idx_request_user_deltas_tenant"),
        ]

    def __str__(self) -> str:
        return f"{self.user_id}, hour of {self.bucket:%Y-%m-%d %H:%M}"


class RollupHorizon(models.Model):
    """How far back request_rollups reaches with spans of one length; no row: to the beginning.

    0 minutes stands for the rows of request_logs.
    """

    minutes = models.SmallIntegerField(primary_key=True)
    kept_since = models.DateTimeField(db_comment="Spans of this length are gone before it.")

    class Meta:
        db_table = "request_rollup_horizons"
        db_table_comment = "What request_rollups no longer holds; written by the worker."

    def __str__(self) -> str:
        return f"{self.minutes} minutes since {self.kept_since:%Y-%m-%d}"


CHANNELS_HELP = (
    'A list such as [{"type": "log"}, {"type": "email", "to": ["ops@example.org"]}, '
    '{"type": "webhook", "url": "https://hooks.example.org/alerts", "secret": "…"}].'
)


class ComparisonOperator(models.TextChoices):
    GREATER = ">", "greater than"
    LESS = "<", "less than"
    GREATER_OR_EQUAL = ">=", "at least"
    LESS_OR_EQUAL = "<=", "at most"
    EQUAL = "==", "equal to"


class Severity(models.TextChoices):
    INFO = "info", "Info"
    WARNING = "warning", "Warning"
    CRITICAL = "critical", "Critical"


class PerformanceAlert(UUIDModel, TimestampedModel):
    """A rule over one metric of `performance_monitoring`, and whether it fires now."""

    name = models.CharField(max_length=255)
    description = models.TextField(blank=True)
    server = models.ForeignKey(
        MCPServer, models.CASCADE, null=True, blank=True, related_name="alerts", db_index=False
    )
    metric_name = models.CharField(max_length=63)
    threshold_value = models.FloatField()
    comparison_operator = models.CharField(
        max_length=2, choices=ComparisonOperator, default=ComparisonOperator.GREATER
    )
    duration_minutes = models.PositiveIntegerField(
        default=5, help_text="How long the condition must hold; 0: at once."
    )
    severity = models.CharField(max_length=8, choices=Severity, default=Severity.WARNING)
    is_active = models.BooleanField(default=True)
    is_triggered = models.BooleanField(default=False)
    first_triggered = models.DateTimeField(null=True, blank=True)
    last_triggered = models.DateTimeField(null=True, blank=True)
    trigger_count = models.PositiveIntegerField(default=0)
    # No index: rules are few, and who acknowledged is asked when a user is deleted.
    acknowledged_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        models.SET_NULL,
        null=True,
        blank=True,
        related_name="+",
        db_index=False,
    )
    acknowledged_at = models.DateTimeField(null=True, blank=True)
    # In words: keys are the room's above, and who acknowledged is to be told when they are gone.
    acknowledged_with = models.CharField(
        max_length=320,
        blank=True,
        db_default="",
        editable=False,
        help_text="The API key that said so, by name and prefix; empty: the admin.",
    )
    notification_channels = models.JSONField(
        default=list, blank=True, validators=[check_channels], help_text=CHANNELS_HELP
    )
    # {webhook's URL: secret}; beside the channels, so that nothing that shows those shows these.
    channel_secrets = EncryptedJSONField(null=True, blank=True)
    cooldown_minutes = models.PositiveIntegerField(
        default=60, help_text="Between reminders while it fires; 0: no reminders."
    )
    last_notification = models.DateTimeField(null=True, blank=True)
    # What one evaluation leaves for the next one, see monitoring.alerts.rules.Standing.
    pending_since = models.DateTimeField(null=True, blank=True, editable=False)
    clear_since = models.DateTimeField(null=True, blank=True, editable=False)
    unmeasured_since = models.DateTimeField(null=True, blank=True, editable=False)
    no_data_since = models.DateTimeField(null=True, blank=True, editable=False)
    last_measured = models.DateTimeField(null=True, blank=True, editable=False)
    last_value = models.FloatField(null=True, blank=True, editable=False)

    class Meta:
        db_table = "performance_alerts"
        constraints = [
            models.UniqueConstraint(fields=["name"], name="uq_performance_alerts_name"),
            choices_constraint(
                table="performance_alerts",
                field="comparison_operator",
                choices=ComparisonOperator,
            ),
            choices_constraint(table="performance_alerts", field="severity", choices=Severity),
        ]
        indexes = [
            NamedIndex(
                fields=["server"],
                name="idx_performance_alerts_server",
                condition=Q(server__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return self.name

    def rule(self) -> Rule:
        """The condition as the evaluator takes it."""
        return Rule(
            operator=self.comparison_operator,
            threshold=self.threshold_value,
            duration=timedelta(minutes=self.duration_minutes),
            cooldown=timedelta(minutes=self.cooldown_minutes),
            ceiling=metric_of(self.metric_name).ceiling,
        )

    def rule_faults(self) -> dict[str, str]:
        """Why its rule can never fire, by field; empty when it can."""
        of_server = self.server_id is not None
        return rule_faults(self.metric_name, self.rule(), of_server=of_server)

    def remarks(self) -> list[str]:
        """What somebody who saves it should know, in sentences; none of it is an error.

        A rule that can never fire is refused when it is written, but there are older ones.
        """
        found = [*self.rule_faults().values(), rule_remark(self.metric_name, self.rule())]
        if self.tells_nobody:
            found.append("It tells nobody when it fires: it has no notification channel.")
        return [text for text in found if text]

    @property
    def tells_nobody(self) -> bool:
        return not self.notification_channels

    @property
    def condition(self) -> str:
        """The rule in words, such as 'error_rate > 5 %'."""
        unit = metric_of(self.metric_name).unit
        limit = written(self.threshold_value, unit, is_named=True, in_full=True)
        return f"{self.metric_name} {self.comparison_operator} {limit}"

    @property
    def value_written(self) -> str:
        """The last value in words, with its unit."""
        return written(self.last_value, metric_of(self.metric_name).unit)

    @property
    def is_acknowledged(self) -> bool:
        """An acknowledgement holds for one firing; an older one counts as none."""
        if not self.is_triggered or self.acknowledged_at is None:
            return False
        return self.first_triggered is None or self.acknowledged_at >= self.first_triggered

    @property
    def acknowledger(self) -> str:
        """Who looks after it, in words: somebody's name, their key, or both."""
        names = (str(self.acknowledged_by or ""), self.acknowledged_with)
        return " with ".join(filter(None, names)) or "somebody"

    @property
    def state(self) -> str:
        """off, firing, acknowledged, no data, not evaluated, too few calls, pending or ok."""
        if not self.is_active:
            return "off"
        if self.is_triggered:
            return "acknowledged" if self.is_acknowledged else "firing"
        if self.no_data_since is not None:
            return "no data"
        if self.last_measured is None:
            return "not evaluated"
        if self.last_value is None:
            return "too few calls"
        return "pending" if self.pending_since is not None else "ok"


class AlertEventKind(models.TextChoices):
    TRIGGERED = "triggered", "Triggered"
    REMINDED = "reminded", "Reminded"
    RESOLVED = "resolved", "Resolved"
    ACKNOWLEDGED = "acknowledged", "Acknowledged"
    NO_DATA = "no_data", "No data"
    MEASURED = "measured", "Measured again"


class AlertEvent(UUIDModel):
    """One change of an alert, with the figure that caused it and who was told."""

    # Its index is the composite one below.
    alert = models.ForeignKey(
        PerformanceAlert, models.CASCADE, related_name="events", db_index=False
    )
    occurred_at = models.DateTimeField(default=now)
    kind = models.CharField(max_length=12, choices=AlertEventKind)
    value = models.FloatField(null=True, help_text="Empty: there was nothing to measure.")
    unit = models.CharField(max_length=32, blank=True)
    subject = models.CharField(max_length=255, blank=True)
    message = models.TextField()
    # [{"subject", "value", "text"?}]: the servers, tables or statements beyond the threshold.
    parts = models.JSONField(default=list)
    # {channel's key: {"channel", "attempts", "sent_at", "error"}}
    deliveries = models.JSONField(default=dict)

    class Meta:
        db_table = "alert_events"
        verbose_name_plural = "alert history"
        constraints = [
            choices_constraint(table="alert_events", field="kind", choices=AlertEventKind),
        ]
        indexes = [
            # Also serves the foreign key.
            NamedIndex(fields=["alert", "-id"], name="idx_alert_events_alert_newest"),
            NamedIndex(fields=["occurred_at"], name="idx_alert_events_occurred_at"),
        ]

    def __str__(self) -> str:
        return self.message


class MetricSnapshot(models.Model):
    """Between which values a metric was in five minutes, for looking back with another rule."""

    pk = models.CompositePrimaryKey("metric", "subject", "bucket")
    metric = models.CharField(max_length=63)
    subject = models.CharField(
        max_length=255, db_comment="A server with a rule of its own; empty: over all subjects."
    )
    bucket = models.DateTimeField(db_comment="Where the five minutes begin, in UTC.")
    lowest = models.FloatField()
    highest = models.FloatField()

    class Meta:
        db_table = "metric_snapshots"
        db_table_comment = "What alert passes measured; written by the worker."
        indexes = [NamedIndex(fields=["bucket"], name="idx_metric_snapshots_bucket")]

    def __str__(self) -> str:
        return f"{self.metric} {self.subject} {self.bucket:%Y-%m-%d %H:%M}"


class TaskOutcome(models.TextChoices):
    DONE = "done", "Done"
    FAILED = "failed", "Failed"
    GONE = "gone", "Cut off"  # whoever ran it gave no sign of life


class ScheduledTask(UUIDModel, TimestampedModel):
    """When one periodic task is due, who has it, and how its last run went.

    The task itself is code (see `registry.periodic`); `monitoring.schedule` writes these rows.
    """

    name = models.CharField(max_length=63)
    description = models.CharField(max_length=255, blank=True)
    unit = models.CharField(max_length=63, blank=True, help_text="What is counted.")
    schedule = models.CharField(
        max_length=63, help_text="A cron line in UTC; a sixth field counts seconds."
    )
    is_paused = models.BooleanField(default=False, db_default=False)
    next_run = models.DateTimeField()
    # A claim that waits in the queue or runs. Whoever gives no sign of life loses it at
    # `lease_until`; `claim_id` then keeps the late-comer from writing here.
    claim_id = models.UUIDField(null=True, editable=False)
    claimed_by = models.CharField(max_length=255, blank=True, db_default="")
    lease_until = models.DateTimeField(null=True, editable=False)
    running_since = models.DateTimeField(null=True, blank=True)
    last_started = models.DateTimeField(null=True, blank=True)
    last_finished = models.DateTimeField(null=True, blank=True)
    last_duration_ms = models.FloatField(null=True, blank=True)
    last_outcome = models.CharField(
        max_length=6, choices=TaskOutcome, blank=True, db_default="", help_text="Empty: never ran."
    )
    last_count = models.PositiveBigIntegerField(null=True, blank=True)
    last_error = models.TextField(blank=True, db_default="")
    runs = models.PositiveBigIntegerField(default=0, db_default=0)
    failures = models.PositiveBigIntegerField(default=0, db_default=0)
    failures_in_a_row = models.PositiveIntegerField(default=0, db_default=0)

    class Meta:
        db_table = "periodic_tasks"
        verbose_name = "periodic task"
        constraints = [
            models.UniqueConstraint(fields=["name"], name="uq_periodic_tasks_name"),
            models.CheckConstraint(
                name="ck_periodic_tasks_last_outcome",
                condition=Q(last_outcome__in=["", *TaskOutcome.values]),
            ),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def state(self) -> str:
        """running, queued, paused, failed, cut off, ok or not run yet."""
        if self.running_since is not None:
            return "running"
        if self.claim_id is not None:
            return "queued"
        if self.is_paused:
            return "paused"
        return _TASK_STATES[self.last_outcome]

    @property
    def due_by(self) -> datetime | None:
        """When it is to begin, or give the next sign of life; None: it is paused."""
        if self.running_since is not None:
            return self.lease_until
        return None if self.is_paused else self.next_run

    def is_late(self, at: datetime) -> bool:
        """Whether that is over for longer than workers need."""
        return self.due_by is not None and self.due_by < at - TASK_GRACE

    def state_at(self, at: datetime) -> str:
        """`state`, but late where it is and its last run did not go wrong."""
        is_wrong = self.state in {"failed", "cut off"}
        return "late" if self.is_late(at) and not is_wrong else self.state


TASK_GRACE = timedelta(minutes=1)  # workers look every second; this is more than a busy queue
_TASK_STATES = {
    "": "not run yet",
    TaskOutcome.DONE: "ok",
    TaskOutcome.FAILED: "failed",
    TaskOutcome.GONE: "cut off",
}


class DataRetentionPolicy(UUIDModel, TimestampedModel):
    """How long the rows of one growing table are kept."""

    name = models.CharField(max_length=255)
    description = models.TextField(blank=True)
    table_name = models.CharField(max_length=63)
    date_column = models.CharField(max_length=63)
    retention_days = models.PositiveIntegerField(validators=[MinValueValidator(1)])
    batch_size = models.PositiveIntegerField(default=1000, validators=[MinValueValidator(1)])
    conditions = models.JSONField(default=dict, blank=True)
    archive = models.BooleanField(
        default=False,
        help_text="Write what goes to Parquet files in GATEWAY_ARCHIVE_DIR of the worker first; "
        "only for the partitioned logs.",
    )
    is_active = models.BooleanField(default=True)
    last_run = models.DateTimeField(null=True, blank=True)
    next_run = models.DateTimeField(null=True, blank=True)
    total_deleted = models.PositiveBigIntegerField(default=0)
    last_deleted_count = models.PositiveBigIntegerField(default=0)
    avg_execution_time_ms = models.FloatField(null=True, blank=True)
    last_error = models.TextField(blank=True, help_text="Empty: the last run went well.")

    class Meta:
        db_table = "data_retention_policies"
        verbose_name_plural = "data retention policies"
        constraints = [
            models.UniqueConstraint(fields=["name"], name="uq_data_retention_policies_name"),
            models.CheckConstraint(
                name="ck_data_retention_policies_retention_days",
                condition=Q(retention_days__gt=0),
            ),
            models.CheckConstraint(
                name="ck_data_retention_policies_batch_size", condition=Q(batch_size__gt=0)
            ),
        ]

    def clean(self) -> None:
        """Whether it fits the catalogue of this database; ValidationError says what to write."""
        target_of(self)

    def __str__(self) -> str:
        return self.name


class RefreshStrategy(models.TextChoices):
    MANUAL = "manual", "By hand"
    SCHEDULED = "scheduled", "On a schedule"
    TRIGGERED = "triggered", "After its tables changed"


class MaterializedView(UUIDModel, TimestampedModel):
    """When a materialised view is refreshed, and what that took.

    `query` and `indexes` are shown only: a view is code that runs as its owner, so frozen SQL
    files define it, never a form.
    """

    name = models.CharField(max_length=63)
    description = models.TextField(blank=True)
    query = models.TextField(blank=True, editable=False)
    indexes = models.JSONField(default=list, blank=True, editable=False)
    refresh_strategy = models.CharField(
        max_length=9, choices=RefreshStrategy, default=RefreshStrategy.SCHEDULED
    )
    refresh_interval_minutes = models.PositiveIntegerField(
        default=60, validators=[MinValueValidator(1)]
    )
    refresh_triggers = ArrayField(models.CharField(max_length=63), default=list, blank=True)
    is_active = models.BooleanField(default=True)
    last_refreshed = models.DateTimeField(null=True, blank=True)
    next_refresh = models.DateTimeField(null=True, blank=True)
    refresh_count = models.PositiveBigIntegerField(default=0)
    avg_refresh_time_ms = models.FloatField(null=True, blank=True)
    row_count = models.PositiveBigIntegerField(null=True, blank=True)
    size_bytes = models.PositiveBigIntegerField(null=True, blank=True)
    attempted_at = models.DateTimeField(null=True, blank=True, editable=False)
    # What the statistics had counted in the trigger tables just before the last refresh.
    changes_seen = models.BigIntegerField(null=True, blank=True, editable=False)
    last_error = models.TextField(blank=True, help_text="Empty: the last refresh went well.")

    class Meta:
        db_table = "materialized_views"
        constraints = [
            models.UniqueConstraint(fields=["name"], name="uq_materialized_views_name"),
            choices_constraint(
                table="materialized_views", field="refresh_strategy", choices=RefreshStrategy
            ),
        ]

    def clean(self) -> None:
        """ValidationError names trigger tables that this database does not have."""
        unknown = [name for name in self.refresh_triggers if relation_of(name) is None]
        if unknown:
            raise ValidationError(
                {"refresh_triggers": f"There is no table {', '.join(unknown)} in this database."}
            )
        if self.refresh_strategy == RefreshStrategy.TRIGGERED and not self.refresh_triggers:
            raise ValidationError(
                {"refresh_triggers": "Name the tables whose changes call for a refresh."}
            )

    def __str__(self) -> str:
        return self.name


class DatabaseSizeSnapshot(UUIDModel, TimestampedModel):
    """What one table weighed on one day, and what had been read of it.

    Partitions are summed into their parent. Of sizes the day's last reading counts.
    """

    taken_on = models.DateField(help_text="The day, in UTC.")
    table_name = models.CharField(max_length=63)
    total_size = models.PositiveBigIntegerField(help_text="Bytes, with indexes and TOAST.")
    row_estimate = models.PositiveBigIntegerField()
    rows_by_index = models.PositiveBigIntegerField(
        null=True, help_text="Read by index, ever, as of the day's first reading."
    )
    rows_by_scan = models.PositiveBigIntegerField(
        null=True, help_text="Read without an index, ever, as of the day's first reading."
    )

    class Meta:
        db_table = "database_size_snapshots"
        constraints = [
            models.UniqueConstraint(
                fields=["table_name", "taken_on"], name="uq_database_size_snapshots_table_day"
            ),
        ]
        indexes = [NamedIndex(fields=["taken_on"], name="idx_database_size_snapshots_taken_on")]

    def __str__(self) -> str:
        return f"{self.table_name} on {self.taken_on}"


class StatementSnapshot(UUIDModel, TimestampedModel):
    """One statement of pg_stat_statements when it was last read, and what it did since before.

    The cumulative figures are kept only to subtract them from the next ones; the window is what
    alerts rest on, because one slow call of last year is no news.
    """

    query_id = models.BigIntegerField()
    query = models.TextField(help_text="Normalised by PostgreSQL: constants are $1, $2, …")
    calls = models.PositiveBigIntegerField(help_text="Since the statistics were reset.")
    total_ms = models.FloatField(help_text="Since the statistics were reset.")
    window_calls = models.PositiveBigIntegerField(
        null=True, help_text="Between the last two readings; empty after the first one."
    )
    window_mean_ms = models.FloatField(null=True, help_text="Empty: not called in the window.")
    taken_at = models.DateTimeField(default=now)

    class Meta:
        db_table = "statement_snapshots"
        constraints = [
            models.UniqueConstraint(fields=["query_id"], name="uq_statement_snapshots_query_id"),
        ]
        indexes = [NamedIndex(fields=["taken_at"], name="idx_statement_snapshots_taken_at")]

    def __str__(self) -> str:
        return self.query[:80]


class DeclaredIndex(UUIDModel, TimestampedModel):
    """An index that the code declares, as `optimize_db` last saw it."""

    index_name = models.CharField(max_length=63)
    table_name = models.CharField(max_length=63)
    definition = models.TextField()

    class Meta:
        db_table = "declared_indexes"
        verbose_name_plural = "declared indexes"
        constraints = [
            models.UniqueConstraint(fields=["index_name"], name="uq_declared_indexes_index_name"),
        ]

    def __str__(self) -> str:
        return self.index_name


class OptimizeOutcome(models.TextChoices):
    RUNNING = "running", "Running or cut off"
    DONE = "done", "Done"
    FAILED = "failed", "Failed"


class OptimizeRun(UUIDModel, TimestampedModel):
    """One run of `optimize_db`: every statement that took effect, with what undoes it."""

    started_at = models.DateTimeField(default=now)
    finished_at = models.DateTimeField(null=True, blank=True)
    outcome = models.CharField(
        max_length=7, choices=OptimizeOutcome, default=OptimizeOutcome.RUNNING
    )
    error = models.TextField(blank=True)
    # [{"object", "sql", "seconds", "inverse": step | null}], in the order of execution.
    statements = models.JSONField(default=list)
    rolled_back_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        db_table = "optimize_runs"
        constraints = [
            choices_constraint(table="optimize_runs", field="outcome", choices=OptimizeOutcome),
        ]
        indexes = [NamedIndex(fields=["-started_at"], name="idx_optimize_runs_started_at")]

    def __str__(self) -> str:
        return f"{self.started_at:%Y-%m-%d %H:%M:%S} {self.outcome}"
