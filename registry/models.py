"""The nouns: tenants, the servers they register, and what those servers offer."""

from typing import Any

from django.contrib.postgres.fields import ArrayField
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models
from django.db.models import F, Func, Q, TextField
from django.db.models.lookups import Exact
from django.utils.timezone import now

from registry.db.base import TimestampedModel, UUIDModel, choices_constraint
from registry.db.encryption import EncryptedJSONField
from registry.db.ids import uuid7
from registry.db.indexes import NamedIndex
from registry.db.partitions import PartitionedModel, RangePartitioning
from registry.querysets import MCPServerQuerySet, ServerToolQuerySet

__all__ = [
    "SEEDED",
    "USABLE_HEALTH",
    "HealthStatus",
    "MCPServer",
    "ServerMetric",
    "ServerMetricEntry",
    "ServerPrompt",
    "ServerResource",
    "ServerTool",
    "SystemConfig",
    "Tenant",
    "TenantStatus",
    "Transport",
]

slug_validator = RegexValidator(
    # Two underscores separate server and tool in the names that /mcp publishes.
    r"^(?!.*__)[a-z0-9](?:[a-z0-9_-]*[a-z0-9])?$",
    "Use lower-case letters, digits, '-' and single '_'; begin and end with a letter or digit.",
)


DEFAULT_ACCESS = ("allow", "deny")


def validate_tenant_settings(value: Any) -> None:
    """A typo here would open servers that were to be closed, so nothing is guessed."""
    if not isinstance(value, dict):
        raise ValidationError('Write a JSON object such as {"default_access": "deny"}.')
    if "default_access" in value and value["default_access"] not in DEFAULT_ACCESS:
        raise ValidationError('"default_access" is "allow" or "deny"; leave it out to allow.')
    if not isinstance(value.get("runs_gateway", False), bool):
        raise ValidationError('"runs_gateway" is true or false.')


class TenantStatus(models.TextChoices):
    ACTIVE = "active", "Active"
    SUSPENDED = "suspended", "Suspended"
    DISABLED = "disabled", "Disabled"


class Transport(models.TextChoices):
    HTTP = "http", "Streamable HTTP"
    SSE = "sse", "HTTP with SSE (2024-11-05)"
    STDIO = "stdio", "stdio"
    WEBSOCKET = "websocket", "WebSocket"


class HealthStatus(models.TextChoices):
    HEALTHY = "healthy", "Healthy"
    DEGRADED = "degraded", "Degraded"
    UNHEALTHY = "unhealthy", "Unhealthy"
    UNKNOWN = "unknown", "Unknown"
    MAINTENANCE = "maintenance", "Maintenance"


USABLE_HEALTH = (HealthStatus.HEALTHY, HealthStatus.DEGRADED)
SEEDED = "seeded"  # in the health_metadata of a server that was made up to look at


class Tenant(UUIDModel, TimestampedModel):
    """A team or organisation; owns servers, users and keys."""

    name = models.CharField(max_length=255)
    slug = models.CharField(max_length=63, validators=[slug_validator])
    description = models.TextField(blank=True)
    status = models.CharField(max_length=9, choices=TenantStatus, default=TenantStatus.ACTIVE)
    # "default_access": "allow" (own and shared servers; the default) or "deny".
    # "runs_gateway": true for the operators' tenant, whose API callers also see what concerns the
    # whole gateway (database, retention, views); never other tenants' rows.
    settings = models.JSONField(default=dict, blank=True, validators=[validate_tenant_settings])

    class Meta:
        db_table = "tenants"
        constraints = [
            models.UniqueConstraint(fields=["slug"], name="uq_tenants_slug"),
            choices_constraint(table="tenants", field="status", choices=TenantStatus),
            models.CheckConstraint(
                name="ck_tenants_settings",
                condition=Q(
                    Exact(
                        Func(F("settings"), function="jsonb_typeof", output_field=TextField()),
                        "object",
                    )
                )
                & (
                    ~Q(settings__has_key="default_access")
                    | Q(settings__default_access__in=DEFAULT_ACCESS)
                ),
                violation_error_message="The settings are no object, or name no known access.",
            ),
        ]

    def __str__(self) -> str:
        return self.slug

    def clean(self) -> None:
        if self.settings is None:  # a form's empty text
            self.settings = {}


