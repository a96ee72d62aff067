"""The only writers of users, keys and rules. Each change leaves an audit entry."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.db import transaction
from django.utils.timezone import now

from monitoring.audit import Actor, audit_write
from registry.models import Tenant
from security.keys import ParsedKey, generate_key, hash_secret, new_salt, plain_hash
from security.models import APIKey, EnhancedAPIKey, User

__all__ = ["api_key_create", "api_key_expire", "api_key_revoke", "api_key_unlock", "plain_key_upgrade"]


@transaction.atomic
def api_key_create(
    *,
    actor: Actor,
    name: str,
    tenant: Tenant | None,
    user: User | None = None,
    scopes: Sequence[str] = (),
    allowed_servers: Sequence[str] = (),
    allowed_methods: Sequence[str] = (),
    ip_whitelist: Sequence[str] = (),
    expires_at: datetime | None = None,
    key: ParsedKey | None = None,
    **fields: Any,
) -> tuple[EnhancedAPIKey, str]:
    """Make a key; returns its row and its text, which nobody can read again afterwards.

    `key` keeps an existing secret (an upgraded plain key). ValidationError names the field that
    does not fit.
    """
    key = key or generate_key()
    salt = new_salt()
    row = EnhancedAPIKey(
        name=name,
        tenant=tenant,
        user=user,
        scopes=list(scopes),
        allowed_servers=list(allowed_servers),
        allowed_methods=list(allowed_methods),
        ip_whitelist=list(ip_whitelist),
        expires_at=expires_at,
        key_prefix=key.prefix,
        salt=salt,
        key_hash=hash_secret(salt=salt, secret=key.secret),
        **fields,
    )
    row.full_clean()
    row.save(force_insert=True)
    details = {"name": name, "prefix": key.prefix, "scopes": list(scopes)}
    audit_write(actor=actor, action="api_key.create", resource=row, details=details)
    return row, key.text


@transaction.atomic
def api_key_revoke(*, actor: Actor, key: EnhancedAPIKey) -> bool:
    """Switch a key off for good; False when it was off already."""
    active = EnhancedAPIKey.objects.filter(pk=key.pk, is_active=True)
    if active.update(is_active=False, updated_at=now()) != 1:
        return False
    audit_write(
        actor=actor, action="api_key.revoke", resource=key, details={"prefix": key.key_prefix}
    )
    return True


@transaction.atomic
def api_key_unlock(*, actor: Actor, key: EnhancedAPIKey) -> bool:
    """Let a locked key in again; False when it was not locked."""
    locked = EnhancedAPIKey.objects.filter(pk=key.pk, is_locked=True)
    changed = locked.update(
        is_locked=False, locked_until=None, failed_attempts=0, updated_at=now()
    )
    if changed != 1:
        return False
    audit_write(
        actor=actor, action="api_key.unlock", resource=key, details={"prefix": key.key_prefix}
    )
    return True


@transaction.atomic
def plain_key_upgrade(*, key: ParsedKey) -> bool:
    """Replace a plain key, just presented and so known in clear, by an enhanced one.

    Same secret, same rights. Of several callers at once one replaces it and the others wait for
    that; False when there is nothing (more) to replace.
    """
    plain = APIKey.objects.filter(key_hash=plain_hash(key), is_active=True)
    if plain.update(is_active=False, updated_at=now()) != 1:
        return False
    old = APIKey.objects.select_related("tenant", "user").get(key_hash=plain_hash(key))
    api_key_create(
        actor=Actor(service_name="security"),
        name=old.name,
        tenant=old.tenant,
        user=old.user,
        scopes=old.scopes,
        expires_at=old.expires_at,
        key=key,
        description="Replaces the plain key of the same name.",
        total_requests=old.total_requests,
    )
    return True


@transaction.atomic
def api_key_expire(*, actor: Actor, key: EnhancedAPIKey, at: datetime) -> bool:
    """Switch a key off whose time is over; False when it is off already or lives again."""
    over = EnhancedAPIKey.objects.filter(pk=key.pk, is_active=True, expires_at__lte=at)
    if over.update(is_active=False, updated_at=at) != 1:
        return False
    audit_write(
        actor=actor, action="api_key.expire", resource=key, details={"prefix": key.key_prefix}
    )
    return True
