from django.db import migrations, models

from registry.db.sql import run_sql_file


class Migration(migrations.Migration):
    """Calls of tools by day, so that a ranking over a week reads days, not hours."""

    dependencies = [("monitoring", "0018_storage_that_pays")]

    operations = [
        migrations.CreateModel(
            name="RequestToolDay",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "day",
                        "server_id",
                        "tool_name",
                        blank=True,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("day", models.DateField(db_comment="In UTC.")),
                (
                    "server_id",
                    models.UUIDField(db_comment="The zero UUID: calls that reached no server."),
                ),
                ("tool_name", models.CharField(max_length=255)),
                ("requests", models.BigIntegerField()),
                (
                    "errors",
                    models.BigIntegerField(db_comment="Calls with a status of 400 or above."),
                ),
                (
                    "sum_ms",
                    models.FloatField(db_comment="Sum of durations, in milliseconds."),
                ),
            ],
            options={
                "db_table": "request_tool_days",
                "db_table_comment": (
                    "Calls of tools by day; request_usage_deltas holds what is new."
                ),
            },
        ),
        run_sql_file(__file__, "0019_request_tool_days_v1"),
        run_sql_file(__file__, "0019_request_rollups_compact_v2"),
        run_sql_file(__file__, "0019_request_rollups_rebuild_v3"),
    ]
