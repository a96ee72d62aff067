"""Answers to requests that no view dealt with: JSON under /api/, pages elsewhere."""

from __future__ import annotations

import math

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template.loader import render_to_string

from registry.api.errors import Busy

__all__ = ["bad_request", "busy", "not_found", "server_error", "too_many"]


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:  # noqa: ARG001
    text = "The request cannot be read. Check its headers and address."
    return _answer(request, 400, text, title="This request cannot be read")


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:  # noqa: ARG001
    if _is_api(request):
        return _json(request, 404, "There is nothing at this address; /api/docs/ lists them.")
    text = "It may have been removed, or the address has a typing error."
    return _page(request, 404, text, title="There is nothing at this address")


def server_error(request: HttpRequest) -> HttpResponse:
    text = "The gateway failed. Tell its operators the request_id; the log has it."
    return _answer(request, 500, text, title="Something went wrong")


def busy(request: HttpRequest) -> HttpResponse:
    """The database cannot be reached: 503 with Retry-After, as the REST API's own."""
    text = Busy.default_detail
    answer = _answer(request, Busy.status_code, text, title="The database cannot be reached")
    answer["Retry-After"] = str(Busy.wait)
    return answer


def too_many(request: HttpRequest, text: str, *, wait: float) -> HttpResponse:
    """429 with Retry-After, `wait` being in seconds. Short: floods are answered with it."""
    answer = _answer(request, 429, text, title="Not now")
    answer["Retry-After"] = str(math.ceil(wait))
    return answer


def _is_api(request: HttpRequest) -> bool:
    return request.path_info.startswith("/api/")


def _answer(request: HttpRequest, status: int, text: str, *, title: str) -> HttpResponse:
    if _is_api(request):
        return _json(request, status, text)
    return _page(request, status, text, title=title)


def _json(request: HttpRequest, status: int, detail: str) -> JsonResponse:
    """The shape of the REST API's own errors (registry.api.errors)."""
    body = {"detail": detail, "request_id": str(getattr(request, "request_id", ""))}
    return JsonResponse(body, status=status)


def _page(request: HttpRequest, status: int, text: str, *, title: str) -> HttpResponse:
    # Rendered without the request: its context processors would ask the database who is there.
    shown = {"title": title, "text": text, "request_id": getattr(request, "request_id", "")}
    return HttpResponse(render_to_string("gateway/error.html", shown), status=status)
