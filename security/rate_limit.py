"""How many calls a key may make: a sliding window a key, counted in this process."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from uuid import UUID

from security.refusals import Reason, Refusal, whole_seconds

__all__ = ["RateLimiter", "Window"]

HOUR, DAY = 3600.0, 86_400.0


@dataclass(slots=True)
class Window:
    """Counts of the current and the previous fixed window; their blend slides."""

    seconds: float
    began: float = 0.0
    current: int = 0
    previous: int = 0

    def roll(self, at: float) -> None:
        began = at - at % self.seconds
        if began == self.began:
            return
        adjacent = began - self.began == self.seconds
        self.previous = self.current if adjacent else 0
        self.current, self.began = 0, began

    def used(self, at: float) -> float:
        """Calls in the last `seconds`, taking the previous window as evenly filled."""
        return self.previous * (1 - (at - self.began) / self.seconds) + self.current

    def free_in(self, at: float, limit: int) -> float:
        """Seconds until one more call fits, of a limit of at least 1; 0 when it fits now."""
        if self.used(at) + 1 <= limit:
            return 0.0
        ends = self.began + self.seconds - at
        if self.previous and self.current + 1 <= limit:
            # The previous window's share shrinks steadily; find when enough of it is gone.
            excess = self.used(at) + 1 - limit
            return min(ends, excess * self.seconds / self.previous)
        # In the next window the current one is the share that shrinks.
        excess = self.current + 1 - limit
        return ends + max(0.0, excess * self.seconds / max(1, self.current))


@dataclass(slots=True)
class _Usage:
    hour: Window = field(default_factory=lambda: Window(HOUR))
    day: Window = field(default_factory=lambda: Window(DAY))


class RateLimiter:
    """Counts per key, least recently used keys forgotten first. Not shared between processes."""

    def __init__(self, *, max_keys: int = 100_000) -> None:
        self._usage: OrderedDict[UUID, _Usage] = OrderedDict()
        self._max_keys = max_keys

    def take(self, key_id: UUID, *, per_hour: int, per_day: int, at: float) -> Refusal | None:
        """Count one call at Unix time `at`, or refuse it. A refused call is not counted."""
        if min(per_hour, per_day) < 1:
            return Refusal(
                Reason.RATE_LIMITED,
                "The API key may make no calls: its limit is 0. Ask for a higher one.",
                retry_after=DAY,
            )
        usage = self._usage.setdefault(key_id, _Usage())
        self._usage.move_to_end(key_id)
        if len(self._usage) > self._max_keys:
            self._usage.popitem(last=False)
        usage.hour.roll(at)
        usage.day.roll(at)
        wait = max(usage.hour.free_in(at, per_hour), usage.day.free_in(at, per_day))
        if wait > 0:
            return Refusal(
                Reason.RATE_LIMITED,
                f"The API key's limit of {per_hour} calls an hour and {per_day} a day is used up. "
                f"Try again in {whole_seconds(wait)} s, or ask for a higher limit.",
                retry_after=wait,
            )
        usage.hour.current += 1
        usage.day.current += 1
        return None
