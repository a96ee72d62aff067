"""Keys and rules over HTTP, for administrators of a tenant and for operators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import Q, QuerySet
from drf_spectacular.utils import extend_schema, extend_schema_view
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from registry.api.base import Changeable, Creatable, Listed, Removable, ScopedViewSet, checked
from registry.api.callers import actor_of
from registry.api.errors import Conflict
from security import services
from security.api.filters import AccessRuleFilter, APIKeyFilter
from security.api.permissions import holds
from security.api.serializers import (
    AccessRuleSerializer,
    APIKeySerializer,
    CreatedAPIKeySerializer,
)
from security.limits import narrowed
from security.models import DEFAULT_SCOPES, EnhancedAPIKey, ServerAccessControl

__all__ = ["APIKeyViewSet", "AccessRuleViewSet"]


class APIKeyViewSet(Listed, Changeable, ScopedViewSet[EnhancedAPIKey]):
    """API keys. They are revoked rather than deleted: logs go on naming them."""

    queryset = EnhancedAPIKey.objects.none()
    serializer_class = APIKeySerializer
    filterset_class = APIKeyFilter
    read_scope, write_scope = "admin", "admin"
    tenant_field = "tenant_id"

    def rows(self) -> QuerySet[EnhancedAPIKey]:
        return EnhancedAPIKey.objects.select_related("tenant").defer("key_hash", "salt")

    @extend_schema(summary="Make a key", responses={201: CreatedAPIKeySerializer})
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        serializer = checked(self.get_serializer(data=request.data))
        values = self._within_own(serializer.validated_data, new=True)
        values["tenant"] = self.tenant_for(values)
        values.setdefault("scopes", DEFAULT_SCOPES)
        row, text = services.api_key_create(actor=actor_of(request), **values)
        row.text = text  # type: ignore[attr-defined]
        context = self.get_serializer_context()
        answer = Response(CreatedAPIKeySerializer(row, context=context).data, status=201)
        answer["Cache-Control"] = "no-store"
        return answer

    def changed(self, row: EnhancedAPIKey, values: dict[str, Any]) -> None:
        values = self._within_own(values, new=False)
        services.api_key_update(actor=actor_of(self.request), key=row, **values)

    def _within_own(self, values: dict[str, Any], *, new: bool) -> dict[str, Any]:
        """A restricted key makes no freer one, and frees neither itself nor others."""
        presented = self.request.auth
        limits = presented if isinstance(presented, EnhancedAPIKey) else None
        return narrowed(values, limits=limits, scopes=tuple(self.caller.scopes), new=new)

    @extend_schema(summary="Switch a key off for good", request=None)
    @action(detail=True, methods=["post"])
    def revoke(self, request: Request, pk: str) -> Response:
        key = self.get_object()
        services.api_key_revoke(actor=actor_of(request), key=key)
        return self.answer(key)

    @extend_schema(summary="Keep a key out until it is unlocked", request=None)
    @action(detail=True, methods=["post"])
    def lock(self, request: Request, pk: str) -> Response:
        key = self.get_object()
        services.api_key_lock(actor=actor_of(request), key=key)
        return self.answer(key)

    @extend_schema(summary="Let a locked key in again", request=None)
    @action(detail=True, methods=["post"])
    def unlock(self, request: Request, pk: str) -> Response:
        key = self.get_object()
        services.api_key_unlock(actor=actor_of(request), key=key)
        return self.answer(key)


KEPT = "409 when the caller would then lack `can_read` or `can_admin` on the server: no way back."


@extend_schema_view(
    create=extend_schema(
        summary="Add a rule",
        description="Needs `can_admin` on the server. Of the active rules of a server the most "
        f"specific decides: a key's, then a user's, then a tenant's. {KEPT}",
    ),
    partial_update=extend_schema(description=KEPT),
    destroy=extend_schema(description=KEPT),
)
class AccessRuleViewSet(
    Listed, Creatable, Changeable, Removable, ScopedViewSet[ServerAccessControl]
):
    """What users, tenants and keys may do with a server, and when."""

    queryset = ServerAccessControl.objects.none()
    serializer_class = AccessRuleSerializer
    filterset_class = AccessRuleFilter
    read_scope, write_scope = "admin", "admin"
    server_field = "server"
    write_flag = "can_admin"

    def rows(self) -> QuerySet[ServerAccessControl]:
        return ServerAccessControl.objects.select_related("tenant")

    def of_tenant(self, rows: QuerySet[ServerAccessControl]) -> QuerySet[ServerAccessControl]:
        """A rule belongs to its subject's tenant: a shared server has rules of many."""
        tenant_id = self.caller.own_tenant_id
        return rows.filter(
            Q(tenant_id=tenant_id) | Q(user__tenant_id=tenant_id) | Q(api_key__tenant_id=tenant_id)
        )

    def made(self, values: dict[str, Any]) -> ServerAccessControl:
        self.check_object_permissions(self.request, values["server"])
        with self._way_back(values["server"].pk):
            return services.access_rule_create(actor=actor_of(self.request), **values)

    def changed(self, row: ServerAccessControl, values: dict[str, Any]) -> None:
        with self._way_back(row.server_id):
            services.access_rule_update(actor=actor_of(self.request), rule=row, **values)

    def removed(self, row: ServerAccessControl) -> None:
        with self._way_back(row.server_id):
            services.access_rule_delete(actor=actor_of(self.request), rule=row)

    @contextmanager
    def _way_back(self, server_id: UUID) -> Iterator[None]:
        """Undo what would leave the caller unable to see or change the server's rules."""
        with transaction.atomic():
            yield
            if not holds(self.caller, server_id, "can_read", "can_admin"):
                raise Conflict(
                    "After this you could not change this server's rules any more. Grant "
                    "'can_read' and 'can_admin' here, or first to your own key or user."
                )
