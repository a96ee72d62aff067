"""The pages of figures beside the first one."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.contrib import admin
from django.contrib.auth.decorators import permission_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.views.decorators.http import require_GET

from gateway.dashboard.database import database_tables
from monitoring.models import StatementSnapshot
from monitoring.plans import NoPlanError, generic_plan

__all__ = ["database", "statement"]

may_look = permission_required("monitoring.view_requestlog", raise_exception=True)


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


def _page(request: HttpRequest, name: str, **context: Any) -> HttpResponse:
    return TemplateResponse(
        request,
        f"gateway/dashboard/{name}.html",
        {**admin.site.each_context(request), **context},
    )
