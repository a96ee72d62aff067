from django.db import migrations

from registry.db.sql import run_sql_file


class Migration(migrations.Migration):
    dependencies = [
        ("gateway", "0003_monitoring"),
    ]

    operations = [
        run_sql_file(__file__, "0004_server_health_v1"),
        run_sql_file(__file__, "0004_get_server_health_summary_v2"),
    ]
