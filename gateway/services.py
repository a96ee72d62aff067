"""What changes breakers, pools and queues. Each transition of a breaker is one UPDATE.

PostgreSQL checks an UPDATE's WHERE again after it has waited for the row, so of several callers
exactly one sees its row count be 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import (
    Case,
    DateTimeField,
    Exists,
    F,
    OuterRef,
    PositiveIntegerField,
    Q,
    QuerySet,
    Value,
    When,
)
from django.db.models.functions import Greatest

from gateway.models import (
    BreakerState,
    CircuitBreaker,
    ConnectionPool,
    GatewayProcess,
    RequestQueue,
)
from monitoring.audit import Actor, audit_write
from registry.changes import row_change
from registry.models import MCPServer

__all__ = [
    "GAUGE_LIFETIME",
    "breaker_add_healthy",
    "breaker_claim_probe",
    "breaker_force",
    "breaker_record_failure",
    "breaker_record_outage",
    "breaker_record_success",
    "breaker_release_probe",
    "breaker_reset",
    "breakers_recover",
    "breakers_untried",
    "gauges_of_gone_processes_remove",
    "settings_update",
]

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN
COUNT = PositiveIntegerField()
# A process writes its gauges every few seconds; one that has not for so long is gone.
GAUGE_LIFETIME = timedelta(seconds=15)
# Calls try a breaker first, since they know best. One that none has tried for so long after its
# time-out has no callers now.
CALLS_FIRST = timedelta(seconds=30)
_TIMEOUT = F("timeout_ms") * Value(timedelta(milliseconds=1))


def breaker_claim_probe(*, breaker_id: UUID, at: datetime, lease: timedelta) -> bool:
    """Let one caller test a breaker whose time-out is over; True for that caller.

    The caller has until `at + lease` to report the outcome; then another may try, so that a
    process that dies with its probe does not keep the breaker shut for ever.
    """
    claimed = CircuitBreaker.objects.filter(_testable(at), id=breaker_id)
    was_open = Q(state=OPEN)
    return (
        claimed.update(
            state=HALF_OPEN,
            last_state_change=Case(When(was_open, then=Value(at)), default=F("last_state_change")),
            success_count=Case(
                When(was_open, then=Value(0)), default=F("success_count"), output_field=COUNT
            ),
            probe_until=at + lease,
            updated_at=at,
        )
        == 1
    )


def breaker_release_probe(*, breaker_id: UUID, probe_until: datetime, at: datetime) -> None:
    """Give a probe back that never reached the server: the next caller may try at once."""
    _probe(breaker_id, probe_until).update(probe_until=None, updated_at=at)


def breaker_record_success(
    *, breaker_id: UUID, at: datetime, probe_until: datetime | None, healthy_calls: int
) -> None:
    """A call that went well: counts towards closing when it was the probe, else ends a streak.

    Nobody calls this for a healthy call of a breaker without failures, so that one costs nothing.
    `healthy_calls` are those that were kept back since the last write.
    """
    common: dict[str, Any] = {
        "last_success_time": at,
        "total_requests": F("total_requests") + healthy_calls,
        "updated_at": at,
    }
    if probe_until is None:
        streak = CircuitBreaker.objects.filter(id=breaker_id, state=CLOSED, failure_count__gt=0)
        streak.update(failure_count=0, **common)
        return
    _probe(breaker_id, probe_until).update(**_after_success(at), **common)


def breakers_untried(*, at: datetime) -> QuerySet[CircuitBreaker]:
    """Breakers that wait for a call which nobody makes, of servers that have answered since.

    Each health check counts once: the next one has to come after what it led to.
    """
    untried = _testable(at - CALLS_FIRST) & Q(last_state_change__lte=at - CALLS_FIRST)
    since = Greatest(OuterRef("last_state_change"), OuterRef("last_success_time"))
    answered = MCPServer.objects.usable().filter(
        id=OuterRef("server_id"), last_health_check__gt=since
    )
    return CircuitBreaker.objects.filter(untried, Exists(answered))


def breakers_recover(*, at: datetime) -> int:
    """Take a health check that went well for the probe of each breaker that no call tries.

    Without it a breaker whose callers went elsewhere would stay open for ever, and its alert fire.
    A check that failed changes nothing: the breaker is open already. Returns how many were tried.

    One statement, which looks again at a breaker that a call has changed meanwhile.
    """
    return breakers_untried(at=at).update(**_after_success(at), last_success_time=at, updated_at=at)


def breaker_add_healthy(*, calls: Mapping[UUID, int]) -> None:
    """Add healthy calls to the totals, breaker by breaker."""
    for breaker_id, count in calls.items():
        CircuitBreaker.objects.filter(id=breaker_id).update(
            total_requests=F("total_requests") + count
        )


def breaker_record_failure(
    *,
    breaker_id: UUID,
    at: datetime,
    probe_until: datetime | None,
    healthy_calls: int,
    timed_out: bool = False,
) -> None:
    """A call that failed: counts towards opening; a failed probe opens at once.

    A late failure, of a call that began before the breaker opened, is counted in the totals only.
    """
    counts: dict[str, Any] = {
        "failure_count": F("failure_count") + 1,
        "last_failure_time": Greatest(F("last_failure_time"), Value(at)),
        "total_requests": F("total_requests") + healthy_calls,
        "total_failures": F("total_failures") + 1,
        "total_timeouts": F("total_timeouts") + int(timed_out),
        "updated_at": at,
    }
    if probe_until is not None:
        opened = {"state": OPEN, "last_state_change": at, "success_count": 0, "probe_until": None}
        if _probe(breaker_id, probe_until).update(**opened, **counts):
            return
    last = Q(failure_count__gte=F("failure_threshold") - 1)
    counted = CircuitBreaker.objects.filter(id=breaker_id, state=CLOSED).update(
        state=Case(When(last, then=Value(OPEN)), default=Value(CLOSED)),
        last_state_change=Case(When(last, then=Value(at)), default=F("last_state_change")),
        **counts,
    )
    if not counted:
        del counts["failure_count"]
        CircuitBreaker.objects.filter(id=breaker_id).update(**counts)


@transaction.atomic
def breaker_record_outage(
    *,
    breaker_id: UUID,
    at: datetime,
    failures: int,
    timeouts: int,
    last_failure_time: datetime | None,
    failure_count: int,
    opened_at: datetime | None,
) -> None:
    """What one process saw of a server while it could not write.

    `failure_count` are the failures in a row at the end. `opened_at` is when the process opened the
    breaker for itself, if it did not close it again: then a closed breaker opens.
    """
    breaker = CircuitBreaker.objects.filter(id=breaker_id)
    breaker.update(
        total_failures=F("total_failures") + failures,
        total_timeouts=F("total_timeouts") + timeouts,
        last_failure_time=Greatest(
            F("last_failure_time"), Value(last_failure_time, output_field=DateTimeField())
        ),
        updated_at=at,
    )
    if opened_at is not None:
        breaker.filter(state=CLOSED).update(
            state=OPEN, last_state_change=opened_at, failure_count=failure_count, success_count=0
        )
    else:
        breaker.filter(state=CLOSED).update(failure_count=failure_count)


@transaction.atomic
def breaker_force(*, actor: Actor, breaker_id: UUID, state: str, at: datetime) -> bool:
    """Put a breaker into a state by hand, its counts at zero; False when it is in it already."""
    breaker = CircuitBreaker.objects.select_related("server").get(id=breaker_id)
    other = CircuitBreaker.objects.filter(id=breaker_id).exclude(state=state)
    changed = other.update(
        state=state,
        last_state_change=at,
        failure_count=0,
        success_count=0,
        probe_until=None,
        updated_at=at,
    )
    if changed:
        details = {"state": state, "server": breaker.server.slug}
        audit_write(actor=actor, action="circuit_breaker.force", resource=breaker, details=details)
    return changed == 1


@transaction.atomic
def breaker_reset(*, actor: Actor, breaker: CircuitBreaker, at: datetime) -> bool:
    """Closed and with nothing counted, as on the first day; False when it is so already."""
    rows = CircuitBreaker.objects.filter(id=breaker.id)
    other = rows.exclude(state=CLOSED, failure_count=0)
    changed = other.update(
        state=CLOSED,
        last_state_change=Case(When(state=CLOSED, then=F("last_state_change")), default=Value(at)),
        failure_count=0,
        success_count=0,
        probe_until=None,
        updated_at=at,
    )
    if changed:
        details = {"server": str(breaker.server_id)}
        audit_write(actor=actor, action="circuit_breaker.reset", resource=breaker, details=details)
    return changed == 1


@transaction.atomic
def settings_update(
    *, actor: Actor, row: ConnectionPool | RequestQueue, **changes: Any
) -> ConnectionPool | RequestQueue:
    """Change an operator's settings of a pool or a queue: the row with the empty name.

    ValidationError for another row: those are gauges, which their process writes.
    """
    noun, name = (
        ("connection_pool", "pool_name")
        if isinstance(row, ConnectionPool)
        else ("request_queue", "queue_name")
    )
    if getattr(row, name):
        raise ValidationError(
            "This row shows one process's figures. Change the server's settings: "
            f"the row whose {name} is empty."
        )
    current, changed = row_change(row=row, changes=changes)
    if changed:
        audit_write(actor=actor, action=f"{noun}.update", resource=current, details=changed)
    return current


def gauges_of_gone_processes_remove(*, at: datetime) -> int:
    """Delete the rows of processes that no longer write them; returns how many."""
    stale = at - GAUGE_LIFETIME
    pools, _ = ConnectionPool.objects.filter(updated_at__lt=stale).exclude(pool_name="").delete()
    queues, _ = RequestQueue.objects.filter(updated_at__lt=stale).exclude(queue_name="").delete()
    processes, _ = GatewayProcess.objects.filter(updated_at__lt=stale).delete()
    return pools + queues + processes


def _testable(at: datetime) -> Q:
    """Open and past its time-out, or half-open with no probe on its way."""
    due = Q(state=OPEN, last_state_change__lte=at - _TIMEOUT)
    return due | Q(state=HALF_OPEN) & (Q(probe_until=None) | Q(probe_until__lte=at))


def _after_success(at: datetime) -> dict[str, Any]:
    """What a probe that went well makes of a breaker; one that is still open begins to count."""
    was_open = Q(state=OPEN)
    before = Case(When(was_open, then=Value(0)), default=F("success_count"), output_field=COUNT)
    enough = Q(success_threshold__lte=before + 1)
    return {
        "state": Case(When(enough, then=Value(CLOSED)), default=Value(HALF_OPEN)),
        "last_state_change": Case(
            When(was_open | enough, then=Value(at)), default=F("last_state_change")
        ),
        "success_count": Case(When(enough, then=Value(0)), default=before + 1, output_field=COUNT),
        "failure_count": 0,
        "probe_until": None,
    }


def _probe(breaker_id: UUID, probe_until: datetime) -> QuerySet[CircuitBreaker]:
    """The breaker, if the probe that was claimed until then is still the one on its way."""
    return CircuitBreaker.objects.filter(id=breaker_id, state=HALF_OPEN, probe_until=probe_until)