class MCPServer(UUIDModel, TimestampedModel):
    """An MCP server that the gateway can reach on behalf of a tenant, or of all of them."""

    # Null: shared by all tenants. The composite below begins with it, so no index of its own.
    tenant = models.ForeignKey(
        Tenant, models.CASCADE, null=True, blank=True, related_name="servers", db_index=False
    )
    name = models.CharField(max_length=255)
    slug = models.CharField(max_length=63, validators=[slug_validator])
    description = models.TextField(blank=True)
    version = models.CharField(max_length=255, blank=True)
    # A URL, or for stdio a command line.
    endpoint_url = models.CharField(max_length=2048)
    transport_type = models.CharField(max_length=9, choices=Transport, default=Transport.HTTP)
    capabilities = models.JSONField(default=dict, blank=True)
    tags = ArrayField(models.CharField(max_length=63), default=list, blank=True)
    protocol_versions = ArrayField(models.CharField(max_length=32), default=list, blank=True)
    health_status = models.CharField(
        max_length=11, choices=HealthStatus, default=HealthStatus.UNKNOWN
    )
    last_health_check = models.DateTimeField(null=True, blank=True)
    health_metadata = models.JSONField(default=dict, blank=True)
    avg_response_time = models.FloatField(null=True, blank=True, help_text="Milliseconds.")
    success_rate = models.FloatField(
        null=True,
        blank=True,
        validators=[MinValueValidator(0), MaxValueValidator(1)],
        help_text="0 to 1.",
    )
    active_connections = models.PositiveIntegerField(default=0)
    is_enabled = models.BooleanField(default=True)
    registry_name = models.CharField(
        max_length=200, blank=True, help_text="Reverse-DNS name in the official registry."
    )
    # {"headers": {name: value}} sent to the upstream in place of the caller's own credentials.
    credentials = EncryptedJSONField(null=True, blank=True)

    objects = MCPServerQuerySet.as_manager()

    class Meta:
        db_table = "mcp_servers"
        verbose_name = "MCP server"
        constraints = [
            models.UniqueConstraint(
                fields=["tenant", "slug"],
                name="uq_mcp_servers_tenant_slug",
                nulls_distinct=False,
            ),
            choices_constraint(table="mcp_servers", field="transport_type", choices=Transport),
            choices_constraint(table="mcp_servers", field="health_status", choices=HealthStatus),
            models.CheckConstraint(
                name="ck_mcp_servers_success_rate",
                condition=Q(success_rate=None) | Q(success_rate__range=(0, 1)),
            ),
        ]
        indexes = [
            NamedIndex(fields=["tenant", "health_status"], name="idx_mcp_servers_tenant_status"),
            NamedIndex(
                fields=["endpoint_url", "transport_type"],
                name="idx_mcp_servers_endpoint_transport",
            ),
            NamedIndex(
                fields=["last_health_check"],
                name="idx_mcp_servers_health_check_time",
                condition=Q(last_health_check__isnull=False),
            ),
            NamedIndex(
                fields=["health_status", "transport_type", "avg_response_time"],
                name="idx_servers_discovery_composite",
                condition=Q(health_status__in=USABLE_HEALTH),
            ),
            # Both halves of MCPServer.objects.fastest().
            NamedIndex(
                fields=["tenant", "transport_type", "avg_response_time"],
                name="idx_mcp_servers_tenant_fastest",
                condition=Q(is_enabled=True, health_status__in=USABLE_HEALTH),
            ),
            NamedIndex(
                fields=["transport_type", "avg_response_time"],
                name="idx_mcp_servers_shared_fastest",
                condition=Q(tenant=None, is_enabled=True, health_status__in=USABLE_HEALTH),
            ),
        ]

    def __str__(self) -> str:
        return self.slug


class ServerTool(UUIDModel, TimestampedModel):
    """A tool as its server last listed it, with what the gateway saw of its use."""

    server = models.ForeignKey(MCPServer, models.CASCADE, related_name="tools", db_index=False)
    name = models.CharField(max_length=255)
    title = models.CharField(max_length=255, blank=True)
    description = models.TextField(blank=True)
    input_schema = models.JSONField(default=dict, blank=True)
    output_schema = models.JSONField(null=True, blank=True)
    annotations = models.JSONField(default=dict, blank=True)
    tags = ArrayField(models.CharField(max_length=63), default=list, blank=True)
    total_calls = models.PositiveBigIntegerField(default=0)
    success_count = models.PositiveBigIntegerField(default=0)
    error_count = models.PositiveBigIntegerField(default=0)
    avg_execution_time = models.FloatField(null=True, blank=True, help_text="Milliseconds.")
    last_used_at = models.DateTimeField(null=True, blank=True)
    is_enabled = models.BooleanField(default=True)
    schema_hash = models.CharField(max_length=64, blank=True)

    objects = ServerToolQuerySet.as_manager()

    class Meta:
        db_table = "server_tools"
        constraints = [
            models.UniqueConstraint(fields=["server", "name"], name="uq_server_tools_server_name"),
        ]
        indexes = [
            NamedIndex(fields=["name", "server"], name="idx_server_tools_name_server"),
            NamedIndex(
                fields=["total_calls", "success_count"],
                name="idx_server_tools_usage_stats",
                condition=Q(total_calls__gt=0),
            ),
            NamedIndex(
                fields=["name", "success_count", "avg_execution_time", "server"],
                name="idx_tools_discovery_performance",
                condition=Q(total_calls__gt=0),
            ),
        ]

    def __str__(self) -> str:
        return self.name


