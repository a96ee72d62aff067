"""Traffic: whether a server may be called, over which connections, and who waits.

Defaults stand in the database too, where a trigger makes the rows of a new server.
"""

from django.core.validators import MinValueValidator
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now
from django.utils.timezone import now

from registry.db.base import TimestampedModel, UUIDModel, choices_constraint
from registry.models import MCPServer, Transport

__all__ = ["BreakerState", "CircuitBreaker", "ConnectionPool", "GatewayProcess", "RequestQueue"]


class BreakerState(models.TextChoices):
    CLOSED = "closed", "Closed"
    OPEN = "open", "Open"
    HALF_OPEN = "half_open", "Half-open"


class CircuitBreaker(UUIDModel, TimestampedModel):
    """Decides, from recent failures, whether a server may be called at all.

    `state`, `last_state_change` and `timeout_ms` decide; a trigger stamps
    `last_state_change` when SQL changes `state` alone. `probe_until` says that a half-open
    breaker's one probe is on its way, and until when its caller is believed to be alive.
    """

    server = models.ForeignKey(MCPServer, models.CASCADE, related_name="breakers", db_index=False)
    # Empty: the whole server.
    service_name = models.CharField(max_length=255, blank=True, db_default="")
    state = models.CharField(
        max_length=9,
        choices=BreakerState,
        default=BreakerState.CLOSED,
        db_default=BreakerState.CLOSED,
    )
    failure_count = models.PositiveIntegerField(default=0, db_default=0)
    success_count = models.PositiveIntegerField(default=0, db_default=0)
    failure_threshold = models.PositiveIntegerField(
        default=5, db_default=5, validators=[MinValueValidator(1)]
    )
    success_threshold = models.PositiveIntegerField(
        default=2, db_default=2, validators=[MinValueValidator(1)]
    )
    timeout_ms = models.PositiveIntegerField(
        default=60_000, db_default=60_000, help_text="From open to half-open, in milliseconds."
    )
    last_failure_time = models.DateTimeField(null=True, blank=True)
    last_success_time = models.DateTimeField(null=True, blank=True)
    last_state_change = models.DateTimeField(default=now, db_default=Now())
    probe_until = models.DateTimeField(null=True, blank=True, editable=False)
    total_requests = models.PositiveBigIntegerField(default=0, db_default=0)
    total_failures = models.PositiveBigIntegerField(default=0, db_default=0)
    total_timeouts = models.PositiveBigIntegerField(default=0, db_default=0)

    class Meta:
        db_table = "circuit_breakers"
        constraints = [
            # Also the index of the per-call lookup, so the foreign key needs none of its own.
            models.UniqueConstraint(
                fields=["server", "service_name"], name="uq_circuit_breakers_server_service"
            ),
            choices_constraint(table="circuit_breakers", field="state", choices=BreakerState),
            models.CheckConstraint(
                name="ck_circuit_breakers_thresholds",
                condition=Q(failure_threshold__gt=0, success_threshold__gt=0),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.server}/{self.service_name}" if self.service_name else str(self.server)


class ConnectionPool(UUIDModel, TimestampedModel):
    """Upstream connections. An empty name: the operator's settings; else one process's gauges."""

    server = models.ForeignKey(MCPServer, models.CASCADE, related_name="pools", db_index=False)
    pool_name = models.CharField(max_length=255, blank=True, db_default="")
    transport_type = models.CharField(
        max_length=9, choices=Transport, default=Transport.HTTP, db_default=Transport.HTTP
    )
    max_size = models.PositiveIntegerField(
        default=100, db_default=100, validators=[MinValueValidator(1)]
    )
    min_size = models.PositiveIntegerField(default=0, db_default=0)
    timeout_ms = models.PositiveIntegerField(
        default=30_000,
        db_default=30_000,
        help_text="To connect to the server, and to wait for a free connection.",
    )
    idle_timeout_ms = models.PositiveIntegerField(
        default=300_000, db_default=300_000, help_text="After this an idle connection is closed."
    )
    active_connections = models.PositiveIntegerField(default=0, db_default=0)
    idle_connections = models.PositiveIntegerField(default=0, db_default=0)
    pending_requests = models.PositiveIntegerField(default=0, db_default=0)
    is_healthy = models.BooleanField(default=True, db_default=True)
    last_health_check = models.DateTimeField(null=True, blank=True)
    total_connections_created = models.PositiveBigIntegerField(default=0, db_default=0)
    total_connections_closed = models.PositiveBigIntegerField(default=0, db_default=0)
    connection_errors = models.PositiveBigIntegerField(default=0, db_default=0)
    avg_connection_time_ms = models.FloatField(null=True, blank=True)

    class Meta:
        db_table = "connection_pools"
        constraints = [
            models.UniqueConstraint(
                fields=["server", "pool_name"], name="uq_connection_pools_server_pool"
            ),
            choices_constraint(table="connection_pools", field="transport_type", choices=Transport),
            models.CheckConstraint(
                name="ck_connection_pools_max_size",
                condition=Q(max_size__gt=0, max_size__gte=models.F("min_size")),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.server}/{self.pool_name}" if self.pool_name else str(self.server)


class RequestQueue(UUIDModel, TimestampedModel):
    """Calls that wait for a connection. Names as for pools."""

    server = models.ForeignKey(MCPServer, models.CASCADE, related_name="queues", db_index=False)
    queue_name = models.CharField(max_length=255, blank=True, db_default="")
    max_size = models.PositiveIntegerField(default=1000, db_default=1000)
    processing_timeout_ms = models.PositiveIntegerField(
        default=60_000,
        db_default=60_000,
        help_text="The longest silence of a server before a call is given up.",
    )
    priority_levels = models.PositiveSmallIntegerField(
        default=3, db_default=3, validators=[MinValueValidator(1)]
    )
    current_size = models.PositiveIntegerField(default=0, db_default=0)
    processing_count = models.PositiveIntegerField(default=0, db_default=0)
    is_accepting_requests = models.BooleanField(default=True, db_default=True)
    last_processed = models.DateTimeField(null=True, blank=True)
    total_enqueued = models.PositiveBigIntegerField(default=0, db_default=0)
    total_processed = models.PositiveBigIntegerField(default=0, db_default=0)
    total_timeouts = models.PositiveBigIntegerField(default=0, db_default=0)
    total_errors = models.PositiveBigIntegerField(default=0, db_default=0)
    avg_processing_time_ms = models.FloatField(null=True, blank=True)
    avg_wait_time_ms = models.FloatField(null=True, blank=True)

    class Meta:
        db_table = "request_queues"
        constraints = [
            models.UniqueConstraint(
                fields=["server", "queue_name"], name="uq_request_queues_server_queue"
            ),
            models.CheckConstraint(
                name="ck_request_queues_priority_levels", condition=Q(priority_levels__gt=0)
            ),
        ]

    def __str__(self) -> str:
        return f"{self.server}/{self.queue_name}" if self.queue_name else str(self.server)


class GatewayProcess(UUIDModel, TimestampedModel):
    """One process of the data plane, and the log rows that it has not brought to their tables.

    Written with the gauges of pools and queues, under the same name; a row that is not written
    any more is a process that is gone.
    """

    name = models.CharField(max_length=255)
    log_rows_waiting = models.PositiveBigIntegerField(default=0, db_default=0)
    log_rows_spooled = models.PositiveBigIntegerField(
        default=0, db_default=0, help_text="In files, for want of PostgreSQL or of a partition."
    )
    log_rows_lost = models.PositiveBigIntegerField(
        default=0, db_default=0, help_text="Dropped or refused since the process began."
    )
    last_loss = models.DateTimeField(null=True, blank=True)

    class Meta:
        db_table = "gateway_processes"
        verbose_name_plural = "gateway processes"
        constraints = [
            models.UniqueConstraint(fields=["name"], name="uq_gateway_processes_name"),
        ]

    def __str__(self) -> str:
        return self.name
