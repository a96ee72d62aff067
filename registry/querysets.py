"""Questions about servers and tools, each in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self
from uuid import UUID

from django.db import models
from django.db.models import Q

if TYPE_CHECKING:
    from registry.models import MCPServer, ServerTool  # noqa: F401  (the generic parameters)

USABLE = ("healthy", "degraded")


class MCPServerQuerySet(models.QuerySet["MCPServer"]):
    def visible_to(self, tenant_id: UUID | None) -> Self:
        """A tenant's own servers and the shared ones."""
        return self.filter(Q(tenant_id=tenant_id) | Q(tenant=None))

    def usable(self) -> Self:
        """Enabled servers that a caller may expect an answer from."""
        return self.filter(is_enabled=True, health_status__in=USABLE)

    def fastest(self, *, tenant_id: UUID | None, transport: str, limit: int) -> Self:
        """The usable servers of one transport that a tenant may call, lowest latency first.

        Its own and the shared ones; for no tenant the shared ones. Never measured ones come last.
        What narrows the servers further has to come before: the answer takes no more conditions.

        Two ordered scans, which PostgreSQL merges: of idx_mcp_servers_tenant_fastest and of
        idx_mcp_servers_shared_fastest. As one condition with OR it would read all and sort, and
        `tenant_id IS NULL` as a key would keep no order. Change query and indexes together.
        """
        found = self.usable().filter(transport_type=transport).order_by("avg_response_time")
        shared = found.filter(tenant=None)[:limit]
        if tenant_id is None:
            return shared
        own = found.filter(tenant_id=tenant_id)[:limit]
        return own.union(shared, all=True).order_by("avg_response_time")[:limit]


class ServerToolQuerySet(models.QuerySet["ServerTool"]):
    def named(self, name: str) -> Self:
        """One tool name on every usable server that offers it, best record first.

        One of the performance guide's queries; the catalogue of indexes runs it, no page does yet.
        """
        return self.filter(
            name=name,
            is_enabled=True,
            server__is_enabled=True,
            server__health_status__in=USABLE,
        ).order_by("-success_count")
