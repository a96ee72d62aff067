"""Questions to the logs. Every one of them bounds time: partitions outside are never opened."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

from django.db.models import Model, QuerySet

from registry.db.ids import time_of
from registry.db.search import Indexed

__all__ = ["AUDIT_INDEXED", "REQUESTS_INDEXED", "Window", "within"]

# By which index the admin and the REST API read a log when several of its columns are asked for.
AUDIT_INDEXED = Indexed((("resource_type", "resource_id"), ("user_id",), ("tenant_id",)))
REQUESTS_INDEXED = Indexed((("target_server_id",), ("tenant_id",)), few=frozenset(("request_id",)))
DEFAULT_SPAN = timedelta(hours=24)
# A row's id and a request's are made when the request begins; what it changes is noted while it
# runs. This covers both, and clocks that differ from node to node.
AROUND_AN_ID = timedelta(hours=1)

Row = TypeVar("Row", bound=Model)


@dataclass(frozen=True, slots=True)
class Window:
    """From `since` (included) to `until` (excluded)."""

    since: datetime
    until: datetime

    @classmethod
    def of(cls, *, since: datetime | None, until: datetime | None, at: datetime) -> Window:
        """What a caller left open: until now, and 24 hours long."""
        until = until or max(at, since or at) + timedelta(seconds=1)
        return cls(since or until - DEFAULT_SPAN, until)

    @classmethod
    def around(cls, identifier: UUID) -> Window | None:
        """Where the row of a version 7 UUID must lie; None for other versions."""
        at = time_of(identifier)
        return None if at is None else cls(at - AROUND_AN_ID, at + AROUND_AN_ID)


def within(rows: QuerySet[Row], *, field: str, window: Window) -> QuerySet[Row]:
    """The rows of a window, by their time column."""
    bounds: dict[str, Any] = {f"{field}__gte": window.since, f"{field}__lt": window.until}
    return rows.filter(**bounds)
