"""Registry's periodic work: is each server well, and what does it offer now?"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from uuid import UUID

from django.db.models import Q, QuerySet
from django.utils.timezone import now

from registry import health
from registry.db.encryption import DecryptionError
from registry.models import SEEDED, HealthStatus, MCPServer
from registry.periodic import PeriodicTask, Stop, never
from registry.services import health_check, tools_sync

__all__ = ["PERIODIC", "server_first_contact"]

logger = logging.getLogger(__name__)

AT_ONCE = 50  # servers asked at the same time, and written in one statement
CHECK_EVERY = timedelta(seconds=50)  # a little less than the schedule's minute
SYNC_EVERY = timedelta(minutes=9, seconds=30)


def servers_health_check(*, at: datetime, stop: Stop = never) -> int:
    """Ask every enabled server that was not asked within the last minute, oldest answer first."""
    servers = list(_to_check(at))
    done = 0
    for start in range(0, len(servers), AT_ONCE):
        if stop():
            break
        batch = servers[start : start + AT_ONCE]
        health.record(health.check(batch), at=now())
        done += len(batch)
    return done


def servers_tools_sync(*, at: datetime, stop: Stop = never) -> int:
    """Read what each answering server offers; one that fails keeps what is known of it."""
    done = 0
    for server in _to_sync(at):
        if stop():
            break
        done += _synced(server)
    return done


def server_first_contact(*, server_id: UUID, at: datetime) -> None:
    """Check a server that has just been registered or moved, and read what it offers."""
    server = MCPServer.objects.filter(pk=server_id, is_enabled=True).first()
    if server is None:
        return
    if health_check(server=server, at=at).status in (HealthStatus.HEALTHY, HealthStatus.DEGRADED):
        _synced(server)


def _synced(server: MCPServer) -> bool:
    from registry.mcp_client import UpstreamError  # the SDK takes half a second

    try:
        tools_sync(server=server, at=now())
    except (UpstreamError, DecryptionError) as error:
        logger.warning("tools of server %s not read: %s", server.slug, error)
        return False
    return True


def _to_check(at: datetime) -> QuerySet[MCPServer]:
    waiting = Q(last_health_check=None) | Q(last_health_check__lte=at - CHECK_EVERY)
    return _real().filter(waiting).order_by("last_health_check", "id")


def _to_sync(at: datetime) -> QuerySet[MCPServer]:
    answering = _real().filter(
        health_status__in=[HealthStatus.HEALTHY, HealthStatus.DEGRADED, HealthStatus.MAINTENANCE]
    )
    before = (at - SYNC_EVERY).isoformat()  # ISO texts of one zone sort as their times do
    never_read = ~Q(health_metadata__has_key="synced_at")
    return answering.filter(never_read | Q(health_metadata__synced_at__lte=before)).order_by("id")


def _real() -> QuerySet[MCPServer]:
    """Enabled servers, without those that seed_dev_data made up: nothing would ever answer there.

    Their mark is gone with their address: a change of that forgets all that checks found.
    """
    return MCPServer.objects.filter(is_enabled=True).exclude(health_metadata__has_key=SEEDED)


PERIODIC = (
    PeriodicTask(
        name="servers_health_check",
        cron="* * * * *",
        unit="servers",
        does="Ask every enabled server how it is.",
        due=lambda at: _to_check(at).count(),
        run=servers_health_check,
    ),
    PeriodicTask(
        name="servers_tools_sync",
        cron="*/10 * * * *",
        unit="servers",
        does="Read the tools, resources and prompts that servers offer now.",
        due=lambda at: _to_sync(at).count(),
        run=servers_tools_sync,
    ),
)
