from django.db import migrations

# Checks rewrite half of the servers every minute: autovacuum comes each minute with its default
# share too. Figures: docs/statistics-and-storage.md.
DEFAULTS = "ALTER TABLE mcp_servers RESET (autovacuum_vacuum_scale_factor)"
AS_BEFORE = "ALTER TABLE mcp_servers SET (autovacuum_vacuum_scale_factor = 0.05)"


class Migration(migrations.Migration):
    dependencies = [("registry", "0008_discovery_indexes")]

    operations = [migrations.RunSQL(DEFAULTS, AS_BEFORE)]
