"""Figures that need the gateway's own tables."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from monitoring.queries import fetch_rows

__all__ = ["server_health"]


def server_health(*, tenant_id: UUID | None = None) -> list[dict[str, Any]]:
    """One row a health status and a last one, `all`: of what a tenant sees, or of everything."""
    return fetch_rows("SELECT * FROM server_health(%(tenant)s)", {"tenant": tenant_id})
