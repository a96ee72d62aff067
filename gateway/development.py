"""What `up` lays out for somebody who tries the gateway: an admin, a key, a server to call.

Both secrets are kept in `.local/` (mode 0600), so that a second start shows the same ones. That
is the only exception to 'shown once', and there is none outside development.
"""

from __future__ import annotations

import hmac
import os
import secrets
import tempfile
from pathlib import Path

from django.db import transaction
from django.utils.timezone import now

from monitoring.audit import Actor, audit_write
from registry.models import MCPServer, Tenant, Transport
from registry.services import health_check, server_register, server_update, tools_sync
from security.keys import hash_secret, parse_key
from security.models import APIKeyScope, EnhancedAPIKey, Role, User
from security.services import api_key_create

__all__ = ["ADMIN", "SAMPLE", "admin_password", "development_key", "sample_known"]

ADMIN = "admin"
SAMPLE = "sample"
ACTOR = Actor(service_name="cli")
PLENTY = 1_000_000  # calls an hour: whoever measures the gateway should not meet the limit


@transaction.atomic
def admin_password(*, folder: Path, may_reset: bool) -> str | None:
    """Make sure there is a user `admin`; its password, or None when somebody else set it.

    A password that we never knew is replaced only where `may_reset`: in a database of our own.
    """
    kept = folder / "admin-password"
    known = _read(kept)
    user = User.objects.filter(username=ADMIN).first()
    if user is not None and known is not None:
        return known if user.check_password(known) else None
    if user is not None and not may_reset:
        return None
    password = known or secrets.token_urlsafe(12)
    if user is None:
        user = User.objects.create_superuser(ADMIN, password=password, role=Role.ADMIN)
        audit_write(actor=ACTOR, action="user.create", resource=user)
    else:
        user.set_password(password)
        user.save(update_fields=["password", "updated_at"])
        audit_write(actor=ACTOR, action="user.set_password", resource=user)
    _keep(kept, password)
    return password


def development_key(*, folder: Path, tenant: Tenant) -> str:
    """The key of the last start if this database still accepts it, else a new one."""
    kept = folder / "development-key"
    known = _read(kept)
    if known is not None and _is_accepted(known):
        return known
    _, text = api_key_create(
        actor=ACTOR,
        name="development",
        description="Made by `up`; its text is in .local/development-key.",
        tenant=tenant,
        scopes=APIKeyScope.values,
        rate_limit_per_hour=PLENTY,
        rate_limit_per_day=24 * PLENTY,
    )
    _keep(kept, text)
    return text


def sample_known(*, tenant: Tenant, url: str) -> MCPServer:
    """Register the sample server, or tell the gateway its address of today; reads its tools."""
    server = MCPServer.objects.filter(tenant=tenant, slug=SAMPLE).first()
    if server is None:
        server = server_register(
            actor=ACTOR,
            tenant=tenant,
            name="Sample",
            slug=SAMPLE,
            url=url,
            description="The MCP server that `up` runs, to try the gateway with.",
            tags=["sample"],
            defer_check=False,
        )
    else:
        server = server_update(
            actor=ACTOR, server=server, endpoint_url=url, transport_type=Transport.HTTP
        )
    health_check(server=server, at=now())
    tools_sync(server=server, at=now())
    return server


def _is_accepted(text: str) -> bool:
    key = parse_key(text)
    if key is None:
        return False
    row = EnhancedAPIKey.objects.filter(
        key_prefix=key.prefix, is_active=True, is_locked=False, expires_at=None
    ).first()
    return row is not None and hmac.compare_digest(
        bytes(row.key_hash), hash_secret(salt=bytes(row.salt), secret=key.secret)
    )


def _read(path: Path) -> str | None:
    return path.read_text().strip() if path.exists() else None


def _keep(path: Path, secret: str) -> None:
    handle, draft = tempfile.mkstemp(dir=path.parent)  # made with mode 0600
    with os.fdopen(handle, "w") as file:
        file.write(f"{secret}\n")
    Path(draft).replace(path)
