"""What every view of the API shares. Scopes, rules and credentials are security's: see settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar

from django.db.models import Model, QuerySet
from django.http import Http404
from rest_framework import serializers
from rest_framework.exceptions import NotFound
from rest_framework.mixins import ListModelMixin, RetrieveModelMixin
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.routers import SimpleRouter
from rest_framework.serializers import BaseSerializer
from rest_framework.viewsets import GenericViewSet

from registry.api.callers import Caller, caller_of
from registry.api.fields import NamesARow
from registry.models import MCPServer, Tenant

__all__ = [
    "Changeable",
    "Creatable",
    "Listed",
    "OwnServerField",
    "Removable",
    "Router",
    "ScopedViewSet",
    "TenantField",
    "VisibleServerField",
    "checked",
]

UUID_PATTERN = "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"

Row = TypeVar("Row", bound=Model)


class Router(SimpleRouter):
    """Paths as the interface names them; a slash at the end is welcome, never needed."""

    def __init__(self) -> None:
        super().__init__()
        self.trailing_slash = "/?"


class ScopedViewSet(GenericViewSet[Row], Generic[Row]):
    """Rows of one tenant, or of all for an operator.

    A subclass names the scopes that reading and changing need; without them nobody is let in.
    """

    read_scope: ClassVar[str | None] = None
    write_scope: ClassVar[str | None] = None
    operators_only: ClassVar[bool] = False  # facts about the whole gateway
    of_gateway: ClassVar[bool] = False  # has rows of no tenant, for those who run the gateway
    tenant_field: ClassVar[str | None] = None  # the way from a row to its tenant's id
    # The way from a row to its server, whose access rules hold: "pk" when it is one.
    server_field: ClassVar[str | None] = None
    write_flag: ClassVar[str] = "can_write"  # what the rule must grant for a change

    lookup_value_regex = UUID_PATTERN
    http_method_names = ["get", "post", "patch", "delete", "head", "options"]

    @property
    def caller(self) -> Caller:
        return caller_of(self.request)

    def rows(self) -> QuerySet[Row]:
        """Every row, with the joins that its serializer reads."""
        raise NotImplementedError

    def get_queryset(self) -> QuerySet[Row]:
        """The one place that opens a tenant."""
        rows = self.rows()
        of_nobody = getattr(self, "operators_only", False)  # the permission let them in
        return rows if self.caller.is_operator or of_nobody else self.of_tenant(rows)

    def get_object(self) -> Row:
        try:
            return super().get_object()
        except Http404:
            noun, pk = self.rows().model._meta.verbose_name, self.kwargs["pk"]
            text = f"There is no {noun} with the id {pk}, or none that you may see."
            raise NotFound(text) from None

    def of_tenant(self, rows: QuerySet[Row]) -> QuerySet[Row]:
        """The rows of the caller's tenant; none where no way to a tenant is named."""
        if self.tenant_field is None:
            return rows.none()
        return rows.filter(**{self.tenant_field: self.caller.own_tenant_id})

    def flag_to_change(self, row: Model) -> str:
        """What the deciding access rule must grant for this request's change of a row."""
        return self.write_flag

    def answer(self, row: Row, *, status: int = 200) -> Response:
        """The row as it is now, with its joins."""
        fresh = self.rows().get(pk=row.pk)
        return Response(self.get_serializer(fresh).data, status=status)

    def tenant_for(self, values: dict[str, Any]) -> Tenant | None:
        """Whose a new row is: the caller's tenant's; what they said, for an operator."""
        if self.caller.is_operator:
            return values.get("tenant")
        return Tenant.objects.get(pk=self.caller.own_tenant_id)


def checked(serializer: BaseSerializer[Any]) -> BaseSerializer[Any]:
    """The serializer, valid. 400 names what does not fit, and each field that there is not.

    A field that is only shown may be sent back as it was; a misspelt one would be passed over, and
    what it was to restrict would be free.
    """
    serializer.is_valid(raise_exception=True)
    given, fields = serializer.initial_data, getattr(serializer, "fields", {})
    if unknown := [str(name) for name in given if name not in fields]:
        writable = ", ".join(name for name, field in fields.items() if not field.read_only)
        text = f"No such field. There are: {writable}."
        raise serializers.ValidationError({name: [text] for name in unknown})
    return serializer


class Listed(ListModelMixin, RetrieveModelMixin):
    """GET of a page and of one row."""


class Creatable:
    """POST. `made` makes the row through its service."""

    def create(self: Any, request: Request, *args: Any, **kwargs: Any) -> Response:
        serializer = checked(self.get_serializer(data=request.data))
        answer: Response = self.answer(self.made(serializer.validated_data), status=201)
        return answer


class Changeable:
    """PATCH. `changed` changes the row through its service."""

    def partial_update(self: Any, request: Request, *args: Any, **kwargs: Any) -> Response:
        row = self.get_object()
        serializer = checked(self.get_serializer(row, data=request.data, partial=True))
        self.changed(row, serializer.validated_data)
        answer: Response = self.answer(row)
        return answer


class Removable:
    """DELETE. `removed` removes the row through its service."""

    def destroy(self: Any, request: Request, *args: Any, **kwargs: Any) -> Response:
        self.removed(self.get_object())
        return Response(status=204)


def _servers(context: Mapping[str, Any], *, shared: bool) -> QuerySet[MCPServer]:
    caller = caller_of(context["request"])
    if caller.is_operator:
        return MCPServer.objects.all()
    if shared:
        return MCPServer.objects.visible_to(caller.tenant_id)
    return MCPServer.objects.filter(tenant_id=caller.own_tenant_id)


class VisibleServerField(NamesARow, serializers.PrimaryKeyRelatedField[MCPServer]):
    """The id of one of the caller's servers or of a shared one; others do not exist for them."""

    shared = True

    def __init__(self, **kwargs: Any) -> None:
        if not kwargs.get("read_only"):
            kwargs.setdefault("queryset", MCPServer.objects.all())
        super().__init__(pk_field=serializers.UUIDField(), **kwargs)

    def get_queryset(self) -> QuerySet[MCPServer]:
        return _servers(self.context, shared=self.shared)


class OwnServerField(VisibleServerField):
    """The id of one of the caller's own servers."""

    shared = False


class TenantField(NamesARow, serializers.SlugRelatedField[Tenant]):
    """A tenant's slug. A tenant's caller can name none but their own."""

    def __init__(self, **kwargs: Any) -> None:
        if not kwargs.get("read_only"):
            kwargs.setdefault("queryset", Tenant.objects.all())
        super().__init__(slug_field="slug", **kwargs)

    def get_queryset(self) -> QuerySet[Tenant]:
        caller = caller_of(self.context["request"])
        tenants = Tenant.objects.all()
        return tenants if caller.is_operator else tenants.filter(pk=caller.own_tenant_id)
