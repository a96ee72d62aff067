"""Who calls the API: the holder of a key, or somebody who is signed in to the admin."""

from __future__ import annotations

from datetime import timedelta
from typing import cast

from django.conf import settings
from django.db.models import Q
from django.utils.timezone import now
from rest_framework import authentication
from rest_framework.exceptions import APIException, AuthenticationFailed, PermissionDenied
from rest_framework.request import Request

from registry.api.callers import Caller
from registry.db.tenancy import narrow_to_tenant
from registry.models import Tenant, TenantStatus
from security.authentication import KeyFacts, check_key, presented_key, refuse_unknown_key
from security.keys import ParsedKey, plain_hash
from security.models import APIKey, EnhancedAPIKey, Role, User
from security.refusals import Reason, Refusal
from security.services import plain_key_upgrade

__all__ = ["ROLE_SCOPES", "APIKeyAuthentication", "SessionAuthentication", "refused"]

_LOOK = frozenset({"read", "metrics", "health"})
# What a signed-in user may do, as scopes.
ROLE_SCOPES: dict[str, frozenset[str]] = {
    Role.ADMIN: frozenset({"admin"}),
    Role.USER: _LOOK | {"write"},
    Role.SERVICE: _LOOK,
    Role.READONLY: _LOOK,
}
# `last_used` of a key that only calls the API: a write a minute tells enough.
USE_STEP = timedelta(minutes=1)


def refused(refusal: Refusal) -> APIException:
    """The exception that answers with a refusal's status, sentence and reason."""
    kind: type[APIException] = AuthenticationFailed if refusal.status == 401 else PermissionDenied
    error = kind(refusal.message)
    error.reason = refusal.reason  # type: ignore[attr-defined]
    if refusal.retry_after_header is not None:
        error.wait = int(refusal.retry_after_header)  # type: ignore[attr-defined]
    return error


class APIKeyAuthentication(authentication.BaseAuthentication):
    """`Authorization: Bearer <key>` or `X-API-Key: <key>`."""

    def authenticate(self, request: Request) -> tuple[Caller, EnhancedAPIKey | APIKey] | None:
        key = presented_key(
            authorization=request.META.get("HTTP_AUTHORIZATION", ""),
            x_api_key=request.META.get("HTTP_X_API_KEY", ""),
        )
        if isinstance(key, Refusal):
            if key.reason is Reason.MISSING_CREDENTIALS:
                return None
            raise refused(key)
        row = _checked(key, ip=getattr(request, "client_address", None))
        _note_use(row)
        return _walled(_holder(row)), row

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


class SessionAuthentication(authentication.SessionAuthentication):
    """The admin's session; what changes something needs the CSRF token."""

    def authenticate(self, request: Request) -> tuple[Caller, None] | None:
        found = super().authenticate(request)
        return None if found is None else (_walled(_signed_in(found[0])), None)


def _walled(caller: Caller) -> Caller:
    """From here on the request's transaction sees the caller's tenant only."""
    if caller.tenant_id is not None:
        narrow_to_tenant(caller.tenant_id)
    return caller


def _checked(key: ParsedKey, *, ip: str | None) -> EnhancedAPIKey | APIKey:
    row = _enhanced(key)
    if row is None:
        plain = _plain(key)
        # Somebody else may have upgraded it in between: what counts is what stands there now.
        if plain is not None and settings.GATEWAY_UPGRADE_PLAIN_KEYS:
            plain_key_upgrade(key=key)
            row = _enhanced(key)
        if row is None:
            return _unless_expired(plain)
    if refusal := check_key(cast("KeyFacts", row), secret=key.secret, ip=ip, at=now()):
        raise refused(refusal)
    return row


def _enhanced(key: ParsedKey) -> EnhancedAPIKey | None:
    keys = EnhancedAPIKey.objects.select_related("tenant", "user")
    return keys.filter(key_prefix=key.prefix).first()


def _plain(key: ParsedKey) -> APIKey | None:
    """A plain key proves itself: it is found by the hash of all of it."""
    keys = APIKey.objects.select_related("tenant", "user")
    return keys.filter(key_hash=plain_hash(key), is_active=True).first()


def _unless_expired(row: APIKey | None) -> APIKey:
    if row is None:
        raise refused(refuse_unknown_key())
    if row.expires_at is not None and now() >= row.expires_at:
        sentence = f"The API key expired on {row.expires_at:%Y-%m-%d}. Ask for a new one."
        raise refused(Refusal(Reason.KEY_EXPIRED, sentence))
    return row


def _holder(row: EnhancedAPIKey | APIKey) -> Caller:
    if row.user is not None and not row.user.is_active:
        raise refused(refuse_unknown_key())
    _refuse_idle(row.tenant)
    return Caller(
        scopes=frozenset(row.scopes),
        tenant_id=row.tenant_id,
        user_id=row.user_id,
        api_key_id=row.pk,
        key=f"API key {row.name} ({row.key_prefix})",
        runs_gateway=_runs_gateway(row.tenant),
        allowed_servers=tuple(getattr(row, "allowed_servers", ())),
        allowed_by_default=_allows(row.tenant),
    )


def _signed_in(user: User) -> Caller:
    if user.tenant is None and not user.is_staff:
        raise PermissionDenied(
            "This user belongs to no tenant and is no operator: have one of the two set."
        )
    _refuse_idle(user.tenant)
    scopes = ROLE_SCOPES[Role.ADMIN if user.is_superuser else user.role]
    return Caller(
        scopes=scopes,
        tenant_id=user.tenant_id,
        user_id=user.pk,
        runs_gateway=_runs_gateway(user.tenant),
        allowed_by_default=_allows(user.tenant),
    )


def _refuse_idle(tenant: Tenant | None) -> None:
    if tenant is not None and tenant.status != TenantStatus.ACTIVE:
        raise PermissionDenied(f"Tenant '{tenant.slug}' is {tenant.status}. Ask an operator.")


def _allows(tenant: Tenant | None) -> bool:
    return tenant is None or tenant.settings.get("default_access") != "deny"


def _note_use(row: EnhancedAPIKey | APIKey) -> None:
    at = now()
    if row.last_used is None or row.last_used <= at - USE_STEP:
        stale = Q(last_used=None) | Q(last_used__lte=at - USE_STEP)
        type(row).objects.filter(stale, pk=row.pk).update(last_used=at)


def _runs_gateway(tenant: Tenant | None) -> bool:
    return tenant is None or tenant.settings.get("runs_gateway") is True
