"""Health: ask many servers at once, then write all answers in one statement."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from asgiref.sync import async_to_sync
from django.conf import settings
from django.db import connection, transaction
from django.db.models import Case, F, Value, When
from psycopg.types.json import Jsonb

from registry.db.encryption import DecryptionError
from registry.metrics import Measured, metrics_write
from registry.models import HealthStatus, MCPServer
from registry.upstream import current_policy

if TYPE_CHECKING:
    from registry.mcp_client import Limits, Target

__all__ = ["Checked", "check", "forget", "limits", "record", "target_of"]

# Share of the newest check in the moving averages: the last ten checks make nine tenths of them.
WEIGHT = 0.2
# Indexes cover the status, the time and the mean: within so long of a check that was written, a
# further one with the same status leaves those columns alone. A little less than the schedule's
# minute, so that every scheduled check is written.
WRITE_EVERY = timedelta(seconds=50)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """The outcome of one check. `error` is a sentence, empty when all is well."""

    server_id: UUID
    status: HealthStatus
    error: str = ""
    response_time_ms: float | None = None
    protocol_versions: list[str] | None = None  # None: not learnt, the row keeps what it has
    capabilities: dict[str, Any] | None = None
    version: str | None = None
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def success(self) -> float | None:
        """1 or 0; None when nothing was asked, which says nothing about the server."""
        if self.status == HealthStatus.UNKNOWN:
            return None
        return 0.0 if self.status == HealthStatus.UNHEALTHY else 1.0


def limits() -> Limits:
    from registry.mcp_client import Limits  # the SDK takes half a second

    return Limits(timeout_s=settings.GATEWAY_HEALTH_TIMEOUT_MS / 1000)


def target_of(server: MCPServer) -> Target:
    from registry.mcp_client import Target

    return Target.of(server, policy=current_policy(), allow_stdio=settings.GATEWAY_ALLOW_STDIO)


def check(servers: Sequence[MCPServer]) -> list[Checked]:
    """Ask all of them at the same time, each within the time-out. Touches no database."""

    async def all_of_them() -> list[Checked]:
        return list(await asyncio.gather(*(_check_one(server) for server in servers)))

    return async_to_sync(all_of_them)()


async def _check_one(server: MCPServer) -> Checked:
    from registry.mcp_client import (
        UpstreamError,
        UpstreamUnsupported,
        probe,
    )

    try:
        found = await probe(target_of(server), limits=limits())
    except (UpstreamUnsupported, DecryptionError) as error:
        return Checked(server_id=server.pk, status=HealthStatus.UNKNOWN, error=str(error))
    except UpstreamError as error:
        return Checked(server_id=server.pk, status=HealthStatus.UNHEALTHY, error=str(error))
    slow_ms = settings.GATEWAY_HEALTH_SLOW_MS
    fault = found.fault
    if not fault and found.response_time_ms > slow_ms:
        fault = f"It took {found.response_time_ms:.0f} ms to answer; {slow_ms} ms is the limit."
    return Checked(
        server_id=server.pk,
        status=HealthStatus.DEGRADED if fault else HealthStatus.HEALTHY,
        error=fault,
        response_time_ms=found.response_time_ms,
        protocol_versions=found.protocol_versions,
        capabilities=found.capabilities,
        version=found.version[:255],
        notes={"server_name": found.name[:255]} if found.name else {},
    )


# The rows are locked in one order first: two workers that write overlapping batches wait for
# each other instead of ending in a deadlock. A newer check's result is never overwritten, nor is
# the word of an operator who set maintenance.
_RECORD = """
WITH found AS (
    SELECT * FROM unnest(
        %(ids)s::uuid[], %(statuses)s::text[], %(times)s::float8[], %(successes)s::float8[],
        %(versions)s::text[], %(protocols)s::jsonb[], %(capabilities)s::jsonb[], %(notes)s::jsonb[]
    ) AS found(id, status, ms, success, version, protocols, capabilities, notes)
), held AS (
    SELECT id,
           last_health_check > %(at)s - %(write_every)s
           AND health_status IN (found.status, 'maintenance') AS is_early
    FROM mcp_servers JOIN found USING (id)
    WHERE id = ANY(%(ids)s::uuid[])
      AND (last_health_check IS NULL OR last_health_check <= %(at)s)
    ORDER BY id FOR NO KEY UPDATE OF mcp_servers
)
UPDATE mcp_servers AS server SET
    health_status = CASE WHEN server.health_status = 'maintenance'
                         THEN server.health_status ELSE found.status END,
    avg_response_time = CASE WHEN held.is_early THEN server.avg_response_time ELSE coalesce(
        server.avg_response_time + %(weight)s * (found.ms - server.avg_response_time),
        found.ms, server.avg_response_time) END,
    success_rate = coalesce(
        server.success_rate + %(weight)s * (found.success - server.success_rate),
        found.success, server.success_rate),
    version = coalesce(found.version, server.version),
    protocol_versions = coalesce(
        (SELECT array_agg(value) FROM jsonb_array_elements_text(found.protocols)),
        server.protocol_versions),
    capabilities = coalesce(found.capabilities, server.capabilities),
    health_metadata = server.health_metadata - 'error' || found.notes,
    last_health_check = CASE WHEN held.is_early THEN server.last_health_check ELSE %(at)s END,
    updated_at = %(at)s
FROM found JOIN held USING (id)
WHERE server.id = found.id
RETURNING server.id
"""


@transaction.atomic
def record(results: Sequence[Checked], *, at: datetime) -> int:
    """Write the outcomes and leave one metrics row each; returns how many rows took theirs."""
    if not results:
        return 0
    told: dict[str, Any] = {"at": at, "weight": WEIGHT, "write_every": WRITE_EVERY}
    with connection.cursor() as cursor:
        cursor.execute(_RECORD, told | _columns(results))
        written = {row[0] for row in cursor.fetchall()}
    metrics_write([_measured(result, at) for result in results if result.server_id in written])
    return len(written)


def _measured(result: Checked, at: datetime) -> Measured:
    return Measured(
        server_id=result.server_id,
        timestamp=at,
        response_time_ms=result.response_time_ms,
        error_rate=None if result.success is None else 1 - result.success,
        custom_metrics={"health_status": result.status.value},
    )


def _columns(results: Sequence[Checked]) -> dict[str, list[Any]]:
    def json_or_null(value: Any) -> Jsonb | None:
        return None if value is None else Jsonb(value)

    return {
        "ids": [result.server_id for result in results],
        "statuses": [result.status.value for result in results],
        "times": [result.response_time_ms for result in results],
        "successes": [result.success for result in results],
        "versions": [result.version for result in results],
        "protocols": [json_or_null(result.protocol_versions) for result in results],
        "capabilities": [json_or_null(result.capabilities) for result in results],
        "notes": [
            Jsonb(result.notes | ({"error": result.error} if result.error else {}))
            for result in results
        ],
    }


def forget(*, server_id: UUID, at: datetime) -> None:
    """What was measured at another address says nothing about this one."""
    kept = When(health_status=HealthStatus.MAINTENANCE, then=F("health_status"))
    MCPServer.objects.filter(pk=server_id).update(
        health_status=Case(kept, default=Value(HealthStatus.UNKNOWN)),
        last_health_check=None,
        avg_response_time=None,
        success_rate=None,
        health_metadata={},
        updated_at=at,
    )
