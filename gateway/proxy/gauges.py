"""What this process's pools, queues and log rows look like, told to everybody in one statement."""

from __future__ import annotations

import json
import os
import secrets
import socket
from datetime import UTC, datetime
from typing import Any

from gateway.proxy.upstream import Upstream
from gateway.services import GAUGE_LIFETIME
from monitoring.logwriter import Backlog
from registry.db.ids import uuid7
from registry.db.pool import Pool

__all__ = ["Gauges"]


class Gauges:
    """Writes the rows that bear this process's name: of its pools, its queues, and its own."""

    def __init__(self) -> None:
        self.name = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(2)}"
        self._lost = 0
        self._last_loss: datetime | None = None

    async def write(self, pool: Pool, upstreams: list[Upstream], backlog: Backlog) -> None:
        """Bring this process's rows up to date and remove those of processes that are gone."""
        rows = json.dumps([self._row(upstream) for upstream in upstreams])
        if backlog.lost > self._lost:
            self._lost, self._last_loss = backlog.lost, datetime.now(UTC)
        parameters = {
            "rows": rows,
            "name": self.name,
            "lifetime": GAUGE_LIFETIME,
            "process_id": uuid7(),
            "log_rows_waiting": backlog.waiting,
            "log_rows_spooled": backlog.spooled,
            "log_rows_lost": backlog.lost,
            "last_loss": self._last_loss,
        }
        async with pool.connection() as connection:
            await connection.execute(_WRITE, parameters)

    async def remove(self, pool: Pool) -> None:
        """Take this process's rows away when it ends."""
        async with pool.connection() as connection:
            await connection.execute(_REMOVE, {"name": self.name})

    def _row(self, upstream: Upstream) -> dict[str, Any]:
        gate, route = upstream.gate, upstream.route
        last = gate.last_processed
        return {
            "pool_id": str(uuid7()),
            "queue_id": str(uuid7()),
            "server_id": str(route.server_id),
            "transport_type": route.transport_type,
            "max_size": route.pool_max_size,
            "timeout_ms": route.pool_timeout_ms,
            "idle_timeout_ms": route.idle_timeout_ms,
            "active": upstream.active,
            "idle": upstream.idle,
            "waiting": gate.waiting,
            "healthy": route.breaker_state == "closed",
            "created": upstream.created,
            "closed": upstream.closed,
            "connect_errors": upstream.errors,
            "connect_ms": upstream.mean_connect_ms,
            "queue_max": route.queue_max_size,
            "processing_timeout_ms": route.processing_timeout_ms,
            "priority_levels": route.priority_levels,
            "accepting": route.is_accepting_requests,
            "processing": gate.active,
            "last_processed": last and datetime.fromtimestamp(last, UTC).isoformat(),
            "enqueued": gate.enqueued,
            "processed": gate.processed,
            "timeouts": gate.timeouts,
            "errors": gate.errors,
            "processing_ms": gate.mean_processing_ms,
            "wait_ms": gate.mean_wait_ms,
        }


