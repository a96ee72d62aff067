from django.db import migrations

from registry.db.sql import run_sql_file


class Migration(migrations.Migration):
    dependencies = [
        ("gateway", "0002_server_defaults"),
        ("monitoring", "0003_summaries"),
    ]

    operations = [
        run_sql_file(__file__, "0003_get_server_health_summary_v1"),
        run_sql_file(__file__, "0003_performance_monitoring_v1"),
    ]
