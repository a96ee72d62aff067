from django.db import migrations

# On the parent for the partitions to come, which LIKE gives the same, and on those that there are,
# under the names that LIKE would choose. The next ANALYZE fills them.
STATISTICS = """
CREATE STATISTICS IF NOT EXISTS st_request_logs_tenant_server (dependencies)
    ON tenant_id, target_server_id FROM request_logs;
DO $$
DECLARE
    leaf record;
BEGIN
    FOR leaf IN SELECT n.nspname, c.relname
                FROM pg_partition_tree('request_logs') t
                JOIN pg_class c ON c.oid = t.relid
                JOIN pg_namespace n ON n.oid = c.relnamespace
                WHERE t.isleaf AND t.level > 0
    LOOP
        EXECUTE format(
            'CREATE STATISTICS IF NOT EXISTS %1$I.%2$I (dependencies)'
            ' ON tenant_id, target_server_id FROM %1$I.%3$I',
            leaf.nspname, leaf.relname || '_tenant_id_target_server_id_stat', leaf.relname);
    END LOOP;
END $$;
"""
NO_STATISTICS = """
DO $$
DECLARE
    made record;
BEGIN
    FOR made IN SELECT n.nspname, s.stxname
                FROM pg_partition_tree('request_logs') t
                JOIN pg_statistic_ext s ON s.stxrelid = t.relid
                JOIN pg_namespace n ON n.oid = s.stxnamespace
                WHERE s.stxname = 'st_request_logs_tenant_server'
                   OR s.stxname LIKE '%\\_tenant\\_id\\_target\\_server\\_id\\_stat'
    LOOP
        EXECUTE format('DROP STATISTICS %I.%I', made.nspname, made.stxname);
    END LOOP;
END $$;
"""
# Parameters that gained nothing when they were measured (docs/statistics-and-storage.md): updates
# that stay on their page have their dead versions cleared away by the next reader, before vacuum
# would be due, and rows that are all rewritten every few seconds make room for themselves.
DEFAULTS = """
ALTER TABLE request_rollups RESET (autovacuum_vacuum_scale_factor);
ALTER TABLE request_usage RESET (autovacuum_vacuum_scale_factor);
ALTER TABLE request_users RESET (autovacuum_vacuum_scale_factor);
ALTER TABLE periodic_tasks RESET (fillfactor);
"""
AS_BEFORE = """
ALTER TABLE request_rollups SET (autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE request_usage SET (autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE request_users SET (autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE periodic_tasks SET (fillfactor = 50);
"""


class Migration(migrations.Migration):
    dependencies = [("monitoring", "0017_strangers")]

    operations = [
        migrations.RunSQL(STATISTICS, NO_STATISTICS),
        migrations.RunSQL(DEFAULTS, AS_BEFORE),
    ]
