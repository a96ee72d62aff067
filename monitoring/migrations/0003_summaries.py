from django.db import migrations

from registry.db.sql import run_sql_file


class Migration(migrations.Migration):
    dependencies = [("monitoring", "0002_snapshots_and_runs")]

    operations = [
        run_sql_file(__file__, "0003_summary_window_start_v1"),
        run_sql_file(__file__, "0003_get_request_performance_summary_v1"),
        run_sql_file(__file__, "0003_database_size_summary_v1"),
        run_sql_file(__file__, "0003_index_usage_summary_v1"),
    ]
