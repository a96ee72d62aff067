import django.db.models.functions.datetime
import django.utils.timezone
from django.db import migrations, models

import registry.db.ids
from registry.db.sql import run_sql_file

# As the other gauges: written every few seconds, by each process its own row.
HOT = "ALTER TABLE gateway_processes SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05)"
AS_BEFORE = "ALTER TABLE gateway_processes RESET (fillfactor, autovacuum_vacuum_scale_factor)"


class Migration(migrations.Migration):
    dependencies = [
        ("gateway", "0006_hot_rows"),
        ("monitoring", "0013_periodic_tasks"),
        # The view names the logs, which are partitioned there.
        ("registry", "0007_hot_rows"),
    ]

    operations = [
        migrations.CreateModel(
            name="GatewayProcess",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=registry.db.ids.uuid7,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                (
                    "created_at",
                    models.DateTimeField(
                        db_default=django.db.models.functions.datetime.Now(),
                        default=django.utils.timezone.now,
                        editable=False,
                    ),
                ),
                (
                    "updated_at",
                    models.DateTimeField(
                        auto_now=True, db_default=django.db.models.functions.datetime.Now()
                    ),
                ),
                ("name", models.CharField(max_length=255)),
                ("log_rows_waiting", models.PositiveBigIntegerField(db_default=0, default=0)),
                (
                    "log_rows_spooled",
                    models.PositiveBigIntegerField(
                        db_default=0,
                        default=0,
                        help_text="In files, for want of PostgreSQL or of a partition.",
                    ),
                ),
                (
                    "log_rows_lost",
                    models.PositiveBigIntegerField(
                        db_default=0,
                        default=0,
                        help_text="Dropped or refused since the process began.",
                    ),
                ),
                ("last_loss", models.DateTimeField(blank=True, null=True)),
            ],
            options={
                "verbose_name_plural": "gateway processes",
                "db_table": "gateway_processes",
                "constraints": [
                    models.UniqueConstraint(fields=("name",), name="uq_gateway_processes_name")
                ],
            },
        ),
        migrations.RunSQL(HOT, AS_BEFORE),
        run_sql_file(__file__, "0008_performance_monitoring_v2"),
    ]
