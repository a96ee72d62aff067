"""A circuit breaker in memory, for the time in which its row cannot be written.

The same rules as those of `gateway.services`, for this process alone: a dead server is not
hammered because PostgreSQL is away as well. What was seen is added to the row afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

from gateway.proxy.route import Route

__all__ = ["LocalBreaker"]

CLOSED, OPEN, HALF_OPEN = "closed", "open", "half_open"


@dataclass(slots=True, kw_only=True)
class LocalBreaker:
    """Begins as the row was last known; failures and time-outs count from then on."""

    breaker_id: UUID
    server_id: UUID
    state: str
    failure_count: int
    success_count: int
    failure_threshold: int
    success_threshold: int
    timeout: timedelta  # from open to half-open
    last_state_change: datetime
    probe_until: datetime | None
    failures: int = 0
    timeouts: int = 0
    last_failure_time: datetime | None = None

    @classmethod
    def of(cls, route: Route) -> LocalBreaker:
        return cls(
            breaker_id=route.breaker_id,
            server_id=route.server_id,
            state=route.breaker_state,
            failure_count=route.failure_count,
            success_count=route.success_count,
            failure_threshold=route.failure_threshold,
            success_threshold=route.success_threshold,
            timeout=timedelta(milliseconds=route.breaker_timeout_ms),
            last_state_change=route.last_state_change,
            probe_until=route.probe_until,
        )

    def over(self, route: Route) -> Route:
        """The route with this breaker's state in place of the row's."""
        return replace(
            route,
            breaker_state=self.state,
            failure_count=self.failure_count,
            last_state_change=self.last_state_change,
            probe_until=self.probe_until,
        )

    def claim_probe(self, *, at: datetime, lease: timedelta) -> bool:
        """Let one caller test a breaker whose time-out is over; True for that caller."""
        if self.state == OPEN and self.last_state_change <= at - self.timeout:
            self._change(HALF_OPEN, at)
        elif self.state != HALF_OPEN or (self.probe_until is not None and self.probe_until > at):
            return False
        self.probe_until = at + lease
        return True

    def release_probe(self, *, probe_until: datetime) -> None:
        if self._is_probe(probe_until):
            self.probe_until = None

    def record_success(self, *, at: datetime, probe_until: datetime | None) -> None:
        if probe_until is None:
            if self.state == CLOSED:
                self.failure_count = 0
        elif self._is_probe(probe_until):
            self.failure_count, self.probe_until = 0, None
            self.success_count += 1
            if self.success_count >= self.success_threshold:
                self._change(CLOSED, at)

    def record_failure(
        self, *, at: datetime, probe_until: datetime | None, timed_out: bool
    ) -> None:
        self.failures += 1
        self.timeouts += timed_out
        self.last_failure_time = at
        is_probe = probe_until is not None and self._is_probe(probe_until)
        if is_probe or self.state == CLOSED:
            self.failure_count += 1
        if is_probe or (self.state == CLOSED and self.failure_count >= self.failure_threshold):
            self._change(OPEN, at)

    def _is_probe(self, probe_until: datetime) -> bool:
        return self.state == HALF_OPEN and self.probe_until == probe_until

    def _change(self, state: str, at: datetime) -> None:
        self.state, self.last_state_change = state, at
        self.success_count, self.probe_until = 0, None
