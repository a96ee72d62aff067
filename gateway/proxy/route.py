"""Where a call goes: the server's address, its breaker, and the operator's limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import class_row

from gateway.proxy.gate import GateLimits

__all__ = ["Route", "find_route"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One server's row with its breaker, pool and queue settings; times in milliseconds."""

    server_id: UUID
    slug: str
    endpoint_url: str
    transport_type: str
    credentials: bytes | None = field(repr=False)
    breaker_id: UUID
    breaker_state: str
    failure_count: int
    success_count: int
    failure_threshold: int
    success_threshold: int
    last_state_change: datetime
    breaker_timeout_ms: int
    probe_until: datetime | None
    pool_max_size: int
    pool_timeout_ms: int
    idle_timeout_ms: int
    queue_max_size: int
    processing_timeout_ms: int
    priority_levels: int
    is_accepting_requests: bool
    tools_off: list[str]

    @property
    def labels(self) -> frozenset[str]:
        """What the route was made of, as the notices of change name it."""
        return frozenset(f"{column}={self.server_id}" for column in _MADE_OF)

    @property
    def limits(self) -> GateLimits:
        wait = min(self.pool_timeout_ms, self.processing_timeout_ms)
        return GateLimits(
            slots=self.pool_max_size,
            waiting=self.queue_max_size,
            wait_seconds=wait / 1000,
            priority_levels=self.priority_levels,
            accepting=self.is_accepting_requests,
        )


_MADE_OF = (
    "mcp_servers.id",
    "server_tools.server_id",
    "circuit_breakers.server_id",
    "connection_pools.server_id",
    "request_queues.server_id",
)

# Each join reads one row by the unique index on (server, name); a trigger made those rows.
_ROUTE = """
SELECT s.id AS server_id, s.slug, s.endpoint_url, s.transport_type, s.credentials,
       b.id AS breaker_id, b.state AS breaker_state, b.failure_count, b.success_count,
       b.failure_threshold, b.success_threshold, b.last_state_change,
       b.timeout_ms AS breaker_timeout_ms, b.probe_until,
       p.max_size AS pool_max_size, p.timeout_ms AS pool_timeout_ms, p.idle_timeout_ms,
       q.max_size AS queue_max_size, q.processing_timeout_ms, q.priority_levels,
       q.is_accepting_requests,
       ARRAY(SELECT t.name FROM server_tools t WHERE t.server_id = s.id
                AND NOT t.is_enabled AND t.schema_hash <> '') AS tools_off
  FROM mcp_servers s
  JOIN circuit_breakers b ON b.server_id = s.id AND b.service_name = ''
  JOIN connection_pools p ON p.server_id = s.id AND p.pool_name = ''
  JOIN request_queues q ON q.server_id = s.id AND q.queue_name = ''
 WHERE s.id = %(server_id)s
"""


async def find_route(connection: AsyncConnection[Any], *, server_id: UUID) -> Route | None:
    """The route to a server, with the names of its tools that are switched off; None: it is gone.

    A tool that the server no longer lists (no hash) is the server's to refuse.
    """
    async with connection.cursor(row_factory=class_row(Route)) as cursor:
        await cursor.execute(_ROUTE, {"server_id": server_id})
        return await cursor.fetchone()
