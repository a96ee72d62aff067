"""What a caller may do through the API: scopes by view, access rules by server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db.models import BooleanField, Q, QuerySet, Value
from django.db.models.expressions import Case, Combinable, When
from rest_framework.exceptions import PermissionDenied
from rest_framework.filters import BaseFilterBackend
from rest_framework.permissions import SAFE_METHODS, BasePermission
from rest_framework.request import Request

from registry.api.callers import Caller, caller_of
from registry.db.tenancy import widen_to_operator
from registry.models import MCPServer
from security.api.authentication import refused
from security.authentication import presented_key
from security.querysets import rule_grants
from security.refusals import Reason, Refusal

if TYPE_CHECKING:
    # Importing it here for real would be a circle: its module reads this class from the settings.
    from rest_framework.views import APIView

__all__ = ["HasScope", "ServerRules", "holds", "require_flag"]


class HasScope(BasePermission):
    """Lets a caller in who has the scope that the view names, and nobody where it names none.

    A view's attributes: `read_scope`, `write_scope`, `operators_only`, `of_gateway`, and for access
    rules `server_field`, `write_flag` and `flag_to_change` (see `registry.api.base.ScopedViewSet`).
    """

    def has_permission(self, request: Request, view: APIView) -> bool:
        if request.user is None:
            missing = presented_key(authorization="", x_api_key="")
            assert isinstance(missing, Refusal)  # noqa: S101
            raise refused(missing)
        if not hasattr(view, (request.method or "").lower()):
            return True  # the answer is 405, whoever asks
        caller = caller_of(request)
        _require_scope(caller, _scope(request, view))
        for_operators = getattr(view, "operators_only", False)
        if for_operators and not caller.runs_gateway:
            raise PermissionDenied(
                "This is about the whole gateway, so it is for operators: use a key or a user of "
                "the tenant that runs the gateway, or of no tenant."
            )
        of_gateway = for_operators or getattr(view, "of_gateway", False)
        if of_gateway and caller.runs_gateway and not caller.is_operator:
            widen_to_operator()  # such rows belong to no tenant, or are figures of all of them
        return True

    def has_object_permission(self, request: Request, view: APIView, obj: Any) -> bool:
        if request.method in SAFE_METHODS:
            return True
        server_id = _server_id(view, obj)
        if server_id is not None:
            require_flag(caller_of(request), server_id, view.flag_to_change(obj))  # type: ignore[attr-defined]
        return True


class ServerRules(BaseFilterBackend):
    """Hides what belongs to servers that the caller may not read."""

    def filter_queryset(
        self, request: Request, queryset: QuerySet[Any], view: APIView
    ) -> QuerySet[Any]:
        field = getattr(view, "server_field", None)
        if field is None:
            return queryset
        return _granted(queryset, "can_read", field=field, caller=caller_of(request))


def holds(caller: Caller, server_id: Any, *flags: str) -> bool:
    """Whether the rule that decides grants each of `flags` on the server."""
    server: QuerySet[Any] = MCPServer.objects.filter(pk=server_id)
    for flag in flags:
        server = _granted(server, flag, field="pk", caller=caller)
    return server.exists()


def require_flag(caller: Caller, server_id: Any, flag: str) -> None:
    """403 unless the rule that decides grants `flag` on the server."""
    if not holds(caller, server_id, flag):
        raise refused(
            Refusal(
                Reason.SERVER_NOT_ALLOWED,
                f"You lack '{flag}' on this server. Ask for an access rule that grants it; "
                "shared servers are changed by operators.",
            )
        )


def _require_scope(caller: Caller, scope: str | None) -> None:
    if scope is None:
        raise PermissionDenied("Nobody may do this here: the address names no scope for it.")
    if not caller.has(scope):
        raise refused(
            Refusal(
                Reason.SCOPE_MISSING,
                f"This needs the scope '{scope}'. Use a key or a user that has it.",
            )
        )


def _scope(request: Request, view: APIView) -> str | None:
    name = "read_scope" if request.method in SAFE_METHODS else "write_scope"
    return getattr(view, name, None)


def _server_id(view: APIView, obj: Any) -> Any:
    if isinstance(obj, MCPServer):
        return obj.pk
    return obj.server_id if getattr(view, "server_field", None) else None


def _granted(rows: QuerySet[Any], flag: str, *, field: str, caller: Caller) -> QuerySet[Any]:
    """The rows on whose server the caller has `flag`. `field`: the way to the server's id."""
    path = "" if field == "pk" else f"{field}__"
    if caller.allowed_servers:
        rows = rows.filter(**{f"{path}slug__in": caller.allowed_servers})
    grants = rule_grants(
        flag,
        server=field,
        api_key_id=caller.api_key_id,
        user_id=caller.user_id,
        tenant_id=caller.tenant_id,
        otherwise=_without_rule(flag, path=path, caller=caller),
    )
    return rows.filter(Q(grants))


def _without_rule(flag: str, *, path: str, caller: Caller) -> Combinable:
    """What holds where no rule decides.

    Everything for operators and on a tenant's own servers, reading on shared ones; with the
    tenant's default "deny" nothing, but for the tenant's administrators on their own servers:
    somebody must be able to write the first rule.
    """
    if caller.is_operator:
        return Value(True, BooleanField())
    own = caller.allowed_by_default or caller.has("admin")
    shared = caller.allowed_by_default and flag == "can_read"
    return Case(
        When(**{f"{path}tenant": caller.tenant_id}, then=Value(own)),
        default=Value(shared),
        output_field=BooleanField(),
    )
