from django.db import migrations

from registry.db.sql import run_sql_file


class Migration(migrations.Migration):
    """A reader who names some metrics of the view computes these and no others."""

    dependencies = [("gateway", "0011_metrics_that_do_not_cry_wolf")]

    operations = [run_sql_file(__file__, "0012_performance_monitoring_v5")]