class ServerResource(UUIDModel, TimestampedModel):
    """A resource or resource template that a server lists."""

    server = models.ForeignKey(MCPServer, models.CASCADE, related_name="resources", db_index=False)
    uri_template = models.CharField(max_length=2048)
    name = models.CharField(max_length=255)
    description = models.TextField(blank=True)
    mime_type = models.CharField(max_length=255, blank=True)
    total_accesses = models.PositiveBigIntegerField(default=0)
    avg_size_bytes = models.FloatField(null=True, blank=True)

    class Meta:
        db_table = "server_resources"
        constraints = [
            models.UniqueConstraint(
                fields=["server", "uri_template"], name="uq_server_resources_server_uri"
            ),
        ]

    def __str__(self) -> str:
        return self.uri_template


class ServerPrompt(UUIDModel, TimestampedModel):
    """A prompt that a server lists."""

    server = models.ForeignKey(MCPServer, models.CASCADE, related_name="prompts", db_index=False)
    name = models.CharField(max_length=255)
    description = models.TextField(blank=True)
    arguments = models.JSONField(default=list, blank=True)

    class Meta:
        db_table = "server_prompts"
        constraints = [
            models.UniqueConstraint(
                fields=["server", "name"], name="uq_server_prompts_server_name"
            ),
        ]

    def __str__(self) -> str:
        return self.name


class MetricColumns(models.Model):
    id = models.UUIDField(default=uuid7, editable=False)
    server = models.ForeignKey(
        MCPServer, models.DO_NOTHING, related_name="+", db_constraint=False, db_index=False
    )
    timestamp = models.DateTimeField(default=now)
    response_time_ms = models.FloatField(null=True)
    requests_per_second = models.FloatField(null=True)
    error_rate = models.FloatField(null=True)
    active_connections = models.PositiveIntegerField(null=True)
    connection_pool_size = models.PositiveIntegerField(null=True)
    custom_metrics = models.JSONField(default=dict)

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return f"{self.server_id} at {self.timestamp:%Y-%m-%d %H:%M:%S}"


class ServerMetric(MetricColumns, PartitionedModel):  # type: ignore[misc]  # the id is no integer
    """What one health check measured. A log: no foreign key, it outlives its server."""

    pk = models.CompositePrimaryKey("id", "timestamp")
    objects = models.Manager()

    class PartitioningMeta(RangePartitioning):
        key = ["timestamp"]

    class Meta:
        db_table = "server_metrics"
        indexes = [
            NamedIndex(fields=["server", "-timestamp"], name="idx_server_metrics_server_time"),
        ]


class ServerMetricEntry(MetricColumns):
    """A measurement as pages show it; see Note [Two models of a log]."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)

    class Meta:
        managed = False
        default_permissions = ()  # the log's own count
        db_table = "server_metrics"
        verbose_name = "server metric"


class SystemConfig(UUIDModel, TimestampedModel):
    """A setting that lives in the database; a tenant's row overrides the global one."""

    tenant = models.ForeignKey(
        Tenant, models.CASCADE, null=True, blank=True, related_name="configs", db_index=False
    )
    key = models.CharField(max_length=255)
    value = models.JSONField()
    description = models.TextField(blank=True)
    category = models.CharField(max_length=63, blank=True)
    is_sensitive = models.BooleanField(default=False)
    is_runtime_configurable = models.BooleanField(default=True)
    version = models.PositiveIntegerField(default=1)

    class Meta:
        db_table = "system_configs"
        verbose_name = "system setting"
        constraints = [
            models.UniqueConstraint(
                fields=["tenant", "key"],
                name="uq_system_configs_tenant_key",
                nulls_distinct=False,
            ),
        ]

    def __str__(self) -> str:
        return self.key
