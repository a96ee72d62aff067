"""Filters of breakers, pools and queues."""

from __future__ import annotations

from django_filters.rest_framework import FilterSet

from gateway.models import BreakerState, CircuitBreaker, ConnectionPool, RequestQueue
from registry.api.filters import ChoicesFilter, IdFilter, TenantFilter, TruthFilter

__all__ = ["BreakerFilter", "PoolFilter", "QueueFilter"]


class BreakerFilter(FilterSet):  # type: ignore[misc]
    tenant = TenantFilter("server__tenant__slug")
    server = IdFilter("server_id", of="a server's")
    state = ChoicesFilter(choices=BreakerState.choices)

    class Meta:
        model = CircuitBreaker
        fields: list[str] = []


class PoolFilter(FilterSet):  # type: ignore[misc]
    tenant = TenantFilter("server__tenant__slug")
    server = IdFilter("server_id", of="a server's")
    is_healthy = TruthFilter()

    class Meta:
        model = ConnectionPool
        fields: list[str] = []


class QueueFilter(FilterSet):  # type: ignore[misc]
    tenant = TenantFilter("server__tenant__slug")
    server = IdFilter("server_id", of="a server's")
    is_accepting_requests = TruthFilter()

    class Meta:
        model = RequestQueue
        fields: list[str] = []
