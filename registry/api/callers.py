"""Who calls the API. Authentication (see settings) puts a `Caller` where `request.user` is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast
from uuid import UUID

from rest_framework.request import Request

from registry.audit import Actor

__all__ = ["Caller", "actor_of", "caller_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The holder of a key or of a session, with what decides what they see."""

    scopes: frozenset[str]  # `admin` implies the others
    tenant_id: UUID | None = None  # None: an operator, who sees every tenant
    user_id: UUID | None = None
    api_key_id: UUID | None = None
    key: str = ""  # the API key in words, such as "API key deploy (k3f9a2b1)"
    allowed_servers: tuple[str, ...] = ()  # slugs; empty: no limit
    runs_gateway: bool = False  # sees what concerns the whole gateway, not only their tenant
    allowed_by_default: bool = True  # where no access rule says anything
    is_authenticated: bool = True  # what Django asks of a user

    @property
    def is_operator(self) -> bool:
        return self.tenant_id is None

    @property
    def own_tenant_id(self) -> UUID:
        """The tenant of a caller who has one; for an operator an error, never every tenant."""
        if self.tenant_id is None:
            raise LookupError("An operator belongs to no tenant.")
        return self.tenant_id

    def has(self, scope: str) -> bool:
        return scope in self.scopes or "admin" in self.scopes


def caller_of(request: Request) -> Caller:
    """The caller of a request that has been let in."""
    return cast("Caller", request.user)


def actor_of(request: Request) -> Actor:
    """The caller as the audit log names them."""
    caller = caller_of(request)
    return Actor(
        service_name="api",
        tenant_id=caller.tenant_id,
        user_id=caller.user_id,
        api_key_id=caller.api_key_id,
        request_id=getattr(request, "request_id", None),
        ip_address=getattr(request, "client_address", None),
        user_agent=request.META.get("HTTP_USER_AGENT", "").replace("\0", ""),
    )
