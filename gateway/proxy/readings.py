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
from registry.sentences import first_line

__all__ = ["Reading", "Readings"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
Row = tuple[str, str | None, float | None, str | None]  # metric, subject, value, unit

KEPT_SECONDS = 5.0
# Files, catalogue and statistics of all tables change slowly and cost most.
SLOW_KEPT_SECONDS = 60.0
# As long as they cannot be read the last ones are shown; at this age they are left out.
SLOW_TOO_OLD_SECONDS = 600.0
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
    slow_is_read: bool = True  # false: the last reading of what is slow failed
    slow_age: float | None = None  # seconds, of what is slow; None: it is not here


@dataclass(frozen=True, slots=True)
class _Slow:
    """What is read once a minute."""

    monitoring: list[Row]
    partitions: dict[str, float]


class _Kept(Generic[T]):
    """What was read last, for so many seconds; then one of those who ask has it read anew.

    No reading is waited for longer than three seconds: one that takes longer goes on for the next
    who asks. What failed, for whatever reason, is not tried again for five seconds either, and the
    one before stays until it is `too_old`. `name` is for the program's log.
    """

    def __init__(
        self,
        name: str,
        read: Callable[[], Awaitable[T]],
        *,
        seconds: float,
        too_old: float,
        clock: Callable[[], float],
    ) -> None:
        self._name, self._read, self._clock = name, read, clock
        self._seconds, self._too_old = seconds, too_old
        self._task: asyncio.Task[None] | None = None
        self._last: tuple[float, T] | None = None  # when it was read
        self._until = clock()
        self._fault: type[Exception] | None = None  # of the last reading
        self._is_over = False

    @property
    def is_well(self) -> bool:
        """Whether the last reading did not fail."""
        return self._fault is None

    @property
    def age(self) -> float | None:
        """Seconds since that was read which `get` gives; None: it gives nothing."""
        if self._last is None:
            return None
        age = self._clock() - self._last[0]
        return age if age < self._too_old else None

    async def get(self, *, patient: bool = False) -> T | None:
        """It, or None when PostgreSQL does not give it.

        `patient`: while it is read anew the last one will do, up to twice as old.
        """
        overdue = self._clock() - self._until
        if overdue < 0 or self._is_over:
            return self._shown()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._renew(), name=f"{self._name} figures")
        if not (patient and overdue < self._seconds and self.age is not None):
            await asyncio.wait({self._task}, timeout=PATIENCE_SECONDS)
        return self._shown()

    def call_off(self) -> list[asyncio.Task[None]]:
        """Read no more. The reading that is under way is cancelled, to be waited for."""
        self._is_over = True
        if self._task is None or self._task.done():
            return []
        self._task.cancel()
        return [self._task]

    def _shown(self) -> T | None:
        return None if self._last is None or self.age is None else self._last[1]

    async def _renew(self) -> None:
        seconds = self._seconds
        try:
            found = await self._read()
        except Exception as error:  # noqa: BLE001  (a fault of ours is no reason to show nothing)
            seconds = KEPT_SECONDS
            self._failed(error)
        else:
            self._last = self._clock(), found
            self._went_well()
        self._until = self._clock() + seconds

    def _failed(self, error: Exception) -> None:
        if self._is_over or self._fault is type(error):
            return
        self._fault = type(error)
        is_ours = not isinstance(error, (psycopg.Error, *DATABASE_ERRORS))
        logger.warning(
            "/metrics: the %s figures cannot be read: %s",
            self._name,
            first_line(error),
            exc_info=error if is_ours else None,
        )

    def _went_well(self) -> None:
        if self._fault is not None:
            logger.info("/metrics: the %s figures are read again", self._name)
        self._fault = None


class Readings:
    """The last reading, at most five seconds old; of what is slow at most two minutes.

    What is slow is older while it cannot be read, and is missing from the reading once it is ten
    minutes old. `clock` gives monotonic seconds.
    """

    def __init__(
        self, pool: Pool, contact: Contact, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pool, self._contact = pool, contact
        self._calls = AllCalls()
        self._quick = _Kept(
            "quick", self._ask, seconds=KEPT_SECONDS, too_old=KEPT_SECONDS, clock=clock
        )
        self._slow = _Kept(
            "slow",
            self._ask_slowly,
            seconds=SLOW_KEPT_SECONDS,
            too_old=SLOW_TOO_OLD_SECONDS,
            clock=clock,
        )

    async def get(self) -> Reading | None:
        """The figures; None: PostgreSQL does not give them."""
        if self._contact.is_away:
            return None
        if (quick := await self._quick.get()) is None:
            return None
        slow = await self._slow.get(patient=True)  # not beside the quick ones, which are waited for
        quick = replace(quick, slow_is_read=self._slow.is_well, slow_age=self._slow.age)
        if slow is None:
            return quick
        monitoring = [*quick.monitoring, *slow.monitoring]
        return replace(quick, monitoring=monitoring, partitions=slow.partitions)

    def call_off(self) -> list[asyncio.Task[None]]:
        """Read no more; returns what was under way and is cancelled, to be waited for."""
        return [*self._quick.call_off(), *self._slow.call_off()]

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
