"""Breakers, pools, queues and background jobs, for operators."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.contrib.admin import AdminSite
from django.db.models import Case, F, FloatField, QuerySet, When
from django.db.models.functions import Cast
from django.http import HttpRequest
from django.utils.timezone import now
from procrastinate.contrib.django.admin import ProcrastinateEventInline, ProcrastinateJobAdmin
from procrastinate.contrib.django.models import ProcrastinateJob
from unfold.contrib.filters.admin import (
    AutocompleteSelectFilter,
    BooleanRadioFilter,
    ChoicesDropdownFilter,
)

from gateway.models import BreakerState, CircuitBreaker, ConnectionPool, RequestQueue
from gateway.services import breaker_force
from registry.admin_base import (
    OperatorAdmin,
    OwnedRowsMixin,
    ServerRowsMixin,
    actor_of,
    display,
    duration,
    percentage,
    register_last,
)
from registry.admin_filters import OneOfFilter


class PerServerAdmin(OwnedRowsMixin, ServerRowsMixin, OperatorAdmin):
    """Rows that a server gets when it is registered: they are tuned, not added or removed."""

    search_fields = ("server__slug",)
    search_help_text = "The server's slug"


@admin.register(CircuitBreaker)
class CircuitBreakerAdmin(PerServerAdmin):
    list_display = (
        "server_link",
        "part",
        "state_label",
        "failures",
        "timeout",
        "last_state_change",
        "last_failure_time",
        "totals",
    )
    list_display_links = ("part",)
    list_filter = (
        ("state", ChoicesDropdownFilter),
        ("server", AutocompleteSelectFilter),
        ("server__tenant", AutocompleteSelectFilter),
    )
    ordering = ("server__slug", "service_name")
    actions = ("close", "open")
    readonly_fields = (
        "server_link",
        "part",
        "state_label",
        "failures",
        "success_count",
        "last_failure_time",
        "last_success_time",
        "last_state_change",
        "total_requests",
        "total_failures",
        "total_timeouts",
    )
    fieldsets = (
        (
            None,
            {
                "fields": (("server_link", "part"), ("state_label", "failures", "success_count")),
                "description": "Open and close breakers with the actions of the list.",
            },
        ),
        (
            "Thresholds",
            {"fields": (("failure_threshold", "success_threshold", "timeout_ms"),)},
        ),
        (
            "History",
            {
                "fields": (
                    ("last_state_change", "last_failure_time", "last_success_time"),
                    ("total_requests", "total_failures", "total_timeouts"),
                )
            },
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[CircuitBreaker]:
        load = Cast("failure_count", FloatField()) / F("failure_threshold")
        rows: QuerySet[CircuitBreaker] = super().get_queryset(request)
        return rows.annotate(_load=load)

    @display(description="part", ordering="service_name")
    def part(self, breaker: CircuitBreaker) -> str:
        return breaker.service_name or "whole server"

    @display(
        description="state",
        ordering="state",
        label={
            BreakerState.CLOSED: "success",
            BreakerState.OPEN: "danger",
            BreakerState.HALF_OPEN: "warning",
        },
    )
    def state_label(self, breaker: CircuitBreaker) -> str:
        return breaker.get_state_display()

    @display(description="failures in a row", ordering="_load")
    def failures(self, breaker: CircuitBreaker) -> str:
        return f"{breaker.failure_count} of {breaker.failure_threshold}"

    @display(description="stays open", ordering="timeout_ms")
    def timeout(self, breaker: CircuitBreaker) -> str:
        return duration(breaker.timeout_ms)

    @display(description="failed of all calls", ordering="total_failures")
    def totals(self, breaker: CircuitBreaker) -> str:
        return f"{breaker.total_failures:,} of {breaker.total_requests:,}"

    @admin.action(description="Close the selected breakers", permissions=["change"])
    def close(self, request: HttpRequest, queryset: QuerySet[CircuitBreaker]) -> None:
        self._force(request, queryset, BreakerState.CLOSED, "closed")

    @admin.action(description="Open the selected breakers", permissions=["change"])
    def open(self, request: HttpRequest, queryset: QuerySet[CircuitBreaker]) -> None:
        self._force(request, queryset, BreakerState.OPEN, "open")

    def _force(
        self, request: HttpRequest, queryset: QuerySet[CircuitBreaker], state: str, word: str
    ) -> None:
        actor, at = actor_of(request), now()
        self.apply(
            request,
            queryset,
            lambda breaker: breaker_force(actor=actor, breaker_id=breaker.pk, state=state, at=at),
            done=f"breaker(s) now {word}",
            idle=f"{word} already",
        )


class KindFilter(OneOfFilter):
    """An operator's settings carry no name; a process's gauges do."""

    title = "kind"
    parameter_name = "kind"
    name_field = ""

    @classmethod
    def over(cls, field: str) -> type[KindFilter]:
        return type("KindFilter", (cls,), {"name_field": field})

    def lookups(self, *_: Any) -> list[tuple[str, str]]:
        return [("settings", "Settings"), ("gauges", "Gauges of running processes")]

    def chosen(self, rows: QuerySet[Any], choice: str) -> QuerySet[Any]:
        unnamed = {self.name_field: ""}
        return rows.filter(**unnamed) if choice == "settings" else rows.exclude(**unnamed)


@admin.register(ConnectionPool)
class ConnectionPoolAdmin(PerServerAdmin):
    list_display = (
        "server_link",
        "process",
        "used",
        "pending_requests",
        "is_healthy",
        "connecting",
        "updated_at",
    )
    list_display_links = ("process",)
    list_filter = (
        KindFilter.over("pool_name"),
        ("server", AutocompleteSelectFilter),
        ("is_healthy", BooleanRadioFilter),
    )
    ordering = ("server__slug", "pool_name")
    readonly_fields = (
        "server_link",
        "process",
        "transport_type",
        "used",
        "idle_connections",
        "pending_requests",
        "is_healthy",
        "last_health_check",
        "total_connections_created",
        "total_connections_closed",
        "connection_errors",
        "connecting",
    )
    fieldsets = (
        (None, {"fields": (("server_link", "process", "transport_type"),)}),
        (
            "Settings",
            {"fields": (("min_size", "max_size"), ("timeout_ms", "idle_timeout_ms"))},
        ),
        (
            "Gauges",
            {
                "fields": (
                    ("used", "idle_connections", "pending_requests"),
                    ("is_healthy", "last_health_check"),
                    ("total_connections_created", "total_connections_closed"),
                    ("connection_errors", "connecting"),
                )
            },
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[ConnectionPool]:
        share = Cast("active_connections", FloatField()) / F("max_size")
        rows: QuerySet[ConnectionPool] = super().get_queryset(request)
        return rows.annotate(_share=share)

    def has_change_permission(
        self, request: HttpRequest, obj: ConnectionPool | None = None
    ) -> bool:
        is_gauge = obj is not None and obj.pool_name != ""
        return not is_gauge and bool(super().has_change_permission(request, obj))

    @display(description="process", ordering="pool_name")
    def process(self, pool: ConnectionPool) -> str:
        return pool.pool_name or "settings"

    @display(description="connections in use", ordering="_share")
    def used(self, pool: ConnectionPool) -> str:
        share: float = pool._share  # type: ignore[attr-defined]
        return f"{pool.active_connections} of {pool.max_size} ({percentage(share)})"

    @display(description="time to connect", ordering="avg_connection_time_ms")
    def connecting(self, pool: ConnectionPool) -> str:
        return duration(pool.avg_connection_time_ms)


@admin.register(RequestQueue)
class RequestQueueAdmin(PerServerAdmin):
    list_display = (
        "server_link",
        "process",
        "waiting",
        "processing_count",
        "is_accepting_requests",
        "waited",
        "updated_at",
    )
    list_display_links = ("process",)
    list_filter = (
        KindFilter.over("queue_name"),
        ("server", AutocompleteSelectFilter),
        ("is_accepting_requests", BooleanRadioFilter),
    )
    ordering = ("server__slug", "queue_name")
    readonly_fields = (
        "server_link",
        "process",
        "waiting",
        "processing_count",
        "last_processed",
        "total_enqueued",
        "total_processed",
        "total_timeouts",
        "total_errors",
        "waited",
        "served",
    )
    fieldsets = (
        (None, {"fields": (("server_link", "process"),)}),
        (
            "Settings",
            {
                "fields": (
                    ("max_size", "is_accepting_requests"),
                    ("processing_timeout_ms", "priority_levels"),
                )
            },
        ),
        (
            "Gauges",
            {
                "fields": (
                    ("waiting", "processing_count", "last_processed"),
                    ("total_enqueued", "total_processed", "total_timeouts", "total_errors"),
                    ("waited", "served"),
                )
            },
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[RequestQueue]:
        # A queue of size 0 is allowed: nobody waits, so nothing is full.
        share = Cast("current_size", FloatField()) / F("max_size")
        rows: QuerySet[RequestQueue] = super().get_queryset(request)
        return rows.annotate(_share=Case(When(max_size__gt=0, then=share), default=None))

    def has_change_permission(self, request: HttpRequest, obj: RequestQueue | None = None) -> bool:
        is_gauge = obj is not None and obj.queue_name != ""
        return not is_gauge and bool(super().has_change_permission(request, obj))

    @display(description="process", ordering="queue_name")
    def process(self, queue: RequestQueue) -> str:
        return queue.queue_name or "settings"

    @display(description="waiting", ordering="_share")
    def waiting(self, queue: RequestQueue) -> str:
        return f"{queue.current_size} of {queue.max_size}"

    @display(description="average wait", ordering="avg_wait_time_ms")
    def waited(self, queue: RequestQueue) -> str:
        return duration(queue.avg_wait_time_ms)

    @display(description="average work", ordering="avg_processing_time_ms")
    def served(self, queue: RequestQueue) -> str:
        return duration(queue.avg_processing_time_ms)


class JobEventInline(ProcrastinateEventInline):
    verbose_name, verbose_name_plural = "event", "events"


class JobAdmin(OperatorAdmin, ProcrastinateJobAdmin):  # type: ignore[misc]
    """The job queue's own page, in this admin's looks and words."""

    list_filter = ["status", "queue_name", "task_name"]
    inlines = [JobEventInline]

    def __init__(self, model: type[ProcrastinateJob], admin_site: AdminSite) -> None:
        super().__init__(model, admin_site)
        # No migration follows: those are made of what the library's class was written with.
        self.opts.verbose_name, self.opts.verbose_name_plural = "background job", "background jobs"


register_last(ProcrastinateJob, JobAdmin)
