from django.db import migrations

from registry.db.sql import run_sql_file


class Migration(migrations.Migration):
    """A least number of calls and of reads before a figure means something; how late tasks are."""

    dependencies = [
        ("gateway", "0010_storage_that_pays"),
        ("monitoring", "0020_rows_read"),  # what was read before, to be subtracted
    ]

    operations = [run_sql_file(__file__, "0011_performance_monitoring_v4")]
