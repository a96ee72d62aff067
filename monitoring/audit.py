"""The audit trail: who did what to which resource, written in the change's own transaction."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.db import models

from monitoring.models import AuditLog
from registry.audit import Actor

__all__ = ["Actor", "audit_write"]


def audit_write(
    *,
    actor: Actor,
    action: str,
    resource: models.Model | None = None,
    details: dict[str, Any] | None = None,
    success: bool = True,
    error_message: str = "",
) -> AuditLog:
    """Add one entry. `action` is `<noun>.<verb>`, such as `api_key.create`; no secrets in details.

    Call it inside the transaction of the change: both stand or neither does. The entry's tenant
    is the resource's where it has one, so that a tenant sees what operators did to it.
    """
    return AuditLog.objects.create(
        tenant_id=_owner(resource) or actor.tenant_id,
        user_id=actor.user_id,
        api_key_id=actor.api_key_id,
        service_name=actor.service_name,
        action=action,
        resource_type=resource._meta.db_table if resource is not None else "",
        resource_id=str(resource.pk) if resource is not None else "",
        details=details or {},
        request_id=actor.request_id,
        ip_address=actor.ip_address,
        user_agent=actor.user_agent[:512],
        success=success,
        error_message=error_message,
    )


def _owner(resource: models.Model | None) -> UUID | None:
    """The tenant that a resource belongs to: its own, or that of the server it is part of."""
    owner: UUID | None = getattr(resource, "tenant_id", None)
    if owner is None and getattr(resource, "server_id", None) is not None:
        owner = resource.server.tenant_id  # type: ignore[union-attr]
    return owner
