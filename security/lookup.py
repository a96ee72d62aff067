"""A call's credentials and rules for the data plane: one statement, no ORM.

The statement reads by unique indexes only: the key by its prefix, the server by tenant and slug,
the rule by server and subject.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, time
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import class_row

from security.access import AccessRule, Caller, Target
from security.keys import ParsedKey, plain_hash

__all__ = ["FoundKey", "find_key", "find_plain_key"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundKey:
    """A key's row with its tenant, and the named server with the rule that decides."""

    id: UUID
    key_hash: bytes = field(repr=False)
    salt: bytes = field(repr=False)
    is_active: bool
    expires_at: datetime | None
    is_locked: bool
    locked_until: datetime | None
    ip_whitelist: list[str]
    user_id: UUID | None
    tenant_id: UUID | None
    scopes: list[str]
    allowed_servers: list[str]
    allowed_methods: list[str]
    rate_limit_per_hour: int
    rate_limit_per_day: int
    tenant_slug: str
    tenant_status: str
    tenant_settings: dict[str, Any]
    server_id: UUID | None
    server_slug: str | None
    server_is_enabled: bool | None
    rule_id: UUID | None
    can_proxy: bool | None
    rule_allowed_methods: list[str] | None
    rule_denied_methods: list[str] | None
    access_start_time: time | None
    access_end_time: time | None
    allowed_days: list[int] | None
    allowed_hours: list[int] | None
    timezone: str | None

    @property
    def labels(self) -> frozenset[str]:
        """What this was made of, as the notices of change name it."""
        return frozenset(
            (
                f"enhanced_api_keys.id={self.id}",
                f"api_keys.id={self.id}",
                f"users.id={self.user_id}",
                f"tenants.id={self.tenant_id}",
                f"mcp_servers.id={self.server_id}",
                f"mcp_servers.slug={self.server_slug}",  # one that would stand before this one
                f"server_access_control.server_id={self.server_id}",
            )
        )

    @property
    def caller(self) -> Caller:
        return Caller(
            api_key_id=self.id,
            user_id=self.user_id,
            tenant_id=self.tenant_id,
            tenant_slug=self.tenant_slug,
            tenant_status=self.tenant_status,
            tenant_settings=self.tenant_settings,
            scopes=self.scopes,
            allowed_servers=self.allowed_servers,
            allowed_methods=self.allowed_methods,
            rate_limit_per_hour=self.rate_limit_per_hour,
            rate_limit_per_day=self.rate_limit_per_day,
        )

    @property
    def target(self) -> Target | None:
        if self.server_id is None:
            return None
        return Target(
            id=self.server_id,
            slug=self.server_slug or "",
            is_enabled=bool(self.server_is_enabled),
            rule=self._rule,
        )

    @property
    def _rule(self) -> AccessRule | None:
        if self.rule_id is None:
            return None
        return AccessRule(
            id=self.rule_id,
            can_proxy=bool(self.can_proxy),
            allowed_methods=self.rule_allowed_methods or (),
            denied_methods=self.rule_denied_methods or (),
            access_start_time=self.access_start_time,
            access_end_time=self.access_end_time,
            allowed_days=self.allowed_days or (),
            allowed_hours=self.allowed_hours or (),
            timezone=self.timezone or "UTC",
        )


# A tenant's own server wins over a shared one of the same slug; of the rules, the key's wins
# over the user's, and that over the tenant's.
_BELONGINGS = """
       coalesce(t.slug, '') AS tenant_slug,
       coalesce(t.status, 'active') AS tenant_status,
       coalesce(t.settings, '{}') AS tenant_settings,
       s.id AS server_id, s.slug AS server_slug, s.is_enabled AS server_is_enabled,
       r.id AS rule_id, r.can_proxy,
       r.allowed_methods AS rule_allowed_methods, r.denied_methods AS rule_denied_methods,
       r.access_start_time, r.access_end_time, r.allowed_days, r.allowed_hours, r.timezone
"""
_JOINS = """
  LEFT JOIN users u ON u.id = k.user_id
  LEFT JOIN tenants t ON t.id = k.tenant_id
  LEFT JOIN LATERAL (
       SELECT m.id, m.slug, m.is_enabled FROM mcp_servers m
        WHERE m.slug = %(slug)s AND (m.tenant_id = k.tenant_id OR m.tenant_id IS NULL)
        ORDER BY m.tenant_id NULLS LAST LIMIT 1) s ON true
  LEFT JOIN LATERAL (
       SELECT a.* FROM server_access_control a
        WHERE a.server_id = s.id AND a.is_active
          AND (a.api_key_id = {key_id} OR a.user_id = k.user_id OR a.tenant_id = k.tenant_id)
        ORDER BY a.api_key_id NULLS LAST, a.user_id NULLS LAST LIMIT 1) r ON true
"""

_BY_PREFIX = (
    """
SELECT k.id, k.key_hash, k.salt, k.is_active AND coalesce(u.is_active, true) AS is_active,
       k.expires_at, k.is_locked, k.locked_until, k.ip_whitelist, k.user_id, k.tenant_id,
       k.scopes, k.allowed_servers, k.allowed_methods,
       k.rate_limit_per_hour, k.rate_limit_per_day,"""
    + _BELONGINGS
    + "  FROM enhanced_api_keys k"
    + _JOINS.format(key_id="k.id")
    + " WHERE k.key_prefix = %(prefix)s"
)

# A plain key that is not being upgraded: what it lacks has the enhanced key's defaults.
_BY_PLAIN_HASH = (
    """
SELECT k.id, ''::bytea AS key_hash, ''::bytea AS salt,
       k.is_active AND coalesce(u.is_active, true) AS is_active,
       k.expires_at, false AS is_locked, NULL::timestamptz AS locked_until,
       '{}'::text[] AS ip_whitelist, k.user_id, k.tenant_id,
       k.scopes, '{}'::text[] AS allowed_servers, '{}'::text[] AS allowed_methods,
       1000 AS rate_limit_per_hour, 10000 AS rate_limit_per_day,"""
    + _BELONGINGS
    + "  FROM api_keys k"
    + _JOINS.format(key_id="NULL::uuid")
    + " WHERE k.key_hash = %(key_hash)s"
)


async def find_key(connection: AsyncConnection[Any], *, prefix: str, slug: str) -> FoundKey | None:
    """The enhanced key of a prefix, with the server of a slug as its tenant sees it."""
    async with connection.cursor(row_factory=class_row(FoundKey)) as cursor:
        await cursor.execute(_BY_PREFIX, {"prefix": prefix, "slug": slug})
        return await cursor.fetchone()


async def find_plain_key(
    connection: AsyncConnection[Any], *, key: ParsedKey, slug: str
) -> FoundKey | None:
    """The plain key that this text is, proved by its hash; its `check_key` is not needed."""
    async with connection.cursor(row_factory=class_row(FoundKey)) as cursor:
        await cursor.execute(_BY_PLAIN_HASH, {"key_hash": plain_hash(key), "slug": slug})
        return await cursor.fetchone()
