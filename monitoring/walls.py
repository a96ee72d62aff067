"""Which rows of the logs and alerts are a tenant's."""

from registry.db.walls import OF_OWN_SERVER, Wall

__all__ = ["WALLS"]

WALLS = (
    # A tenant's change and its audit entry are one transaction. What is written stays.
    Wall(
        table="audit_logs",
        read="tenant_id = {tenant}",
        add="tenant_id = {tenant}",
        append_only=True,
    ),
    # The data plane writes it, for everybody.
    Wall(table="request_logs", read="tenant_id = {tenant}"),
    # Alerts on all servers are the operators'.
    Wall(table="performance_alerts", read=OF_OWN_SERVER, change=OF_OWN_SERVER),
)
