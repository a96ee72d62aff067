from django.db import migrations

from registry.db.sql import run_sql_file


class Migration(migrations.Migration):
    dependencies = [("monitoring", "0015_archive")]

    operations = [run_sql_file(__file__, "0016_request_series_v1")]
