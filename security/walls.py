"""Which users, logins, keys and rules are a tenant's."""

from typing import LiteralString

from registry.db.walls import OF_OWN_SERVER, OF_VISIBLE_SERVER, Wall

__all__ = ["WALLS"]

_OF_OWN_USER: LiteralString = (
    "EXISTS (SELECT FROM users AS person WHERE person.id = user_id AND person.tenant_id = {tenant})"
)
# A rule belongs to its subject's tenant, for a shared server has rules of many; and to its
# server's, for it goes when the server goes. See Note [IN to read, EXISTS to change].
_RULE_READ: LiteralString = (
    "tenant_id = {tenant}"
    " OR user_id IN (SELECT person.id FROM users AS person WHERE person.tenant_id = {tenant})"
    " OR api_key_id IN"
    " (SELECT key.id FROM enhanced_api_keys AS key WHERE key.tenant_id = {tenant})"
    " OR server_id IN"
    " (SELECT server.id FROM mcp_servers AS server WHERE server.tenant_id = {tenant})"
)
_OF_OWN_SUBJECT: LiteralString = (
    "tenant_id = {tenant} OR " + _OF_OWN_USER + " OR EXISTS (SELECT FROM enhanced_api_keys AS key"
    " WHERE key.id = api_key_id AND key.tenant_id = {tenant})"
)

WALLS = (
    Wall(table="users", read="tenant_id = {tenant}", secret=("password",)),
    # The login of a tenant's user goes on while the API answers as that tenant.
    Wall(
        table="sessions",
        read=_OF_OWN_USER,
        change=_OF_OWN_USER,
        secret=("session_token", "session_data"),
    ),
    Wall(table="api_keys", read="tenant_id = {tenant}", secret=("key_hash",)),
    Wall(
        table="enhanced_api_keys",
        read="tenant_id = {tenant}",
        change="tenant_id = {tenant}",
        secret=("key_hash", "salt"),
    ),
    Wall(
        table="server_access_control",
        read=_RULE_READ,
        change=_OF_OWN_SUBJECT + " OR " + OF_OWN_SERVER,
        add="(" + _OF_OWN_SUBJECT + ") AND " + OF_VISIBLE_SERVER,
    ),
)
