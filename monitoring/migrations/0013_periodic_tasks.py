import django.db.models.functions.datetime
import django.utils.timezone
from django.db import migrations, models

import registry.db.ids

# A few rows that change all the time and no index that does: updates stay on their page.
HOT = "ALTER TABLE periodic_tasks SET (fillfactor = 50)"
AS_BEFORE = "ALTER TABLE periodic_tasks RESET (fillfactor)"


class Migration(migrations.Migration):
    dependencies = [("monitoring", "0011_expert_indexes")]

    operations = [
        migrations.AddField(
            model_name="requestrollupdelta",
            name="written_at",
            field=models.DateTimeField(
                db_comment="Tells how far behind the worker is.",
                db_default=django.db.models.functions.datetime.Now(),
            ),
        ),
        migrations.CreateModel(
            name="ScheduledTask",
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
                ("name", models.CharField(max_length=63)),
                ("description", models.CharField(blank=True, max_length=255)),
                (
                    "unit",
                    models.CharField(blank=True, help_text="What is counted.", max_length=63),
                ),
                (
                    "schedule",
                    models.CharField(
                        help_text="A cron line in UTC; a sixth field counts seconds.",
                        max_length=63,
                    ),
                ),
                ("is_paused", models.BooleanField(db_default=False, default=False)),
                ("next_run", models.DateTimeField()),
                ("claim_id", models.UUIDField(editable=False, null=True)),
                ("claimed_by", models.CharField(blank=True, db_default="", max_length=255)),
                ("lease_until", models.DateTimeField(editable=False, null=True)),
                ("running_since", models.DateTimeField(blank=True, null=True)),
                ("last_started", models.DateTimeField(blank=True, null=True)),
                ("last_finished", models.DateTimeField(blank=True, null=True)),
                ("last_duration_ms", models.FloatField(blank=True, null=True)),
                (
                    "last_outcome",
                    models.CharField(
                        blank=True,
                        choices=[("done", "Done"), ("failed", "Failed"), ("gone", "Cut off")],
                        db_default="",
                        help_text="Empty: never ran.",
                        max_length=6,
                    ),
                ),
                ("last_count", models.PositiveBigIntegerField(blank=True, null=True)),
                ("last_error", models.TextField(blank=True, db_default="")),
                ("runs", models.PositiveBigIntegerField(db_default=0, default=0)),
                ("failures", models.PositiveBigIntegerField(db_default=0, default=0)),
                ("failures_in_a_row", models.PositiveIntegerField(db_default=0, default=0)),
            ],
            options={
                "verbose_name": "periodic task",
                "db_table": "periodic_tasks",
                "constraints": [
                    models.UniqueConstraint(fields=("name",), name="uq_periodic_tasks_name"),
                    models.CheckConstraint(
                        condition=models.Q(("last_outcome__in", ["", "done", "failed", "gone"])),
                        name="ck_periodic_tasks_last_outcome",
                    ),
                ],
            },
        ),
        migrations.RunSQL(HOT, AS_BEFORE),
    ]
