"""At most so many calls at once to a server; the others wait their turn, by priority."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

__all__ = ["Allowance", "Gate", "GateLimits", "QueueFull", "QueueTimeout"]


class QueueFull(Exception):
    """Nobody more may wait; `retry_after` (seconds) is when a place is likely free."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(retry_after)
        self.retry_after = retry_after


class QueueTimeout(QueueFull):
    """No connection came free in the time that the call may wait."""


@dataclass(frozen=True, slots=True)
class GateLimits:
    """`slots` calls at once, `waiting` more in the queue for `wait_seconds` each."""

    slots: int
    waiting: int
    wait_seconds: float
    priority_levels: int
    accepting: bool = True


class Gate:
    """A bounded priority queue before a fixed number of slots. Belongs to one event loop."""

    def __init__(self, limits: GateLimits) -> None:
        self.limits = limits
        self.active = self.waiting = 0
        self.enqueued = self.processed = self.timeouts = self.errors = 0
        self.last_processed: float | None = None  # Unix time
        # Exponentially weighted means, milliseconds.
        self.mean_wait_ms: float | None = None
        self.mean_processing_ms: float | None = None
        self._queue: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def resize(self, limits: GateLimits) -> None:
        """Take new limits; more slots let waiting calls in at once."""
        self.limits = limits
        self._admit()

    @asynccontextmanager
    async def slot(self, *, priority: int) -> AsyncIterator[float]:
        """Hold a slot; yields the milliseconds waited. Level 0 goes first.

        QueueFull when the queue is at its bound, QueueTimeout after `wait_seconds`.
        """
        began = time.monotonic()
        await self._enter(min(priority, self.limits.priority_levels - 1))
        entered = time.monotonic()
        waited = (entered - began) * 1000
        self.mean_wait_ms = _blend(self.mean_wait_ms, waited)
        try:
            yield waited
        except BaseException:
            self.errors += 1
            raise
        finally:
            self.mean_processing_ms = _blend(
                self.mean_processing_ms, (time.monotonic() - entered) * 1000
            )
            self.processed += 1
            self.last_processed = time.time()
            self.active -= 1
            self._admit()

    async def _enter(self, priority: int) -> None:
        if self.active < self.limits.slots and not self.waiting:
            self.active += 1
            return
        if not self.limits.accepting or self.waiting >= self.limits.waiting:
            raise QueueFull(self._likely_wait())
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._queue, (priority, next(self._order), turn))
        self.enqueued += 1
        self.waiting += 1
        try:
            await asyncio.wait_for(asyncio.shield(turn), self.limits.wait_seconds)
        except TimeoutError:
            if self._give_up(turn):
                self.timeouts += 1
                raise QueueTimeout(self._likely_wait()) from None
        except BaseException:
            # The caller went away. A slot that was handed over in the same moment goes on.
            if not self._give_up(turn):
                self.active -= 1
                self._admit()
            raise

    def _give_up(self, turn: asyncio.Future[None]) -> bool:
        """Leave the queue; False when the turn has come already."""
        if turn.done():
            return False
        turn.cancel()
        self.waiting -= 1
        if len(self._queue) > 2 * self.waiting + 16:  # those that gave up, with slots held long
            self._queue = [entry for entry in self._queue if not entry[2].done()]
            heapq.heapify(self._queue)
        return True

    def _admit(self) -> None:
        while self._queue and self.active < self.limits.slots:
            _, _, turn = heapq.heappop(self._queue)
            if not turn.done():
                self.active += 1
                self.waiting -= 1
                turn.set_result(None)

    def _likely_wait(self) -> float:
        """Seconds until the queue as it stands is worked off, between 1 and 60."""
        per_call = (self.mean_processing_ms or 1000.0) / 1000
        return min(60.0, max(1.0, per_call * (self.waiting + 1) / self.limits.slots))


def _blend(mean: float | None, value: float) -> float:
    return value if mean is None else mean + 0.1 * (value - mean)


class Allowance:
    """So many at once and no queue: for what must not wait, yet not be without bound either."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.active = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place; QueueFull when all are taken."""
        if self.active >= self.limit:
            raise QueueFull(1.0)
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1
