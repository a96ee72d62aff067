from django.db import migrations

from registry.db.sql import run_sql_file


class Migration(migrations.Migration):
    dependencies = [
        ("security", "0002_tenant_usage"),
        ("monitoring", "0006_rollups"),
    ]

    operations = [run_sql_file(__file__, "0003_get_tenant_usage_summary_v2")]
