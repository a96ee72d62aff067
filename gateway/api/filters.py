"""Filters of breakers, pools and queues."""

from __future__ import annotations

import django_filters
from django_filters.rest_framework import FilterSet

from gateway.models import BreakerState, CircuitBreaker, ConnectionPool, RequestQueue
from registry.api.filters import TenantFilter, TruthFilter

__all__ = ["BreakerFilter", "PoolFilter", "QueueFilter"]


class BreakerFilter(FilterSet):  # type: ignore[misc]
    tenant = TenantFilter("server__tenant")
    server = django_filters.UUIDFilter(field_name="server_id", help_text="A server's id.")
    state = django_filters.MultipleChoiceFilter(choices=BreakerState.choices)

    class Meta:
        model = CircuitBreaker
        fields: list[str] = []


class PoolFilter(FilterSet):  # type: ignore[misc]
    tenant = TenantFilter("server__tenant")
    server = django_filters.UUIDFilter(field_name="server_id", help_text="A server's id.")
    is_healthy = TruthFilter()

    class Meta:
        model = ConnectionPool
        fields: list[str] = []


class QueueFilter(FilterSet):  # type: ignore[misc]
    tenant = TenantFilter("server__tenant")
    server = django_filters.UUIDFilter(field_name="server_id", help_text="A server's id.")
    is_accepting_requests = TruthFilter()

    class Meta:
        model = RequestQueue
        fields: list[str] = []
