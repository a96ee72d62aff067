from django.db import migrations

from registry.db.sql import run_sql_file


class Migration(migrations.Migration):
    """An open breaker of a server that is disabled is nothing to be alarmed about."""

    dependencies = [("gateway", "0012_metrics_one_by_one")]

    operations = [run_sql_file(__file__, "0013_performance_monitoring_v6")]
