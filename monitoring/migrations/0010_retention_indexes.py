from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations

import registry.db.indexes


class Migration(migrations.Migration):
    atomic = False  # as CONCURRENTLY asks for

    dependencies = [("monitoring", "0009_materialized_views")]

    operations = [
        AddIndexConcurrently(
            model_name="alertevent",
            index=registry.db.indexes.NamedIndex(
                fields=["occurred_at"], name="idx_alert_events_occurred_at"
            ),
        ),
        AddIndexConcurrently(
            model_name="databasesizesnapshot",
            index=registry.db.indexes.NamedIndex(
                fields=["taken_on"], name="idx_database_size_snapshots_taken_on"
            ),
        ),
        AddIndexConcurrently(
            model_name="statementsnapshot",
            index=registry.db.indexes.NamedIndex(
                fields=["taken_at"], name="idx_statement_snapshots_taken_at"
            ),
        ),
        AddIndexConcurrently(
            model_name="optimizerun",
            index=registry.db.indexes.NamedIndex(
                fields=["-started_at"], name="idx_optimize_runs_started_at"
            ),
        ),
    ]
