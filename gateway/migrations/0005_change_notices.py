from django.db import migrations

from registry.db.sql import run_sql_file


class Migration(migrations.Migration):
    dependencies = [("gateway", "0004_server_health"), ("registry", "0005_change_notices")]

    operations = [run_sql_file(__file__, "0005_change_notices_v1")]
