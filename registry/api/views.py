"""Servers and tools over HTTP. Rows come from querysets, changes go to services."""

from __future__ import annotations

from typing import Any, ClassVar, cast
from uuid import UUID

from django.db.models import Model, Q, QuerySet
from drf_spectacular.utils import extend_schema, extend_schema_view
from rest_framework.generics import GenericAPIView
from rest_framework.request import Request
from rest_framework.response import Response

from registry import services
from registry.api.base import Changeable, Creatable, Listed, Removable, ScopedViewSet
from registry.api.callers import actor_of, caller_of
from registry.api.filters import MCPServerFilter, ServerToolFilter, refuse_empty
from registry.api.schema import table_of
from registry.api.serializers import (
    DiscoverySerializer,
    MCPServerSerializer,
    ServerToolSerializer,
)
from registry.models import MCPServer, ServerTool
from registry.querysets import MCPServerQuerySet

__all__ = ["MCPServerViewSet", "ServerDiscoveryView", "ServerToolViewSet"]


def _shown() -> MCPServerQuerySet:
    """Servers with what their serializer reads.

    The credentials stay in the table: whether there are any needs no decryption.
    """
    servers = MCPServer.objects.select_related("tenant").defer("credentials")
    return servers.annotate(has_credentials=Q(credentials__isnull=False))


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
        return _shown()

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


class ServerDiscoveryView(GenericAPIView[MCPServer]):
    """Whom to call: the fastest of the servers that are up."""

    queryset = MCPServer.objects.none()  # the caller's rules narrow what get() opens
    serializer_class = MCPServerSerializer
    pagination_class = None
    read_scope = "read"
    server_field = "pk"
    parameters: ClassVar[frozenset[str]] = frozenset({"transport", "limit", "tenant"})

    @extend_schema(
        operation_id="servers_discover",
        summary="The fastest usable servers",
        description="Enabled servers of one transport that are healthy or degraded, lowest "
        "average response time first: the tenant's own and the shared ones; for an operator the "
        "shared ones, unless a tenant is named.",
        parameters=[DiscoverySerializer],
        responses=table_of(MCPServerSerializer),
    )
    def get(self, request: Request) -> Response:
        readable = cast("MCPServerQuerySet", self.filter_queryset(_shown()))
        refuse_empty(request, self.parameters)
        asked = DiscoverySerializer(data=request.query_params, context={"request": request})
        asked.is_valid(raise_exception=True)
        servers = readable.fastest(
            tenant_id=self._tenant_id(asked.validated_data),
            transport=asked.validated_data["transport"],
            limit=asked.validated_data["limit"],
        )
        rows = self.get_serializer(servers, many=True).data
        return Response({"next": None, "previous": None, "results": rows})

    def _tenant_id(self, asked: dict[str, Any]) -> UUID | None:
        named = asked["tenant"]
        return named.pk if named else caller_of(self.request).tenant_id


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
