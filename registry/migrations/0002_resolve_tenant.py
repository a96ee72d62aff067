from django.db import migrations

from registry.db.sql import run_sql_file


class Migration(migrations.Migration):
    dependencies = [("registry", "0001_initial")]

    operations = [run_sql_file(__file__, "0002_resolve_tenant_v1")]
