from django.db import migrations

from registry.db.sql import run_sql_file


class Migration(migrations.Migration):
    """Refused calls without a known key are counted by themselves and left out of error_rate.

    Those of before stay in it as long as its window does: ten minutes.
    """

    dependencies = [
        ("gateway", "0008_watching_itself"),
        # The trigger and its companion of 0006 are replaced.
        ("monitoring", "0016_request_series"),
    ]

    operations = [
        run_sql_file(__file__, "0009_request_deltas_write_v2"),
        run_sql_file(__file__, "0009_request_rollups_rebuild_v2"),
        run_sql_file(__file__, "0009_performance_monitoring_v3"),
    ]
