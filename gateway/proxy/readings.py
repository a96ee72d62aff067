"""What `/metrics` says of the whole gateway: read from PostgreSQL once for all who ask."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psycopg
from django.utils.timezone import now
from psycopg import AsyncConnection

from gateway.proxy.contact import Contact
from gateway.proxy.memory import DATABASE_ERRORS
from monitoring.totals import AllCalls, Totals
from registry.db.partitions import partitioned_tables
from registry.db.pool import Pool

__all__ = ["Reading", "Readings"]

logger = logging.getLogger(__name__)

KEPT_SECONDS = 5.0
# Whoever scrapes gives up after ten seconds, if not told otherwise.
PATIENCE_SECONDS = 3.0
POOL_WAIT_SECONDS = 1.0

_LIMIT = "SELECT set_config('statement_timeout', %s, true)"
_MONITORING = "SELECT metric, subject, value, unit FROM performance_monitoring"
_ALERTS = """
SELECT severity, count(*) FILTER (WHERE is_triggered)
  FROM performance_alerts WHERE is_active GROUP BY severity
"""
_BREAKERS = "SELECT state, count(*) FROM circuit_breakers GROUP BY state"
_PARTITIONS = r"""
SELECT parent.relname,
       coalesce(greatest(0, max(extract(epoch FROM ends.until - statement_timestamp()))), 0)::float8
  FROM unnest(%(tables)s::text[]) AS named (name)
  JOIN pg_class AS parent ON parent.oid = to_regclass(quote_ident(named.name))
  LEFT JOIN pg_inherits AS inherits
    ON inherits.inhparent = parent.oid AND NOT inherits.inhdetachpending
  LEFT JOIN pg_class AS leaf ON leaf.oid = inherits.inhrelid
  LEFT JOIN LATERAL (
       SELECT (regexp_match(pg_get_expr(leaf.relpartbound, leaf.oid),
                            'TO \(''([^'']+)''\)'))[1]::timestamptz AS until) AS ends ON true
 GROUP BY parent.relname
"""


@dataclass(frozen=True, slots=True)
class Reading:
    """One reading. `monitoring` are the rows of the view: metric, subject, value, unit."""

    seconds: float  # that it took
    totals: Totals
    monitoring: list[tuple[str, str | None, float | None, str | None]]
    alerts: dict[str, int] = field(default_factory=dict)  # that fire, by severity
    breakers: dict[str, int] = field(default_factory=dict)  # by state
    partitions: dict[str, float] = field(default_factory=dict)  # seconds ahead, by table


class Readings:
    """The last reading, for five seconds; then one of those who ask has it read anew.

    No reading is waited for longer than three seconds: one that takes longer goes on for the next
    who asks. `clock` gives monotonic seconds.
    """

    def __init__(
        self, pool: Pool, contact: Contact, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pool, self._contact, self._clock = pool, contact, clock
        self._calls = AllCalls()
        self._task: asyncio.Task[None] | None = None
        self._last: Reading | None = None
        self._read_at = -KEPT_SECONDS

    async def get(self) -> Reading | None:
        """The figures; None: PostgreSQL does not give them."""
        if self._contact.is_away:
            return None
        if self._clock() - self._read_at < KEPT_SECONDS:
            return self._last
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._read(), name="readings")
        done, _ = await asyncio.wait({self._task}, timeout=PATIENCE_SECONDS)
        return self._last if done else None

    async def _read(self) -> None:
        """Read; what failed is not tried again at once either."""
        try:
            self._last = await self._ask()
        except (psycopg.Error, *DATABASE_ERRORS) as error:
            logger.warning("/metrics goes without the database's figures: %s", error)
            self._last = None
        self._read_at = self._clock()

    async def _ask(self) -> Reading:
        began = time.perf_counter()
        async with self._pool.connection(timeout=POOL_WAIT_SECONDS) as connection:
            await connection.execute(_LIMIT, [str(round(PATIENCE_SECONDS * 1000))])
            totals = await self._calls.read(connection, at=now())
            monitoring = await _rows(connection, _MONITORING)
            alerts = await _rows(connection, _ALERTS)
            breakers = await _rows(connection, _BREAKERS)
            partitions = await _rows(connection, _PARTITIONS, tables=partitioned_tables())
        return Reading(
            seconds=time.perf_counter() - began,
            totals=totals,
            monitoring=monitoring,
            alerts=dict(alerts),
            breakers=dict(breakers),
            partitions=dict(partitions),
        )


async def _rows(connection: AsyncConnection[Any], statement: str, **parameters: Any) -> list[Any]:
    cursor = await connection.execute(statement, parameters or None)
    return await cursor.fetchall()
