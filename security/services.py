"""The only writers of users, keys and rules. Each change leaves an audit entry."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils.timezone import now

from monitoring.audit import Actor, audit_write
from registry.changes import row_change
from registry.models import Tenant
from security.keys import ParsedKey, generate_key, hash_secret, new_salt, plain_hash
from security.models import APIKey, EnhancedAPIKey, ServerAccessControl, Session, User
from security.validators import validate_shown

__all__ = [
    "access_rule_create",
    "access_rule_delete",
    "access_rule_update",
    "api_key_create",
    "api_key_expire",
    "api_key_lock",
    "api_key_revoke",
    "api_key_unlock",
    "api_key_update",
    "plain_key_upgrade",
    "session_revoke",
]


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
    if key is None:  # an existing one keeps its name, whatever it is: a call is waiting
        _check_name(name)
    key = key or generate_key()
    salt = new_salt()
    row = EnhancedAPIKey(
        name=name.strip(),
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
    details = {"name": row.name, "prefix": key.prefix, "scopes": list(scopes)}
    audit_write(actor=actor, action="api_key.create", resource=row, details=details)
    return row, key.text


@transaction.atomic
def api_key_update(*, actor: Actor, key: EnhancedAPIKey, **changes: Any) -> EnhancedAPIKey:
    """Change a key's name, limits, lists or end; its secret and its tenant stay for life."""
    if changes.get("name", key.name) != key.name:
        _check_name(changes["name"])
    current, changed = row_change(row=key, changes=changes)
    if changed:
        details = {"prefix": current.key_prefix, **changed}
        audit_write(actor=actor, action="api_key.update", resource=current, details=details)
    return current


def _check_name(name: str) -> None:
    try:
        validate_shown(name)
    except ValidationError as error:
        raise ValidationError({"name": error}) from None


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
def api_key_lock(*, actor: Actor, key: EnhancedAPIKey) -> bool:
    """Keep a key out until somebody unlocks it; False when it was locked for good already."""
    free = EnhancedAPIKey.objects.filter(pk=key.pk).exclude(is_locked=True, locked_until=None)
    if free.update(is_locked=True, locked_until=None, updated_at=now()) != 1:
        return False
    audit_write(
        actor=actor, action="api_key.lock", resource=key, details={"prefix": key.key_prefix}
    )
    return True


@transaction.atomic
def api_key_unlock(*, actor: Actor, key: EnhancedAPIKey) -> bool:
    """Let a locked key in again; False when it was not locked."""
    locked = EnhancedAPIKey.objects.filter(pk=key.pk, is_locked=True)
    changed = locked.update(is_locked=False, locked_until=None, failed_attempts=0, updated_at=now())
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


@transaction.atomic
def access_rule_create(*, actor: Actor, **fields: Any) -> ServerAccessControl:
    """Say what one subject may do with one server. ValidationError names what does not fit."""
    rule = ServerAccessControl(**fields)
    rule.full_clean()
    rule.save(force_insert=True)
    audit_write(actor=actor, action="access_rule.create", resource=rule, details=_rule_facts(rule))
    return rule


@transaction.atomic
def access_rule_update(
    *, actor: Actor, rule: ServerAccessControl, **changes: Any
) -> ServerAccessControl:
    """Change what a rule grants, and when; its server and its subject stay for life."""
    current, changed = row_change(row=rule, changes=changes)
    if changed:
        details = _rule_facts(current) | changed
        audit_write(actor=actor, action="access_rule.update", resource=current, details=details)
    return current


@transaction.atomic
def access_rule_delete(*, actor: Actor, rule: ServerAccessControl) -> bool:
    """Let the next less specific rule decide; False when this one was gone already."""
    held = ServerAccessControl.objects.select_for_update().filter(pk=rule.pk).first()
    if held is None:
        return False
    audit_write(actor=actor, action="access_rule.delete", resource=held, details=_rule_facts(held))
    held.delete()
    return True


@transaction.atomic
def session_revoke(*, actor: Actor, session: Session) -> bool:
    """Log a session out from its next request on; False when it was revoked already."""
    active = Session.objects.filter(pk=session.pk, is_active=True)
    if active.update(is_active=False, updated_at=now()) != 1:
        return False
    details = {"user": str(session.user_id) if session.user_id else None}
    audit_write(actor=actor, action="session.revoke", resource=session, details=details)
    return True


def _rule_facts(rule: ServerAccessControl) -> dict[str, Any]:
    subjects = {"user": rule.user_id, "tenant": rule.tenant_id, "api_key": rule.api_key_id}
    named = {name: str(pk) for name, pk in subjects.items() if pk is not None}
    return {"server": str(rule.server_id), **named}
