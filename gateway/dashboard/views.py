"""The pages of figures beside the first one, and what can be done on them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.contrib import admin, messages
from django.contrib.auth.decorators import permission_required
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.timezone import now
from django.views.decorators.http import require_GET, require_POST

from gateway.dashboard.database import database_tables
from monitoring.models import PerformanceAlert, StatementSnapshot
from monitoring.plans import NoPlanError, generic_plan
from monitoring.services import alert_acknowledge
from registry.admin_base import actor_of

__all__ = ["acknowledge", "database", "statement"]

may_look = permission_required("monitoring.view_requestlog", raise_exception=True)
may_acknowledge = permission_required("monitoring.change_performancealert", raise_exception=True)


@require_GET
@may_look
def database(request: HttpRequest) -> HttpResponse:
    """Sizes, indexes, statements and all that is measured."""
    return _page(request, "database", title="Database", tables=database_tables())


@require_GET
@may_look
def statement(request: HttpRequest, snapshot_id: UUID) -> HttpResponse:
    """One statement in full, with the plan that PostgreSQL makes for it."""
    snapshot = get_object_or_404(StatementSnapshot, pk=snapshot_id)
    try:
        plan, refusal = generic_plan(snapshot.query), ""
    except NoPlanError as error:
        plan, refusal = "", str(error)
    return _page(
        request, "statement", title="Statement", snapshot=snapshot, plan=plan, refusal=refusal
    )


@require_POST
@may_acknowledge
def acknowledge(request: HttpRequest, alert_id: UUID) -> HttpResponse:
    """Say that the operator looks after an alert; back to the first page."""
    alert = get_object_or_404(PerformanceAlert, pk=alert_id)
    actor = actor_of(request)
    if alert_acknowledge(actor=actor, alert=alert, user_id=actor.user_id, at=now()):
        messages.success(request, f"You look after {alert.name}: no reminders until it is over.")
    else:
        messages.info(request, f"{alert.name} does not fire any more, or somebody was faster.")
    return HttpResponseRedirect(reverse("admin:index"))


def _page(request: HttpRequest, name: str, **context: Any) -> HttpResponse:
    return TemplateResponse(
        request,
        f"gateway/dashboard/{name}.html",
        {**admin.site.each_context(request), **context},
    )
