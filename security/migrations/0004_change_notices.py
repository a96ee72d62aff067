from django.db import migrations

from registry.db.sql import run_sql_file


class Migration(migrations.Migration):
    dependencies = [
        ("security", "0003_tenant_usage_from_rollups"),
        ("registry", "0005_change_notices"),
    ]

    operations = [run_sql_file(__file__, "0004_change_notices_v1")]
