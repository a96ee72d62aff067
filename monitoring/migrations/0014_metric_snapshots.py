from django.db import migrations, models

import registry.db.indexes

# The newest rows are widened by each pass over the alerts, in place.
HOT = "ALTER TABLE metric_snapshots SET (fillfactor = 80)"
AS_BEFORE = "ALTER TABLE metric_snapshots RESET (fillfactor)"


class Migration(migrations.Migration):
    dependencies = [("monitoring", "0013_periodic_tasks")]

    operations = [
        migrations.CreateModel(
            name="MetricSnapshot",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "metric",
                        "subject",
                        "bucket",
                        blank=True,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("metric", models.CharField(max_length=63)),
                (
                    "subject",
                    models.CharField(
                        db_comment="A server with a rule of its own; empty: over all subjects.",
                        max_length=255,
                    ),
                ),
                (
                    "bucket",
                    models.DateTimeField(db_comment="Where the five minutes begin, in UTC."),
                ),
                ("lowest", models.FloatField()),
                ("highest", models.FloatField()),
            ],
            options={
                "db_table": "metric_snapshots",
                "db_table_comment": "What alert passes measured; written by the worker.",
                "indexes": [
                    registry.db.indexes.NamedIndex(
                        fields=["bucket"], name="idx_metric_snapshots_bucket"
                    )
                ],
            },
        ),
        migrations.RunSQL(HOT, AS_BEFORE),
    ]
