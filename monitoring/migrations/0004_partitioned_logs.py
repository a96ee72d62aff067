import django.contrib.postgres.indexes
import django.utils.timezone
import psqlextra.models.partitioned
import psqlextra.types
from django.db import migrations, models
from psqlextra.backend.migrations.operations import PostgresCreatePartitionedModel

import registry.db.ids
import registry.db.indexes
from registry.db.partition_migration import partition_table

ID = models.UUIDField(default=registry.db.ids.uuid7, editable=False)
ID_ALONE = models.UUIDField(
    default=registry.db.ids.uuid7, editable=False, primary_key=True, serialize=False
)

AUDIT = [
    ("timestamp", models.DateTimeField(default=django.utils.timezone.now)),
    ("tenant_id", models.UUIDField(null=True)),
    ("user_id", models.UUIDField(null=True)),
    ("api_key_id", models.UUIDField(null=True)),
    ("service_name", models.CharField(max_length=63)),
    ("action", models.CharField(max_length=63)),
    ("resource_type", models.CharField(blank=True, max_length=63)),
    ("resource_id", models.CharField(blank=True, max_length=255)),
    ("details", models.JSONField(default=dict)),
    ("request_id", models.UUIDField(null=True)),
    ("ip_address", models.GenericIPAddressField(null=True)),
    ("user_agent", models.CharField(blank=True, max_length=512)),
    ("success", models.BooleanField(default=True)),
    ("error_message", models.TextField(blank=True)),
]
REQUEST = [
    ("request_time", models.DateTimeField(default=django.utils.timezone.now)),
    ("request_id", models.UUIDField(default=registry.db.ids.uuid7)),
    ("tenant_id", models.UUIDField(null=True)),
    ("user_id", models.UUIDField(null=True)),
    ("api_key_id", models.UUIDField(null=True)),
    ("ip_address", models.GenericIPAddressField(null=True)),
    ("method", models.CharField(max_length=16)),
    ("path", models.CharField(max_length=512)),
    ("rpc_method", models.CharField(blank=True, max_length=255)),
    ("tool_name", models.CharField(blank=True, max_length=255)),
    ("target_server_id", models.UUIDField(null=True)),
    ("status_code", models.PositiveSmallIntegerField()),
    ("duration_ms", models.FloatField()),
    ("upstream_ms", models.FloatField(null=True)),
    ("queue_ms", models.FloatField(null=True)),
    ("request_size_bytes", models.PositiveBigIntegerField(default=0)),
    ("response_size_bytes", models.PositiveBigIntegerField(default=0)),
    ("error_type", models.CharField(blank=True, max_length=63)),
    ("error_message", models.TextField(blank=True)),
    ("protocol_version", models.CharField(blank=True, max_length=32)),
    ("request_metadata", models.JSONField(default=dict)),
]


class Migration(migrations.Migration):
    dependencies = [("monitoring", "0003_summaries")]

    operations = [
        *partition_table(
            table="audit_logs",
            column="timestamp",
            create=PostgresCreatePartitionedModel(
                name="AuditLog",
                fields=[
                    ("id", ID),
                    *AUDIT,
                    (
                        "pk",
                        models.CompositePrimaryKey(
                            "id",
                            "timestamp",
                            blank=True,
                            editable=False,
                            primary_key=True,
                            serialize=False,
                        ),
                    ),
                ],
                options={
                    "verbose_name": "audit log entry",
                    "verbose_name_plural": "audit log",
                    "db_table": "audit_logs",
                    "indexes": [
                        registry.db.indexes.NamedIndex(
                            fields=["tenant_id", "-timestamp"], name="idx_audit_logs_tenant_time"
                        ),
                    ],
                },
                partitioning_options={
                    "method": psqlextra.types.PostgresPartitioningMethod["RANGE"],
                    "key": ["timestamp"],
                },
                bases=(psqlextra.models.partitioned.PostgresPartitionedModel,),
            ),
        ),
        migrations.CreateModel(
            name="AuditLogEntry",
            fields=[*AUDIT, ("id", ID_ALONE)],
            options={
                "verbose_name": "audit log entry",
                "verbose_name_plural": "audit log",
                "db_table": "audit_logs",
                "default_permissions": (),
                "managed": False,
            },
        ),
        *partition_table(
            table="request_logs",
            column="request_time",
            create=PostgresCreatePartitionedModel(
                name="RequestLog",
                fields=[
                    ("id", ID),
                    *REQUEST,
                    (
                        "pk",
                        models.CompositePrimaryKey(
                            "id",
                            "request_time",
                            blank=True,
                            editable=False,
                            primary_key=True,
                            serialize=False,
                        ),
                    ),
                ],
                options={
                    "verbose_name": "request log entry",
                    "verbose_name_plural": "request log",
                    "db_table": "request_logs",
                    "indexes": [
                        registry.db.indexes.NamedIndex(
                            fields=["tenant_id", "-request_time"],
                            name="idx_request_logs_tenant_time",
                        ),
                        registry.db.indexes.NamedIndex(
                            fields=["request_id"], name="idx_request_logs_request_id"
                        ),
                        registry.db.indexes.NamedIndex(
                            fields=[
                                "path",
                                "method",
                                "target_server_id",
                                "duration_ms",
                                "-request_time",
                            ],
                            name="idx_request_routing_composite",
                            condition=models.Q(("status_code__lt", 400)),
                        ),
                        django.contrib.postgres.indexes.BrinIndex(
                            autosummarize=True,
                            fields=["request_time"],
                            name="idx_request_logs_time",
                            pages_per_range=32,
                        ),
                    ],
                },
                partitioning_options={
                    "method": psqlextra.types.PostgresPartitioningMethod["RANGE"],
                    "key": ["request_time"],
                },
                bases=(psqlextra.models.partitioned.PostgresPartitionedModel,),
            ),
        ),
        migrations.CreateModel(
            name="RequestLogEntry",
            fields=[*REQUEST, ("id", ID_ALONE)],
            options={
                "verbose_name": "request log entry",
                "verbose_name_plural": "request log",
                "db_table": "request_logs",
                "default_permissions": (),
                "managed": False,
            },
        ),
    ]