# A row is gone's only if nobody holds it: SKIP LOCKED, so that processes do not wait here.
# A server that was deleted meanwhile drops out by the join.
_WRITE = """
WITH gone_pools AS (
    DELETE FROM connection_pools WHERE id IN (
        SELECT id FROM connection_pools
         WHERE pool_name <> '' AND pool_name <> %(name)s AND updated_at < now() - %(lifetime)s
           FOR UPDATE SKIP LOCKED)),
gone_queues AS (
    DELETE FROM request_queues WHERE id IN (
        SELECT id FROM request_queues
         WHERE queue_name <> '' AND queue_name <> %(name)s AND updated_at < now() - %(lifetime)s
           FOR UPDATE SKIP LOCKED)),
gone_processes AS (
    DELETE FROM gateway_processes WHERE id IN (
        SELECT id FROM gateway_processes
         WHERE name <> %(name)s AND updated_at < now() - %(lifetime)s
           FOR UPDATE SKIP LOCKED)),
own AS (
    INSERT INTO gateway_processes AS p (
        id, name, log_rows_waiting, log_rows_spooled, log_rows_lost, last_loss)
    VALUES (%(process_id)s, %(name)s, %(log_rows_waiting)s, %(log_rows_spooled)s,
            %(log_rows_lost)s, %(last_loss)s)
    ON CONFLICT (name) DO UPDATE SET
        log_rows_waiting = excluded.log_rows_waiting,
        log_rows_spooled = excluded.log_rows_spooled, log_rows_lost = excluded.log_rows_lost,
        last_loss = excluded.last_loss, updated_at = now()),
g AS (
    SELECT u.* FROM jsonb_to_recordset(%(rows)s::jsonb) AS u(
        pool_id uuid, queue_id uuid, server_id uuid, transport_type text, max_size int,
        timeout_ms int, idle_timeout_ms int, active int, idle int, waiting int, healthy bool,
        created bigint, closed bigint, connect_errors bigint, connect_ms float8, queue_max int,
        processing_timeout_ms int, priority_levels int, accepting bool, processing int,
        last_processed timestamptz, enqueued bigint, processed bigint, timeouts bigint,
        errors bigint, processing_ms float8, wait_ms float8)
      JOIN mcp_servers s ON s.id = u.server_id),
pools AS (
    INSERT INTO connection_pools AS p (
        id, server_id, pool_name, transport_type, max_size, min_size, timeout_ms, idle_timeout_ms,
        active_connections, idle_connections, pending_requests, is_healthy, last_health_check,
        total_connections_created, total_connections_closed, connection_errors,
        avg_connection_time_ms)
    SELECT pool_id, server_id, %(name)s, transport_type, max_size, 0, timeout_ms, idle_timeout_ms,
           active, idle, waiting, healthy, now(), created, closed, connect_errors, connect_ms
      FROM g
    ON CONFLICT (server_id, pool_name) DO UPDATE SET
        max_size = excluded.max_size, timeout_ms = excluded.timeout_ms,
        idle_timeout_ms = excluded.idle_timeout_ms,
        active_connections = excluded.active_connections,
        idle_connections = excluded.idle_connections,
        pending_requests = excluded.pending_requests, is_healthy = excluded.is_healthy,
        last_health_check = now(), updated_at = now(),
        total_connections_created = excluded.total_connections_created,
        total_connections_closed = excluded.total_connections_closed,
        connection_errors = excluded.connection_errors,
        avg_connection_time_ms = excluded.avg_connection_time_ms)
INSERT INTO request_queues AS q (
    id, server_id, queue_name, max_size, processing_timeout_ms, priority_levels, current_size,
    processing_count, is_accepting_requests, last_processed, total_enqueued, total_processed,
    total_timeouts, total_errors, avg_processing_time_ms, avg_wait_time_ms)
SELECT queue_id, server_id, %(name)s, queue_max, processing_timeout_ms, priority_levels, waiting,
       processing, accepting, last_processed, enqueued, processed, timeouts, errors,
       processing_ms, wait_ms
  FROM g
ON CONFLICT (server_id, queue_name) DO UPDATE SET
    max_size = excluded.max_size, processing_timeout_ms = excluded.processing_timeout_ms,
    priority_levels = excluded.priority_levels, current_size = excluded.current_size,
    processing_count = excluded.processing_count,
    is_accepting_requests = excluded.is_accepting_requests,
    last_processed = excluded.last_processed, total_enqueued = excluded.total_enqueued,
    total_processed = excluded.total_processed, total_timeouts = excluded.total_timeouts,
    total_errors = excluded.total_errors, updated_at = now(),
    avg_processing_time_ms = excluded.avg_processing_time_ms,
    avg_wait_time_ms = excluded.avg_wait_time_ms
"""
_REMOVE = """
WITH pools AS (DELETE FROM connection_pools WHERE pool_name = %(name)s),
own AS (DELETE FROM gateway_processes WHERE name = %(name)s)
DELETE FROM request_queues WHERE queue_name = %(name)s
"""
