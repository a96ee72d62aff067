from django.db import migrations

# Room on each page for the next version of a row, so that an update which touches no indexed
# column stays on its page (HOT): no index grows, and the next reader clears the old version away.
# It counts for pages written from now on.
HOT = """
ALTER TABLE mcp_servers SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE server_tools SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);
"""
AS_BEFORE = """
ALTER TABLE mcp_servers RESET (fillfactor, autovacuum_vacuum_scale_factor);
ALTER TABLE server_tools RESET (fillfactor, autovacuum_vacuum_scale_factor);
"""


class Migration(migrations.Migration):
    dependencies = [("registry", "0005_change_notices")]

    operations = [migrations.RunSQL(HOT, AS_BEFORE)]
