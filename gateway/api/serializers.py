"""Breakers, pools, queues and the health summary as JSON."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from gateway.models import CircuitBreaker, ConnectionPool, RequestQueue
from registry.api.fields import RoundedField

__all__ = [
    "CircuitBreakerSerializer",
    "ConnectionPoolSerializer",
    "RequestQueueSerializer",
    "ServerHealthSerializer",
]


class CircuitBreakerSerializer(serializers.ModelSerializer[CircuitBreaker]):
    server_slug = serializers.CharField(source="server.slug", read_only=True)

    class Meta:
        model = CircuitBreaker
        fields = [
            "id", "server", "server_slug", "service_name", "state", "failure_count",
            "success_count", "failure_threshold", "success_threshold", "timeout_ms",
            "last_failure_time", "last_success_time", "last_state_change", "total_requests",
            "total_failures", "total_timeouts", "created_at", "updated_at",
        ]  # fmt: skip
        read_only_fields = fields


class ConnectionPoolSerializer(serializers.ModelSerializer[ConnectionPool]):
    """An empty `pool_name`: the settings, which can be changed; else one process's gauges."""

    server_slug = serializers.CharField(source="server.slug", read_only=True)

    class Meta:
        model = ConnectionPool
        fields = [
            "id", "server", "server_slug", "pool_name", "transport_type", "max_size", "min_size",
            "timeout_ms", "idle_timeout_ms", "active_connections", "idle_connections",
            "pending_requests", "is_healthy", "last_health_check", "total_connections_created",
            "total_connections_closed", "connection_errors", "avg_connection_time_ms",
            "created_at", "updated_at",
        ]  # fmt: skip
        read_only_fields = sorted(
            set(fields) - {"max_size", "min_size", "timeout_ms", "idle_timeout_ms"}
        )


class RequestQueueSerializer(serializers.ModelSerializer[RequestQueue]):
    """An empty `queue_name`: the settings, which can be changed; else one process's gauges."""

    server_slug = serializers.CharField(source="server.slug", read_only=True)

    class Meta:
        model = RequestQueue
        fields = [
            "id", "server", "server_slug", "queue_name", "max_size", "processing_timeout_ms",
            "priority_levels", "current_size", "processing_count", "is_accepting_requests",
            "last_processed", "total_enqueued", "total_processed", "total_timeouts",
            "total_errors", "avg_processing_time_ms", "avg_wait_time_ms", "created_at",
            "updated_at",
        ]  # fmt: skip
        read_only_fields = sorted(
            set(fields)
            - {"max_size", "processing_timeout_ms", "priority_levels", "is_accepting_requests"}
        )


class ServerHealthSerializer(serializers.Serializer[Any]):
    health_status = serializers.CharField(help_text="A status, or `all`.")
    servers = serializers.IntegerField()
    avg_response_time = RoundedField(places=3, allow_null=True, help_text="Milliseconds.")
    success_rate = RoundedField(places=4, allow_null=True, help_text="0 to 1.")
    stale_checks = serializers.IntegerField(help_text="Not checked in the last 5 minutes.")
    open_breakers = serializers.IntegerField()
    last_health_check = serializers.DateTimeField(allow_null=True)
