"""The only writers of users, keys and rules. Each change leaves an audit entry."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.db import transaction
from django.utils.timezone import now

from monitoring.audit import Actor, audit_write
from registry.models import Tenant
from security.keys import ParsedKey, generate_key, hash_secret, new_salt
from security.models import EnhancedAPIKey, User

__all__ = ["api_key_create", "api_key_revoke", "api_key_unlock"]


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
