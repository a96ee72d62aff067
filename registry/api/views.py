"""Servers and tools over HTTP. Rows come from querysets, changes go to services."""

from __future__ import annotations

from typing import Any

from django.db.models import Model, Q, QuerySet
from drf_spectacular.utils import extend_schema, extend_schema_view

from registry import services
from registry.api.base import Changeable, Creatable, Listed, Removable, ScopedViewSet
from registry.api.callers import actor_of
from registry.api.filters import MCPServerFilter, ServerToolFilter
from registry.api.serializers import MCPServerSerializer, ServerToolSerializer
from registry.models import MCPServer, ServerTool

__all__ = ["MCPServerViewSet", "ServerToolViewSet"]


@extend_schema_view(
    create=extend_schema(
        summary="Register a server",
        description="It belongs to the caller's tenant; an operator names one, or null to share "
        "the server with all. Its health is checked and its tools are listed soon after.",
    ),
)
class MCPServerViewSet(Listed, Creatable, Changeable, Removable, ScopedViewSet[MCPServer]):
    """The servers that the caller may see: their tenant's own and the shared ones."""

    queryset = MCPServer.objects.none()
    serializer_class = MCPServerSerializer
    filterset_class = MCPServerFilter
    read_scope, write_scope = "read", "write"
    server_field = "pk"

    def rows(self) -> QuerySet[MCPServer]:
        # The credentials stay in the table: whether there are any needs no decryption.
        servers = MCPServer.objects.select_related("tenant").defer("credentials")
        return servers.annotate(has_credentials=Q(credentials__isnull=False))

    def of_tenant(self, rows: QuerySet[MCPServer]) -> QuerySet[MCPServer]:
        return rows.filter(Q(tenant_id=self.caller.own_tenant_id) | Q(tenant=None))

    def flag_to_change(self, row: Model) -> str:
        """Who may neither read nor set credentials must not send them elsewhere either."""
        sent = self.request.data
        if not isinstance(sent, dict):
            return self.write_flag
        moved = any(
            name in sent and sent[name] != getattr(row, name)
            for name in ("endpoint_url", "transport_type")
        )
        if "credentials" in sent or (moved and getattr(row, "has_credentials", False)):
            return "can_admin"
        return self.write_flag

    def made(self, values: dict[str, Any]) -> MCPServer:
        values["url"] = values.pop("endpoint_url")
        values["transport"] = values.pop("transport_type")
        values["tenant"] = self.tenant_for(values)
        return services.server_register(actor=actor_of(self.request), **values)

    def changed(self, row: MCPServer, values: dict[str, Any]) -> None:
        services.server_update(actor=actor_of(self.request), server=row, **values)

    def removed(self, row: MCPServer) -> None:
        services.server_delete(actor=actor_of(self.request), server=row)


class ServerToolViewSet(Listed, Changeable, ScopedViewSet[ServerTool]):
    """The tools that the caller's servers and the shared ones list."""

    queryset = ServerTool.objects.none()
    serializer_class = ServerToolSerializer
    filterset_class = ServerToolFilter
    read_scope, write_scope = "read", "write"
    server_field = "server"

    def rows(self) -> QuerySet[ServerTool]:
        return ServerTool.objects.select_related("server").defer("server__credentials")

    def of_tenant(self, rows: QuerySet[ServerTool]) -> QuerySet[ServerTool]:
        return rows.filter(Q(server__tenant_id=self.caller.own_tenant_id) | Q(server__tenant=None))

    def changed(self, row: ServerTool, values: dict[str, Any]) -> None:
        services.tool_update(actor=actor_of(self.request), tool=row, **values)
