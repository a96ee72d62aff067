"""Which rows of the registry's tables are a tenant's: its own, and to read, the shared ones."""

from registry.db.walls import OF_OWN_SERVER, OF_VISIBLE_SERVER, Wall

__all__ = ["WALLS"]

WALLS = (
    # Operators alone make and change tenants.
    Wall(table="tenants", read="id = {tenant}"),
    # Own or shared, in a form for which the planner assumes one half and uses no index. As OR it
    # would be multiplied with what every query asks for anyway: a tenth of the shared servers
    # where a tenth of all are, and a bitmap and a sort in place of MCPServer.objects.fastest()'s
    # ordered scans.
    Wall(
        table="mcp_servers",
        read="coalesce(tenant_id = {tenant}, tenant_id IS NULL) AND {tenant} IS NOT NULL",
        change="tenant_id = {tenant}",
        secret=("credentials",),
    ),
    Wall(table="server_tools", read=OF_VISIBLE_SERVER, change=OF_OWN_SERVER),
    Wall(table="server_resources", read=OF_VISIBLE_SERVER, change=OF_OWN_SERVER),
    Wall(table="server_prompts", read=OF_VISIBLE_SERVER, change=OF_OWN_SERVER),
    # What the gateway measured is nobody's to change.
    Wall(table="server_metrics", read=OF_VISIBLE_SERVER),
    Wall(
        table="system_configs",
        read="(tenant_id = {tenant} OR (tenant_id IS NULL AND NOT is_sensitive))"
        " AND {tenant} IS NOT NULL",
        change="tenant_id = {tenant}",
        secret=("value",),
    ),
)
