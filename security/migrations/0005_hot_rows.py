from django.db import migrations

# Room on each page for the next version of a row, so that an update which touches no indexed
# column stays on its page (HOT): no index grows, and the next reader clears the old version away.
# It counts for pages written from now on.
HOT = """
ALTER TABLE enhanced_api_keys SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE server_access_control SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE sessions SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);
"""
AS_BEFORE = """
ALTER TABLE enhanced_api_keys RESET (fillfactor, autovacuum_vacuum_scale_factor);
ALTER TABLE server_access_control RESET (fillfactor, autovacuum_vacuum_scale_factor);
ALTER TABLE sessions RESET (fillfactor, autovacuum_vacuum_scale_factor);
"""


class Migration(migrations.Migration):
    dependencies = [("security", "0004_change_notices")]

    operations = [migrations.RunSQL(HOT, AS_BEFORE)]
