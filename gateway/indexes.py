"""What gateway's indexes are for: the query, who runs it, how often.

State and counters carry no index: they change, and an index on what changes ends HOT updates.
"""

from gateway.models import CircuitBreaker, ConnectionPool, RequestQueue
from registry.db.catalogue import IndexEntry, sample

# State and gauges, which calls and their processes write.
VOLATILE = {
    CircuitBreaker: {
        "failure_count",
        "last_failure_time",
        "last_state_change",
        "last_success_time",
        "probe_until",
        "state",
        "success_count",
        "total_failures",
        "total_requests",
        "total_timeouts",
        "updated_at",
    },
    ConnectionPool: {
        "active_connections",
        "avg_connection_time_ms",
        "connection_errors",
        "idle_connections",
        "is_healthy",
        "pending_requests",
        "total_connections_closed",
        "total_connections_created",
        "updated_at",
    },
    RequestQueue: {
        "avg_processing_time_ms",
        "avg_wait_time_ms",
        "current_size",
        "last_processed",
        "processing_count",
        "total_enqueued",
        "total_errors",
        "total_processed",
        "total_timeouts",
        "updated_at",
    },
}

CATALOGUE = [
    IndexEntry(
        index="uq_circuit_breakers_server_service",
        query=lambda: CircuitBreaker.objects.filter(
            **sample(CircuitBreaker, "server_id", "service_name")
        ),
        caller="the data plane: may this server be called?",
        rate="each call",
    ),
    IndexEntry(
        index="uq_connection_pools_server_pool",
        query=lambda: ConnectionPool.objects.filter(
            **sample(ConnectionPool, "server_id", "pool_name")
        ),
        caller="the data plane: the operator's pool settings",
        rate="each call, together with the breaker",
    ),
    IndexEntry(
        index="uq_request_queues_server_queue",
        query=lambda: RequestQueue.objects.filter(
            **sample(RequestQueue, "server_id", "queue_name")
        ),
        caller="the data plane: the operator's queue settings",
        rate="each call, together with the breaker",
    ),
]
