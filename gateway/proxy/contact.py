"""What this process knows of its database: whether notices of change reach it, and since when not.

Three states: in touch (every change is told), reachable (it answers, but changes are not told), and
away. After a connection is lost and until the next attempt has ended it is neither.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import psycopg
from django.conf import settings
from django.utils.timezone import now

__all__ = ["Contact", "DatabaseAway", "Era"]

Clock = Callable[[], float]


class DatabaseAway(psycopg.OperationalError):
    """PostgreSQL is known to be away, so it was not asked."""


@dataclass(slots=True, eq=False)
class Era:
    """A time in which every change was told. What was read in it was true until `until`."""

    until: float  # seconds of the monotonic clock


class Contact:
    """Told by the one task that listens; asked at every call. `clock` gives monotonic seconds."""

    def __init__(self, *, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self.era: Era | None = None  # the current one; None: changes may be missed
        self.is_reachable = False
        self.is_away = False
        self.lost_at: datetime | None = None  # since when it is not reachable
        self._heard_at: float | None = None

    @property
    def may_use_memory(self) -> bool:
        """Whether what is remembered may stand in for a database that does not answer."""
        return self._heard_at is not None and self.is_recent(self._heard_at)

    def is_recent(self, verified_at: float) -> bool:
        """Whether what was true at that time may still be used without asking."""
        limit = settings.GATEWAY_STALE_SECONDS
        return limit > 0 and self.clock() - verified_at <= limit

    def in_touch(self) -> None:
        """Notices come from now on. What was read before may have changed unnoticed."""
        self.era = Era(self.clock())
        self.reachable()

    def reachable(self) -> None:
        """The database answered just now."""
        self.is_reachable, self.is_away, self.lost_at = True, False, None
        self._heard_at = self.clock()
        if self.era is not None:
            self.era.until = self._heard_at

    def lost(self) -> None:
        """The connection broke: whether the database is away is not known yet."""
        self.era, self.is_reachable = None, False
        self.lost_at = self.lost_at or now()

    def away(self) -> None:
        """It was tried in vain."""
        self.lost()
        self.is_away = True
