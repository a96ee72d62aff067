"""How health checks leave their figures without knowing who keeps them.

The log writer lives one room above, in monitoring, which registry may not import. What points
upward is a string: `settings.METRICS_WRITER` names the function that takes the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, partial
from typing import Any, Protocol, cast
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.utils.module_loading import import_string

__all__ = ["Measured", "MetricsWriter", "metrics_write"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A row of `server_metrics`: milliseconds, and a rate from 0 to 1. None: not known."""

    server_id: UUID
    timestamp: datetime
    response_time_ms: float | None = None
    error_rate: float | None = None
    custom_metrics: dict[str, Any] = field(default_factory=dict)


class MetricsWriter(Protocol):
    """What `settings.METRICS_WRITER` names; see `monitoring.logwriter.threads.metrics_write`."""

    def __call__(self, rows: Sequence[Measured]) -> None: ...


def metrics_write(rows: Sequence[Measured]) -> None:
    """Hand rows to `settings.METRICS_WRITER` as soon as the open transaction is committed."""
    if rows:
        transaction.on_commit(partial(_writer(settings.METRICS_WRITER), rows))


@cache
def _writer(path: str) -> MetricsWriter:
    return cast("MetricsWriter", import_string(path))
