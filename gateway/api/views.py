"""Breakers, pools and queues over HTTP."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from django.http import HttpRequest, JsonResponse
from django.urls import Resolver404, resolve
from django.utils.text import Truncator
from django.utils.timezone import now
from django.views.decorators.csrf import csrf_exempt
from drf_spectacular.utils import extend_schema
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from gateway import queries, services
from gateway.api.filters import BreakerFilter, PoolFilter, QueueFilter
from gateway.api.serializers import (
    CircuitBreakerSerializer,
    ConnectionPoolSerializer,
    RequestQueueSerializer,
    ServerHealthSerializer,
)
from gateway.models import BreakerState, CircuitBreaker, ConnectionPool, RequestQueue
from monitoring.api.views import TableView
from registry.api.base import Changeable, Listed, ScopedViewSet
from registry.api.callers import actor_of, caller_of
from registry.api.schema import table_of

__all__ = [
    "CircuitBreakerViewSet",
    "ConnectionPoolViewSet",
    "RequestQueueViewSet",
    "ServerHealthView",
    "no_such_path",
]


class CircuitBreakerViewSet(Listed, ScopedViewSet[CircuitBreaker]):
    """The circuit breakers of the caller's own servers."""

    queryset = CircuitBreaker.objects.none()
    serializer_class = CircuitBreakerSerializer
    filterset_class = BreakerFilter
    read_scope, write_scope = "health", "write"
    tenant_field = "server__tenant_id"
    server_field = "server"

    def rows(self) -> QuerySet[CircuitBreaker]:
        return CircuitBreaker.objects.select_related("server").defer("server__credentials")

    @extend_schema(summary="Stop calls, until the time-out lets one probe through", request=None)
    @action(detail=True, methods=["post"])
    def open(self, request: Request, pk: str) -> Response:
        return self._force(BreakerState.OPEN)

    @extend_schema(summary="Let calls through", request=None)
    @action(detail=True, methods=["post"])
    def close(self, request: Request, pk: str) -> Response:
        return self._force(BreakerState.CLOSED)

    @extend_schema(summary="Let calls through and forget past failures", request=None)
    @action(detail=True, methods=["post"])
    def reset(self, request: Request, pk: str) -> Response:
        breaker = self.get_object()
        services.breaker_reset(actor=actor_of(request), breaker=breaker, at=now())
        return self.answer(breaker)

    def _force(self, state: BreakerState) -> Response:
        breaker = self.get_object()
        services.breaker_force(
            actor=actor_of(self.request), breaker_id=breaker.pk, state=state, at=now()
        )
        return self.answer(breaker)


class ConnectionPoolViewSet(Listed, Changeable, ScopedViewSet[ConnectionPool]):
    """Connections to the caller's own servers: the settings, and each process's gauges."""

    queryset = ConnectionPool.objects.none()
    serializer_class = ConnectionPoolSerializer
    filterset_class = PoolFilter
    read_scope, write_scope = "health", "write"
    tenant_field = "server__tenant_id"
    server_field = "server"

    def rows(self) -> QuerySet[ConnectionPool]:
        return ConnectionPool.objects.select_related("server").defer("server__credentials")

    def changed(self, row: ConnectionPool, values: dict[str, Any]) -> None:
        services.settings_update(actor=actor_of(self.request), row=row, **values)


class RequestQueueViewSet(Listed, Changeable, ScopedViewSet[RequestQueue]):
    """Calls that wait for the caller's own servers: the settings, and each process's gauges."""

    queryset = RequestQueue.objects.none()
    serializer_class = RequestQueueSerializer
    filterset_class = QueueFilter
    read_scope, write_scope = "health", "write"
    tenant_field = "server__tenant_id"
    server_field = "server"

    def rows(self) -> QuerySet[RequestQueue]:
        return RequestQueue.objects.select_related("server").defer("server__credentials")

    def changed(self, row: RequestQueue, values: dict[str, Any]) -> None:
        services.settings_update(actor=actor_of(self.request), row=row, **values)


class ServerHealthView(TableView):
    read_scope = "health"

    @extend_schema(
        operation_id="summaries_server_health",
        summary="Servers by health",
        description="Of the servers that the caller's tenant sees; of all for an operator.",
        responses=table_of(ServerHealthSerializer),
    )
    def get(self, request: Request) -> Response:
        rows = queries.server_health(tenant_id=caller_of(request).tenant_id)
        return self.envelope(rows, ServerHealthSerializer)


@csrf_exempt  # or a key that changes something is asked for a form's token here
def no_such_path(request: HttpRequest) -> JsonResponse:
    """404 in the API's own form."""
    detail = _missing(request.path_info)
    request_id = str(getattr(request, "request_id", ""))
    return JsonResponse({"detail": detail, "request_id": request_id}, status=404)


def _missing(path: str) -> str:
    """What is not there: a row of a list under this name, or the address itself."""
    list_path, _, name = path.rstrip("/").rpartition("/")
    try:
        found = resolve(list_path)
    except Resolver404:
        found = None
    # Of a row's address, which has keywords, what follows is no id.
    view = getattr(found.func, "cls", None) if found and not found.kwargs else None
    if not (view and issubclass(view, Listed) and view.queryset is not None):
        return "There is no such address. Those that there are stand at /api/docs/."
    filters = getattr(getattr(view, "filterset_class", None), "base_filters", {})
    noun, text = view.queryset.model._meta.verbose_name, Truncator(name).chars(60)
    hint = f" {list_path}?slug=… finds one by its slug." if "slug" in filters else ""
    return f"There is no {noun} with the id “{text}”: an id is a UUID.{hint}"
