from django.db import migrations

# They gained nothing when they were measured: docs/statistics-and-storage.md.
DEFAULTS = """
ALTER TABLE circuit_breakers RESET (fillfactor, autovacuum_vacuum_scale_factor);
ALTER TABLE connection_pools RESET (fillfactor, autovacuum_vacuum_scale_factor);
ALTER TABLE request_queues RESET (fillfactor, autovacuum_vacuum_scale_factor);
ALTER TABLE gateway_processes RESET (fillfactor, autovacuum_vacuum_scale_factor);
"""
AS_BEFORE = """
ALTER TABLE circuit_breakers SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE connection_pools SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE request_queues SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE gateway_processes SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);
"""


class Migration(migrations.Migration):
    dependencies = [("gateway", "0009_strangers")]

    operations = [migrations.RunSQL(DEFAULTS, AS_BEFORE)]
