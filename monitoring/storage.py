"""How monitoring's tables keep their rows, and what is learnt of them: see registry.db.storage."""

from registry.db.storage import Statistics, Storage

__all__ = ["DELTAS", "STATISTICS", "STORAGE"]

STATISTICS = (
    Statistics(
        name="st_request_logs_tenant_server",
        table="request_logs",
        columns=("tenant_id", "target_server_id"),
        kind="dependencies",
        reason="a server is called by few tenants: taken for independent, a tenant's calls of one "
        "server are expected to be a row or two, and all are fetched and sorted for a page of them",
    ),
)

# Vacuum and ANALYZE by the number of rows alone: a share of a table that is empty most of the
# time would be exceeded every minute.
DELTAS = {
    "autovacuum_vacuum_scale_factor": 0,
    "autovacuum_vacuum_threshold": 5000,
    "autovacuum_vacuum_insert_scale_factor": 0,
    "autovacuum_vacuum_insert_threshold": 50000,
    "autovacuum_analyze_scale_factor": 0,
    "autovacuum_analyze_threshold": 20000,
    "autovacuum_vacuum_cost_delay": 0,
}
STORAGE = (
    Storage(
        table="request_rollups",
        parameters={"fillfactor": 70},
        reason="the newest buckets are added to every few seconds",
    ),
    Storage(
        table="request_usage",
        parameters={"fillfactor": 80},
        reason="the newest hour is added to every few seconds",
    ),
    Storage(
        table="request_users",
        parameters={"fillfactor": 80},
        reason="the newest hour is added to every few seconds",
    ),
    Storage(
        table="metric_snapshots",
        parameters={"fillfactor": 80},
        reason="the newest five minutes are widened by each pass over the alerts",
    ),
    *(
        Storage(table=table, parameters=DELTAS, reason="rows come and go within seconds")
        for table in ("request_rollup_deltas", "request_usage_deltas", "request_user_deltas")
    ),
)
