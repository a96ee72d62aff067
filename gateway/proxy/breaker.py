"""The data plane's side of the circuit breaker: consult before a call, tell the outcome after.

A healthy call of a closed breaker without failures touches no row; what it adds to the totals is
kept here until something has to be written anyway.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID

from django.db import DatabaseError
from django.utils.timezone import now

from gateway import services
from gateway.proxy.failures import Failure
from gateway.proxy.orm import OrmThreads
from gateway.proxy.route import Route

__all__ = ["BreakerClient", "Permit"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to call once. `probe_until` is set when this call tests a half-open breaker."""

    breaker_id: UUID
    probe_until: datetime | None
    had_failures: bool


class BreakerClient:
    """Breakers of all servers, for one process."""

    def __init__(self, orm: OrmThreads) -> None:
        self._orm = orm
        self._healthy: Counter[UUID] = Counter()

    async def permit(self, route: Route) -> Permit:
        """Leave to call, or a Failure `circuit_open`. Of many callers one gets the probe."""
        if route.breaker_state == "closed":
            return Permit(route.breaker_id, None, route.failure_count > 0)
        at = now()
        opens = route.last_state_change + timedelta(milliseconds=route.breaker_timeout_ms)
        if route.breaker_state == "open" and at < opens:
            raise _open(route, (opens - at).total_seconds())
        if route.breaker_state == "half_open" and route.probe_until and at < route.probe_until:
            raise _open(route, 1.0)
        longest = max(route.breaker_timeout_ms, route.processing_timeout_ms + route.pool_timeout_ms)
        lease = timedelta(milliseconds=longest)
        probe = Permit(route.breaker_id, at + lease, had_failures=True)
        claim = asyncio.ensure_future(
            self._orm.run(
                partial(
                    services.breaker_claim_probe, breaker_id=route.breaker_id, at=at, lease=lease
                )
            )
        )
        try:
            won = await asyncio.shield(claim)
        except asyncio.CancelledError:
            # The caller left while the claim was under way: a probe that was won is given back.
            if await claim:
                await self.released(probe)
            raise
        if not won:
            raise _open(route, 1.0)
        return probe

    async def succeeded(self, permit: Permit) -> None:
        self._healthy[permit.breaker_id] += 1
        if permit.probe_until is None and not permit.had_failures:
            return
        await self._tell(
            partial(
                services.breaker_record_success,
                breaker_id=permit.breaker_id,
                at=now(),
                probe_until=permit.probe_until,
                healthy_calls=self._healthy.pop(permit.breaker_id, 0),
            )
        )

    async def write_healthy(self) -> None:
        """Add the calls that were kept back to their breakers' totals; for a process that ends."""
        kept, self._healthy = self._healthy, Counter()
        if kept:
            await self._tell(partial(services.breaker_add_healthy, calls=dict(kept)))

    async def failed(self, permit: Permit, *, timed_out: bool) -> None:
        await self._tell(
            partial(
                services.breaker_record_failure,
                breaker_id=permit.breaker_id,
                at=now(),
                probe_until=permit.probe_until,
                healthy_calls=1 + self._healthy.pop(permit.breaker_id, 0),
                timed_out=timed_out,
            )
        )

    async def released(self, permit: Permit) -> None:
        """The call never reached the server: a probe is given back."""
        if permit.probe_until is None:
            return
        await self._tell(
            partial(
                services.breaker_release_probe,
                breaker_id=permit.breaker_id,
                probe_until=permit.probe_until,
                at=now(),
            )
        )

    async def _tell(self, work: Callable[[], object]) -> None:
        """Record an outcome. The call is over: a database that is away must not undo its answer."""
        try:
            await self._orm.run(work)
        except DatabaseError as error:
            logger.warning("a breaker was not told the outcome of a call: %s", error)


def _open(route: Route, retry_after: float) -> Failure:
    return Failure(
        503,
        "circuit_open",
        f"Server '{route.slug}' has failed repeatedly and is not being called for now. "
        f"Try again in {max(1, round(retry_after))} s.",
        retry_after=retry_after,
    )
