from django.db import migrations

from registry.db.sql import run_sql_file


class Migration(migrations.Migration):
    dependencies = [("gateway", "0001_initial"), ("registry", "0001_initial")]

    operations = [
        run_sql_file(__file__, "0002_server_defaults_v1"),
        run_sql_file(__file__, "0002_breaker_state_change_v1"),
    ]
