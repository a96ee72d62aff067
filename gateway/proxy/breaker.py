"""The data plane's side of the circuit breaker: consult before a call, tell the outcome after.

The state comes with the remembered route, which a notice drops when the row's state changes. A
count of failures tells nobody: the process that saw one has the route read again, so the count
comes with the next call and ends the streak with its next success. Another process goes on
believing that there were none, at most until it reads the route again.

A healthy call of a closed breaker without failures touches no row; what it adds to the totals is
kept here until something has to be written anyway. While PostgreSQL is away outcomes go to a
breaker in memory, which the row gets to know of afterwards.
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
from gateway.proxy.contact import Contact
from gateway.proxy.failures import Failure
from gateway.proxy.local_breaker import LocalBreaker
from gateway.proxy.orm import OrmThreads
from gateway.proxy.route import Route
from security.refusals import whole_seconds

__all__ = ["BreakerClient", "Permit"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to call once. `probe_until` is set when this call tests a half-open breaker."""

    route: Route
    probe_until: datetime | None
    had_failures: bool

    @property
    def breaker_id(self) -> UUID:
        return self.route.breaker_id


class BreakerClient:
    """Breakers of all servers, for one process. `changed` is told which row this process wrote:
    the label of what has to be read again.
    """

    def __init__(
        self, orm: OrmThreads, contact: Contact, *, changed: Callable[[str], None]
    ) -> None:
        self._orm = orm
        self._contact = contact
        self._changed = changed
        self._healthy: Counter[UUID] = Counter()
        self._local: dict[UUID, LocalBreaker] = {}
        self._settling = asyncio.Lock()

    async def permit(self, route: Route) -> Permit:
        """Leave to call, or a Failure `circuit_open`. Of many callers one gets the probe."""
        local = self._local_of(route)
        seen = local.over(route) if local else route
        if seen.breaker_state == "closed":
            return Permit(route, None, seen.failure_count > 0)
        at = now()
        _refuse_early(seen, at)
        longest = max(route.breaker_timeout_ms, route.processing_timeout_ms + route.pool_timeout_ms)
        lease = timedelta(milliseconds=longest)
        if local is not None:
            won = local.claim_probe(at=at, lease=lease)
        else:
            won = await self._claim(route, at, lease)
        if not won:
            raise _open(route, 1.0)
        return Permit(route, at + lease, had_failures=True)

    async def _claim(self, route: Route, at: datetime, lease: timedelta) -> bool:
        work = partial(
            services.breaker_claim_probe, breaker_id=route.breaker_id, at=at, lease=lease
        )
        claim = asyncio.ensure_future(self._orm.run(work))
        try:
            won = await asyncio.shield(claim)
        except asyncio.CancelledError:
            # The caller left while the claim was under way: a probe that was won is given back.
            if await claim:
                await self.released(Permit(route, at + lease, had_failures=True))
            raise
        except DatabaseError as error:
            logger.warning("a breaker is kept in memory for now: %s", error)
            return self._begin_local(route).claim_probe(at=at, lease=lease)
        self._changed(f"circuit_breakers.server_id={route.server_id}")
        return won

    async def succeeded(self, permit: Permit) -> None:
        self._healthy[permit.breaker_id] += 1
        if permit.probe_until is None and not permit.had_failures:
            return
        at, probe_until = now(), permit.probe_until
        await self._tell(
            permit,
            partial(services.breaker_record_success, at=at, probe_until=probe_until),
            lambda local: local.record_success(at=at, probe_until=probe_until),
            counts=True,
        )

    async def failed(self, permit: Permit, *, timed_out: bool) -> None:
        at, probe_until = now(), permit.probe_until
        self._healthy[permit.breaker_id] += 1  # a call all the same
        await self._tell(
            permit,
            partial(
                services.breaker_record_failure,
                at=at,
                probe_until=probe_until,
                timed_out=timed_out,
            ),
            lambda local: local.record_failure(at=at, probe_until=probe_until, timed_out=timed_out),
            counts=True,
        )

    async def released(self, permit: Permit) -> None:
        """The call never reached the server: a probe is given back."""
        probe_until = permit.probe_until
        if probe_until is None:
            return
        await self._tell(
            permit,
            partial(services.breaker_release_probe, probe_until=probe_until, at=now()),
            lambda local: local.release_probe(probe_until=probe_until),
        )

    def local_states(self) -> list[str]:
        """The states of the breakers that are kept in memory for now."""
        return [local.state for local in self._local.values()]

    async def write_kept(self) -> None:
        """Add to the rows all that was kept back; for a process that ends. Raises DatabaseError."""
        await self.settle()
        kept, self._healthy = self._healthy, Counter()
        if kept:
            await self._orm.run(partial(services.breaker_add_healthy, calls=dict(kept)))

    async def settle(self) -> None:
        """Tell the rows what breakers in memory saw, and go back to the rows.

        Raises DatabaseError; what was not told is kept.
        """
        async with self._settling:
            for breaker_id, local in list(self._local.items()):
                if local.failures:
                    await self._write_outage(local)
                    self._changed(f"circuit_breakers.server_id={local.server_id}")
                if not local.failures:  # none came meanwhile
                    del self._local[breaker_id]

    async def _write_outage(self, local: LocalBreaker) -> None:
        failures, timeouts = local.failures, local.timeouts
        local.failures = local.timeouts = 0
        work = partial(
            services.breaker_record_outage,
            breaker_id=local.breaker_id,
            at=now(),
            failures=failures,
            timeouts=timeouts,
            last_failure_time=local.last_failure_time,
            failure_count=local.failure_count,
            opened_at=None if local.state == "closed" else local.last_state_change,
        )
        try:
            await self._orm.run(work)
        except DatabaseError:
            local.failures += failures
            local.timeouts += timeouts
            raise

    async def _tell(
        self,
        permit: Permit,
        work: Callable[..., None],
        locally: Callable[[LocalBreaker], None],
        *,
        counts: bool = False,
    ) -> None:
        """Record an outcome: in the row, or where that cannot be written in its stand-in.

        The call is over: a database that is away must not undo its answer.
        """
        local = self._local_of(permit.route)
        if local is not None:
            locally(local)
            return
        calls = self._healthy.pop(permit.breaker_id, 0) if counts else 0
        try:
            kept = {"healthy_calls": calls} if counts else {}
            await self._orm.run(partial(work, breaker_id=permit.breaker_id, **kept))
        except DatabaseError as error:
            logger.warning("a breaker is kept in memory for now: %s", error)
            self._healthy[permit.breaker_id] += calls
            locally(self._begin_local(permit.route))
        else:
            self._changed(f"circuit_breakers.server_id={permit.route.server_id}")

    def _local_of(self, route: Route) -> LocalBreaker | None:
        """The stand-in for a row that cannot be written now, or whose news are not written yet."""
        local = self._local.get(route.breaker_id)
        if local is None and self._contact.is_away:
            return self._begin_local(route)
        return local

    def _begin_local(self, route: Route) -> LocalBreaker:
        return self._local.setdefault(route.breaker_id, LocalBreaker.of(route))


def _refuse_early(route: Route, at: datetime) -> None:
    """Failure while no probe is due; says how long that takes."""
    opens = route.last_state_change + timedelta(milliseconds=route.breaker_timeout_ms)
    if route.breaker_state == "open" and at < opens:
        raise _open(route, (opens - at).total_seconds())
    if route.breaker_state == "half_open" and route.probe_until and at < route.probe_until:
        raise _open(route, 1.0)


def _open(route: Route, retry_after: float) -> Failure:
    return Failure(
        503,
        "circuit_open",
        f"Server '{route.slug}' has failed repeatedly and is not being called for now. "
        f"Try again in {whole_seconds(retry_after)} s.",
        retry_after=retry_after,
    )
