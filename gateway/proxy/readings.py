"""What `/metrics` says of the whole gateway: read from PostgreSQL once for all who ask."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

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

T = TypeVar("T")
Row = tuple[str, str | None, float | None, str | None]  # metric, subject, value, unit

KEPT_SECONDS = 5.0
# Files, catalogue and statistics of all tables change slowly and cost most.
SLOW_KEPT_SECONDS = 60.0
SLOW = (
    "database_size_bytes",
    "dead_rows",
    "index_hit_ratio",
    "index_usage_percent",
    "invalid_indexes",
    "partition_days_ahead",
    "table_growth_percent",
)
# Whoever scrapes gives up after ten seconds, if not told otherwise.
PATIENCE_SECONDS = 3.0
POOL_WAIT_SECONDS = 1.0

_LIMIT = "SELECT set_config('statement_timeout', %s, true)"
_MONITORING = "SELECT metric, subject, value, unit FROM performance_monitoring"
# With the names in its text the planner leaves out what gives the other metrics.
_NAMES = ", ".join(f"'{name}'" for name in SLOW)
_QUICK = f"{_MONITORING} WHERE metric NOT IN ({_NAMES})"
_SLOW = f"{_MONITORING} WHERE metric IN ({_NAMES})"
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
    monitoring: list[Row]
    alerts: dict[str, int] = field(default_factory=dict)  # that fire, by severity
    breakers: dict[str, int] = field(default_factory=dict)  # by state
    partitions: dict[str, float] = field(default_factory=dict)  # seconds ahead, by table


@dataclass(frozen=True, slots=True)
class _Slow:
    """What is read once a minute."""

    monitoring: list[Row]
    partitions: dict[str, float]


class _Kept(Generic[T]):
    """What was read last, for so many seconds; then one of those who ask has it read anew.

    No reading is waited for longer than three seconds: one that takes longer goes on for the next
    who asks. What failed is not tried again for five seconds either.
    """

    def __init__(
        self, read: Callable[[], Awaitable[T]], *, seconds: float, clock: Callable[[], float]
    ) -> None:
        self._read, self._seconds, self._clock = read, seconds, clock
        self._task: asyncio.Task[None] | None = None
        self._last: T | None = None
        self._until = clock()

    async def get(self, *, patient: bool = False) -> T | None:
        """It, or None when PostgreSQL does not give it.

        `patient`: while it is read anew the last one will do, up to twice as old.
        """
        overdue = self._clock() - self._until
        if overdue < 0:
            return self._last
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._renew(), name="readings")
        if patient and self._last is not None and overdue < self._seconds:
            return self._last
        done, _ = await asyncio.wait({self._task}, timeout=PATIENCE_SECONDS)
        return self._last if done else None

    async def _renew(self) -> None:
        try:
            self._last, seconds = await self._read(), self._seconds
        except (psycopg.Error, *DATABASE_ERRORS) as error:
            logger.warning("/metrics goes without the database's figures: %s", error)
            self._last, seconds = None, KEPT_SECONDS
        self._until = self._clock() + seconds


class Readings:
    """The last reading, at most five seconds old; of what is slow at most two minutes.

    What is slow may be missing from it. `clock` gives monotonic seconds.
    """

    def __init__(
        self, pool: Pool, contact: Contact, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pool, self._contact = pool, contact
        self._calls = AllCalls()
        self._quick = _Kept(self._ask, seconds=KEPT_SECONDS, clock=clock)
        self._slow = _Kept(self._ask_slowly, seconds=SLOW_KEPT_SECONDS, clock=clock)

    async def get(self) -> Reading | None:
        """The figures; None: PostgreSQL does not give them."""
        if self._contact.is_away:
            return None
        if (quick := await self._quick.get()) is None:
            return None
        slow = await self._slow.get(patient=True)  # not beside the quick ones, which are waited for
        if slow is None:
            return quick
        monitoring = [*quick.monitoring, *slow.monitoring]
        return replace(quick, monitoring=monitoring, partitions=slow.partitions)

    async def _ask(self) -> Reading:
        began = time.perf_counter()
        async with self._asking() as connection:
            totals = await self._calls.read(connection, at=now())
            monitoring = await _rows(connection, _QUICK)
            alerts = await _rows(connection, _ALERTS)
            breakers = await _rows(connection, _BREAKERS)
        return Reading(
            seconds=time.perf_counter() - began,
            totals=totals,
            monitoring=monitoring,
            alerts=dict(alerts),
            breakers=dict(breakers),
        )

    async def _ask_slowly(self) -> _Slow:
        async with self._asking() as connection:
            monitoring = await _rows(connection, _SLOW)
            partitions = await _rows(connection, _PARTITIONS, tables=partitioned_tables())
        return _Slow(monitoring, dict(partitions))

    @asynccontextmanager
    async def _asking(self) -> AsyncIterator[AsyncConnection[Any]]:
        async with self._pool.connection(timeout=POOL_WAIT_SECONDS) as connection:
            await connection.execute(_LIMIT, [str(round(PATIENCE_SECONDS * 1000))])
            yield connection


async def _rows(connection: AsyncConnection[Any], statement: str, **parameters: Any) -> list[Any]:
    cursor = await connection.execute(statement, parameters or None)
    return await cursor.fetchall()
