from django.db import migrations

from registry.db.sql import run_sql_file


class Migration(migrations.Migration):
    """Small tables have no rows for ANALYZE, which saw them empty and is never due again."""

    dependencies = [
        ("monitoring", "0021_unmeasured_since"),
        (
            "gateway",
            "0008_watching_itself",
        ),  # from there on performance_monitoring reads it no more
    ]

    operations = [run_sql_file(__file__, "0022_database_size_summary_v2")]
