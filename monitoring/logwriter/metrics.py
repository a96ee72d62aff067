"""What a minute's calls say of each server that was called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from monitoring.logwriter.rows import MetricRow, RequestRow

__all__ = ["Connections", "ServerSums"]

# Open connections to a server and the most there may be; None when it is no longer known.
Connections = Callable[[UUID], tuple[int, int] | None]


@dataclass(slots=True)
class _Sums:
    calls: int = 0
    errors: int = 0
    milliseconds: float = 0.0


class ServerSums:
    """Sums of one process's forwarded calls by server."""

    def __init__(self) -> None:
        self._by_server: dict[UUID, _Sums] = {}

    def add(self, row: RequestRow) -> None:
        """Count a call, if a server was asked."""
        if row.target_server_id is None or row.upstream_ms is None:
            return
        sums = self._by_server.get(row.target_server_id)
        if sums is None:
            sums = self._by_server[row.target_server_id] = _Sums()
        sums.calls += 1
        sums.errors += row.status_code >= 400 or bool(row.error_type)
        sums.milliseconds += row.upstream_ms

    def rows(
        self, *, at: datetime, seconds: float, connections: Connections | None
    ) -> list[MetricRow]:
        """A row for each server that was called in the last `seconds`; starts from zero again."""
        found, self._by_server = self._by_server, {}
        made = []
        for server_id, sums in found.items():
            active, size = (connections and connections(server_id)) or (None, None)
            made.append(
                MetricRow(
                    timestamp=at,
                    server_id=server_id,
                    response_time_ms=sums.milliseconds / sums.calls,
                    requests_per_second=sums.calls / seconds,
                    error_rate=sums.errors / sums.calls,
                    active_connections=active,
                    connection_pool_size=size,
                    custom_metrics={"calls": sums.calls, "errors": sums.errors},
                )
            )
        return made
