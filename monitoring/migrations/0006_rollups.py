import django.contrib.postgres.fields
from django.db import migrations, models

import registry.db.indexes
from registry.db.sql import run_sql_file

# Many deltas at once: nobody else uses these tables yet.
BATCH = 100_000


def count_what_is_there(_apps, schema_editor):
    """Bring rows that are older than the trigger into the rollups, day by day.

    Writers of the log wait from the trigger's creation to the end of this migration, or a row
    could be counted twice or not at all; readers do not.
    """
    with schema_editor.connection.cursor() as cursor:
        cursor.execute("SET LOCAL statement_timeout = 0")
        cursor.execute(
            "SELECT request_rollups_rebuild((min(request_time) AT TIME ZONE 'UTC')::date,"
            " (max(request_time) AT TIME ZONE 'UTC')::date)"
            " FROM request_logs HAVING count(*) > 0"
        )
        moved = cursor.fetchone()
        while moved and moved[0]:
            cursor.execute("SELECT request_rollups_compact(%s)", [BATCH])
            moved = cursor.fetchone()


class Migration(migrations.Migration):
    dependencies = [
        ("monitoring", "0004_partitioned_logs"),
    ]

    operations = [
        migrations.CreateModel(
            name="RequestRollup",
            fields=[
                (
                    "tenant_id",
                    models.UUIDField(
                        db_comment="The zero UUID: all calls, those of no tenant too."
                    ),
                ),
                ("bucket", models.DateTimeField(db_comment="Where the span begins, in UTC.")),
                ("requests", models.BigIntegerField()),
                (
                    "errors",
                    models.BigIntegerField(db_comment="Calls with a status of 400 or above."),
                ),
                ("sum_ms", models.FloatField(db_comment="Sum of durations, in milliseconds.")),
                ("max_ms", models.FloatField(db_comment="The longest duration, in milliseconds.")),
                ("bytes_in", models.BigIntegerField()),
                ("bytes_out", models.BigIntegerField()),
                (
                    "bins",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.SmallIntegerField(),
                        db_comment="Bins of the durations that occur, ascending; see request_duration_bin().",
                        size=None,
                    ),
                ),
                (
                    "counts",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.BigIntegerField(),
                        db_comment="Calls a bin, in the order of bins.",
                        size=None,
                    ),
                ),
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "tenant_id",
                        "minutes",
                        "bucket",
                        blank=True,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                (
                    "minutes",
                    models.SmallIntegerField(db_comment="Length of the span: 5, 60 or 1440."),
                ),
            ],
            options={
                "db_table": "request_rollups",
                "db_table_comment": "Calls added up; request_rollup_deltas holds what is not in here yet.",
            },
        ),
        migrations.CreateModel(
            name="RequestUsage",
            fields=[
                ("tenant_id", models.UUIDField(db_comment="The zero UUID: calls of no tenant.")),
                ("bucket", models.DateTimeField(db_comment="Where the hour begins, in UTC.")),
                ("first_seen", models.DateTimeField(db_comment="The first such call of the hour.")),
                ("last_seen", models.DateTimeField(db_comment="The last such call of the hour.")),
                (
                    "server_id",
                    models.UUIDField(db_comment="The zero UUID: calls that reached no server."),
                ),
                (
                    "tool_name",
                    models.CharField(db_comment="Empty: a call of no tool.", max_length=255),
                ),
                ("requests", models.BigIntegerField()),
                (
                    "errors",
                    models.BigIntegerField(db_comment="Calls with a status of 400 or above."),
                ),
                ("sum_ms", models.FloatField(db_comment="Sum of durations, in milliseconds.")),
                ("max_ms", models.FloatField(db_comment="The longest duration, in milliseconds.")),
                ("bytes_in", models.BigIntegerField()),
                ("bytes_out", models.BigIntegerField()),
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "tenant_id",
                        "bucket",
                        "server_id",
                        "tool_name",
                        blank=True,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
            ],
            options={
                "db_table": "request_usage",
                "db_table_comment": "Calls of servers and tools; request_usage_deltas holds what is new.",
            },
        ),
        migrations.CreateModel(
            name="RequestUser",
            fields=[
                ("tenant_id", models.UUIDField(db_comment="The zero UUID: calls of no tenant.")),
                ("bucket", models.DateTimeField(db_comment="Where the hour begins, in UTC.")),
                ("first_seen", models.DateTimeField(db_comment="The first such call of the hour.")),
                ("last_seen", models.DateTimeField(db_comment="The last such call of the hour.")),
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "tenant_id",
                        "bucket",
                        "user_id",
                        blank=True,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("user_id", models.UUIDField()),
            ],
            options={
                "db_table": "request_users",
                "db_table_comment": "Users that called; request_user_deltas holds what is new.",
            },
        ),
        migrations.CreateModel(
            name="RollupHorizon",
            fields=[
                ("minutes", models.SmallIntegerField(primary_key=True, serialize=False)),
                (
                    "kept_since",
                    models.DateTimeField(db_comment="Spans of this length are gone before it."),
                ),
            ],
            options={
                "db_table": "request_rollup_horizons",
                "db_table_comment": "What request_rollups no longer holds; written by the worker.",
            },
        ),
        migrations.CreateModel(
            name="RequestRollupDelta",
            fields=[
                (
                    "tenant_id",
                    models.UUIDField(
                        db_comment="The zero UUID: all calls, those of no tenant too."
                    ),
                ),
                ("bucket", models.DateTimeField(db_comment="Where the span begins, in UTC.")),
                ("requests", models.BigIntegerField()),
                (
                    "errors",
                    models.BigIntegerField(db_comment="Calls with a status of 400 or above."),
                ),
                ("sum_ms", models.FloatField(db_comment="Sum of durations, in milliseconds.")),
                ("max_ms", models.FloatField(db_comment="The longest duration, in milliseconds.")),
                ("bytes_in", models.BigIntegerField()),
                ("bytes_out", models.BigIntegerField()),
                (
                    "bins",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.SmallIntegerField(),
                        db_comment="Bins of the durations that occur, ascending; see request_duration_bin().",
                        size=None,
                    ),
                ),
                (
                    "counts",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.BigIntegerField(),
                        db_comment="Calls a bin, in the order of bins.",
                        size=None,
                    ),
                ),
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
            ],
            options={
                "db_table": "request_rollup_deltas",
                "db_table_comment": "What statements added to request_logs since the worker last took it.",
                "indexes": [
                    registry.db.indexes.NamedIndex(
                        fields=["tenant_id", "bucket"], name="idx_request_rollup_deltas_tenant"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="RequestUsageDelta",
            fields=[
                ("tenant_id", models.UUIDField(db_comment="The zero UUID: calls of no tenant.")),
                ("bucket", models.DateTimeField(db_comment="Where the hour begins, in UTC.")),
                ("first_seen", models.DateTimeField(db_comment="The first such call of the hour.")),
                ("last_seen", models.DateTimeField(db_comment="The last such call of the hour.")),
                (
                    "server_id",
                    models.UUIDField(db_comment="The zero UUID: calls that reached no server."),
                ),
                (
                    "tool_name",
                    models.CharField(db_comment="Empty: a call of no tool.", max_length=255),
                ),
                ("requests", models.BigIntegerField()),
                (
                    "errors",
                    models.BigIntegerField(db_comment="Calls with a status of 400 or above."),
                ),
                ("sum_ms", models.FloatField(db_comment="Sum of durations, in milliseconds.")),
                ("max_ms", models.FloatField(db_comment="The longest duration, in milliseconds.")),
                ("bytes_in", models.BigIntegerField()),
                ("bytes_out", models.BigIntegerField()),
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
            ],
            options={
                "db_table": "request_usage_deltas",
                "db_table_comment": "What statements added to request_logs since the worker last took it.",
                "indexes": [
                    registry.db.indexes.NamedIndex(
                        fields=["tenant_id", "bucket"], name="idx_request_usage_deltas_tenant"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="RequestUserDelta",
            fields=[
                ("tenant_id", models.UUIDField(db_comment="The zero UUID: calls of no tenant.")),
                ("bucket", models.DateTimeField(db_comment="Where the hour begins, in UTC.")),
                ("first_seen", models.DateTimeField(db_comment="The first such call of the hour.")),
                ("last_seen", models.DateTimeField(db_comment="The last such call of the hour.")),
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("user_id", models.UUIDField()),
            ],
            options={
                "db_table": "request_user_deltas",
                "db_table_comment": "What statements added to request_logs since the worker last took it.",
                "indexes": [
                    registry.db.indexes.NamedIndex(
                        fields=["tenant_id", "bucket"], name="idx_request_user_deltas_tenant"
                    )
                ],
            },
        ),
        *[
            run_sql_file(__file__, f"0006_{name}")
            for name in (
                "request_rollup_storage_v1",
                "request_bins_v1",
                "request_deltas_write_v1",
                "request_rollups_compact_v1",
                "request_rollups_rebuild_v1",
                "request_log_part_v1",
                "request_figures_v1",
                "request_performance_v1",
                "get_request_performance_summary_v2",
            )
        ],
        migrations.RunPython(count_what_is_there, migrations.RunPython.noop),
    ]
