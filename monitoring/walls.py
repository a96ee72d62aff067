"""Which rows of the logs and alerts are a tenant's."""

from typing import LiteralString

from registry.db.walls import OF_OWN_SERVER, Wall

__all__ = ["WALLS"]

_OF_OWN_ALERT: LiteralString = (
    "EXISTS (SELECT FROM performance_alerts AS alert"
    " JOIN mcp_servers AS server ON server.id = alert.server_id"
    " WHERE alert.id = alert_id AND server.tenant_id = {tenant})"
)

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
    # A trigger of request_logs and the worker write these. The rows of all tenants together bear no
    # tenant's id, so they are the operators'.
    Wall(table="request_rollups", read="tenant_id = {tenant}"),
    Wall(table="request_rollup_deltas", read="tenant_id = {tenant}"),
    Wall(table="request_usage", read="tenant_id = {tenant}"),
    Wall(table="request_usage_deltas", read="tenant_id = {tenant}"),
    Wall(table="request_users", read="tenant_id = {tenant}"),
    Wall(table="request_user_deltas", read="tenant_id = {tenant}"),
    # Alerts on all servers are the operators'.
    Wall(
        table="performance_alerts",
        read=OF_OWN_SERVER,
        change=OF_OWN_SERVER,
        secret=("notification_channels", "channel_secrets"),  # a webhook's URL is a secret, too
    ),
    # A tenant that looks after an alert, changes or removes one, writes or removes its history too.
    Wall(table="alert_events", read=_OF_OWN_ALERT, change=_OF_OWN_ALERT),
)
