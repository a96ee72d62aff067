"""How registry's tables keep their rows: see registry.db.storage."""

from registry.db.storage import Storage

__all__ = ["STORAGE"]

STORAGE = (
    Storage(
        table="mcp_servers",
        parameters={"fillfactor": 80},
        reason="every second health check changes no indexed column and stays on its page",
    ),
    Storage(
        table="server_tools",
        parameters={"fillfactor": 80, "autovacuum_vacuum_scale_factor": 0.05},
        reason="counts are in indexes, which grow by dead entries; with INDEX_PROFILE=expert they "
        "are in none, and an update stays on its page",
    ),
)
