"""All calls there ever were, as counters that only grow: from rollups, never from the log.

Note [Monotone totals]
Rollups of days are kept for good, and what they lack stands in the deltas; the worker moves from
one to the other in one statement, so that one statement sees every call exactly once. Pruning of
shorter spans, restarts and the choice of the process that answers change nothing.

Whoever scrapes takes a counter that went down for one that began anew, and counts all of it again:
so everything here is made of whole numbers. The sum of durations is made of the bins (within 1 %),
since a sum of floating point numbers depends on its order. After `rollups_rebuild` over days whose
log is gone the totals do go down.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from psycopg import AsyncConnection

from monitoring.queries import ALL_TENANTS

__all__ = ["BUCKETS", "AllCalls", "Totals"]

# Upper bounds in seconds.
BUCKETS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip
# As request_duration_bin() and request_bin_ms() have it.
FIRST_BIN_MS, BIN_GROWTH = 0.01, 1.02
# Calls of the last two days may still arrive; days before are added up once. Should calls come
# even later, the days' sums tell.
OPEN_DAYS = timedelta(days=2)

_READ = """
WITH closed AS MATERIALIZED (
    SELECT count(*) AS days, coalesce(sum(r.requests), 0)::bigint AS requests
      FROM request_rollups AS r
     WHERE r.tenant_id = %(all)s AND r.minutes = 1440 AND r.bucket < %(until)s
),
parts AS MATERIALIZED (
    SELECT true AS is_closed, r.errors, r.bins, r.counts
      FROM closed AS c
      JOIN request_rollups AS r
        ON r.tenant_id = %(all)s AND r.minutes = 1440 AND r.bucket < %(until)s
     WHERE c.days <> %(days)s OR c.requests <> %(requests)s
    UNION ALL
    SELECT false, r.errors, r.bins, r.counts
      FROM request_rollups AS r
     WHERE r.tenant_id = %(all)s AND r.minutes = 1440 AND r.bucket >= %(until)s
    UNION ALL
    SELECT false, d.errors, d.bins, d.counts
      FROM request_rollup_deltas AS d
     WHERE d.tenant_id = %(all)s
),
calls AS MATERIALIZED (
    SELECT p.is_closed, h.bin, sum(h.calls)::bigint AS calls
      FROM parts AS p CROSS JOIN LATERAL unnest(p.bins, p.counts) AS h (bin, calls)
     GROUP BY p.is_closed, h.bin
)
SELECT side.is_closed, closed.days, closed.requests,
       (SELECT coalesce(sum(p.errors), 0)::bigint FROM parts AS p
         WHERE p.is_closed = side.is_closed),
       ARRAY(SELECT c.bin FROM calls AS c WHERE c.is_closed = side.is_closed ORDER BY c.bin),
       ARRAY(SELECT c.calls FROM calls AS c WHERE c.is_closed = side.is_closed ORDER BY c.bin)
  FROM closed CROSS JOIN (VALUES (true), (false)) AS side (is_closed)
"""


@dataclass(frozen=True, slots=True)
class Totals:
    """Calls by the bin of their duration, and how many of them failed (a status from 400)."""

    errors: int = 0
    calls: Counter[int] = field(default_factory=Counter)

    def __add__(self, other: Totals) -> Totals:
        return Totals(self.errors + other.errors, self.calls + other.calls)

    @property
    def requests(self) -> int:
        return self.calls.total()

    @property
    def seconds(self) -> float:
        """The sum of all durations, each within 1 %."""
        return sum(count * _nanoseconds(bin_) for bin_, count in self.calls.items()) / 1e9

    def up_to(self) -> Iterator[tuple[float, int]]:
        """Each bound of BUCKETS and infinity, with the calls of bins that end at it or before."""
        for bound in (*BUCKETS, math.inf):
            last = _last_bin(bound)
            yield bound, sum(count for bin_, count in self.calls.items() if bin_ <= last)


@dataclass(frozen=True, slots=True)
class _Closed:
    """The days before `until`; they are the same as long as both counts are."""

    until: datetime
    days: int = -1
    requests: int = -1
    totals: Totals = field(default_factory=Totals)


class AllCalls:
    """Reads the totals; days that are over are added up once a process and day."""

    def __init__(self) -> None:
        self._closed = _Closed(datetime.min.replace(tzinfo=UTC))

    async def read(self, connection: AsyncConnection[Any], *, at: datetime) -> Totals:
        """The totals of all tenants as of now, in one statement. `at` is the time of day."""
        until = (at.astimezone(UTC) - OPEN_DAYS).replace(hour=0, minute=0, second=0, microsecond=0)
        known = self._closed if self._closed.until == until else _Closed(until)
        parameters = {
            "all": ALL_TENANTS,
            "until": until,
            "days": known.days,
            "requests": known.requests,
        }
        cursor = await connection.execute(_READ, parameters)
        is_open = Totals()
        for is_closed, days, requests, errors, bins, counts in await cursor.fetchall():
            totals = Totals(errors, Counter(dict(zip(bins, counts, strict=True))))
            if not is_closed:
                is_open = totals
            elif (days, requests) != (known.days, known.requests):
                known = _Closed(until, days, requests, totals)
        self._closed = known
        return known.totals + is_open


def _nanoseconds(bin_: int) -> int:
    """What stands for a bin's durations, as request_bin_ms() has it."""
    return round(FIRST_BIN_MS * BIN_GROWTH**bin_ * 2 / (1 + BIN_GROWTH) * 1e6)


def _last_bin(bound: float) -> float:
    """The last bin that ends at so many seconds or before."""
    if math.isinf(bound):
        return bound
    return math.floor(math.log(bound * 1000 / FIRST_BIN_MS) / math.log(BIN_GROWTH))
