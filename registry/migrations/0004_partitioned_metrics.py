import django.db.models.deletion
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

METRIC = [
    (
        "server",
        models.ForeignKey(
            db_constraint=False,
            db_index=False,
            on_delete=django.db.models.deletion.DO_NOTHING,
            related_name="+",
            to="registry.mcpserver",
        ),
    ),
    ("timestamp", models.DateTimeField(default=django.utils.timezone.now)),
    ("response_time_ms", models.FloatField(null=True)),
    ("requests_per_second", models.FloatField(null=True)),
    ("error_rate", models.FloatField(null=True)),
    ("active_connections", models.PositiveIntegerField(null=True)),
    ("connection_pool_size", models.PositiveIntegerField(null=True)),
    ("custom_metrics", models.JSONField(default=dict)),
]


class Migration(migrations.Migration):
    dependencies = [("registry", "0003_tenant_settings")]

    operations = [
        *partition_table(
            table="server_metrics",
            column="timestamp",
            create=PostgresCreatePartitionedModel(
                name="ServerMetric",
                fields=[
                    ("id", ID),
                    *METRIC,
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
                    "db_table": "server_metrics",
                    "indexes": [
                        registry.db.indexes.NamedIndex(
                            fields=["server", "-timestamp"], name="idx_server_metrics_server_time"
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
            name="ServerMetricEntry",
            fields=[*METRIC, ("id", ID_ALONE)],
            options={
                "verbose_name": "server metric",
                "db_table": "server_metrics",
                "default_permissions": (),
                "managed": False,
            },
        ),
    ]
