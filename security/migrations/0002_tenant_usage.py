from django.db import migrations

from registry.db.sql import run_sql_file


class Migration(migrations.Migration):
    dependencies = [
        ("security", "0001_initial"),
        ("monitoring", "0003_summaries"),
        ("registry", "0002_resolve_tenant"),
    ]

    operations = [run_sql_file(__file__, "0002_get_tenant_usage_summary_v1")]
