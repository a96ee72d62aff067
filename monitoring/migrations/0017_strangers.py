from django.db import migrations

from registry.db.sql import run_sql_file


class Migration(migrations.Migration):
    """Refused calls without a known key are counted in a row of their own."""

    dependencies = [("monitoring", "0016_request_series")]

    operations = [
        run_sql_file(__file__, "0017_request_deltas_write_v2"),
        run_sql_file(__file__, "0017_request_rollups_rebuild_v2"),
    ]
