"""The gateway's own periodic work: what processes that are gone left behind."""

from __future__ import annotations

from datetime import datetime

from gateway.models import ConnectionPool, GatewayProcess, RequestQueue
from gateway.services import GAUGE_LIFETIME, gauges_of_gone_processes_remove
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


PERIODIC = (
    PeriodicTask(
        name="gauges_remove",
        cron="* * * * *",
        unit="rows",
        does="Delete the gauges of processes that are gone.",
        due=_gone,
        run=gauges_remove,
    ),
)
