from django.db import migrations

from registry.db.sql import run_sql_file


class Migration(migrations.Migration):
    """Refused calls without a known key are left out of error_rate.

    Those of before stay in it as long as its window does: ten minutes.
    """

    dependencies = [
        ("gateway", "0008_watching_itself"),
        ("monitoring", "0017_strangers"),  # which counts them by themselves
    ]

    operations = [run_sql_file(__file__, "0009_performance_monitoring_v3")]
