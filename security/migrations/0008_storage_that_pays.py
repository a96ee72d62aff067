from django.db import migrations

# They gained nothing when they were measured: docs/statistics-and-storage.md.
DEFAULTS = """
ALTER TABLE enhanced_api_keys RESET (autovacuum_vacuum_scale_factor);
ALTER TABLE server_access_control RESET (fillfactor, autovacuum_vacuum_scale_factor);
ALTER TABLE sessions RESET (fillfactor, autovacuum_vacuum_scale_factor);
"""
AS_BEFORE = """
ALTER TABLE enhanced_api_keys SET (autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE server_access_control SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE sessions SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);
"""


class Migration(migrations.Migration):
    dependencies = [("security", "0007_expert_indexes")]

    operations = [migrations.RunSQL(DEFAULTS, AS_BEFORE)]
