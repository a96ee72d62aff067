"""How registry's services leave audit entries without knowing who keeps them.

The audit log lives one room above, in monitoring, which registry may not import. What points
upward is a string: `settings.AUDIT_WRITER` names the function that writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, cast
from uuid import UUID

from django.conf import settings
from django.db import models
from django.utils.module_loading import import_string

__all__ = ["Actor", "AuditWriter", "audit_write"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """Who asks for a change, as far as it is known."""

    service_name: str  # where the change came in: "cli", "admin", "api", "proxy", "worker"
    tenant_id: UUID | None = None
    user_id: UUID | None = None
    api_key_id: UUID | None = None
    request_id: UUID | None = None
    ip_address: str | None = None
    user_agent: str = ""


class AuditWriter(Protocol):
    """What `settings.AUDIT_WRITER` names; see `monitoring.audit.audit_write`."""

    def __call__(
        self,
        *,
        actor: Actor,
        action: str,
        resource: models.Model | None = None,
        details: dict[str, Any] | None = None,
        success: bool = True,
        error_message: str = "",
    ) -> object: ...


def audit_write(
    *,
    actor: Actor,
    action: str,
    resource: models.Model | None = None,
    details: dict[str, Any] | None = None,
) -> None:
    """Add one entry through `settings.AUDIT_WRITER`, inside the caller's transaction."""
    _writer(settings.AUDIT_WRITER)(actor=actor, action=action, resource=resource, details=details)


@cache
def _writer(path: str) -> AuditWriter:
    return cast("AuditWriter", import_string(path))
