"""The gateway's own periodic work: what gone processes left, and breakers that nobody tries."""

from __future__ import annotations

from datetime import datetime

from gateway.models import ConnectionPool, GatewayProcess, RequestQueue
from gateway.services import (
    GAUGE_LIFETIME,
    breakers_recover,
    breakers_untried,
    gauges_of_gone_processes_remove,
)
from registry.periodic import PeriodicTask, Stop, never

__all__ = ["PERIODIC"]


def gauges_remove(*, at: datetime, stop: Stop = never) -> int:  # noqa: ARG001  (one step)
    """Delete the rows of processes that no longer write them."""
    return gauges_of_gone_processes_remove(at=at)


def _gone(at: datetime) -> int:
    before = at - GAUGE_LIFETIME
    pools = ConnectionPool.objects.filter(updated_at__lt=before).exclude(pool_name="")
    queues = RequestQueue.objects.filter(updated_at__lt=before).exclude(queue_name="")
    processes = GatewayProcess.objects.filter(updated_at__lt=before)
    return pools.count() + queues.count() + processes.count()


def breakers_close(*, at: datetime, stop: Stop = never) -> int:  # noqa: ARG001  (short)
    """Let health checks that went well close breakers that no call has tried."""
    return breakers_recover(at=at)


PERIODIC = (
    PeriodicTask(
        name="breakers_close",
        cron="* * * * *",
        unit="breakers",
        does="Let health checks that went well close breakers that no call has tried.",
        due=lambda at: breakers_untried(at=at).count(),
        run=breakers_close,
    ),
    PeriodicTask(
        name="gauges_remove",
        cron="* * * * *",
        unit="rows",
        does="Delete the gauges of processes that are gone.",
        due=_gone,
        run=gauges_remove,
    ),
)
