from django.db import migrations

# Room on each page for the next version of a row, so that an update which touches no indexed
# column stays on its page (HOT): no index grows, and the next reader clears the old version away.
# It counts for pages written from now on.
HOT = """
ALTER TABLE circuit_breakers SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE connection_pools SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE request_queues SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);
"""
AS_BEFORE = """
ALTER TABLE circuit_breakers RESET (fillfactor, autovacuum_vacuum_scale_factor);
ALTER TABLE connection_pools RESET (fillfactor, autovacuum_vacuum_scale_factor);
ALTER TABLE request_queues RESET (fillfactor, autovacuum_vacuum_scale_factor);
"""


class Migration(migrations.Migration):
    dependencies = [("gateway", "0005_change_notices")]

    operations = [migrations.RunSQL(HOT, AS_BEFORE)]
