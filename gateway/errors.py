"""Answers to requests that no view dealt with: JSON under /api/, pages elsewhere."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views import defaults

from registry.api.errors import Busy

__all__ = ["bad_request", "busy", "not_found", "server_error"]


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    if _is_api(request):
        return _json(request, 400, "The request cannot be read. Check its headers and address.")
    return defaults.bad_request(request, exception)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    if _is_api(request):
        return _json(request, 404, "There is nothing at this address; /api/docs/ lists them.")
    return defaults.page_not_found(request, exception)


def server_error(request: HttpRequest) -> HttpResponse:
    if _is_api(request):
        return _json(
            request, 500, "The gateway failed. Tell its operators the request_id; the log has it."
        )
    return defaults.server_error(request)


def busy(request: HttpRequest) -> HttpResponse:
    """The database cannot be reached: 503 with Retry-After, as the REST API's own."""
    answer: HttpResponse
    if _is_api(request):
        answer = _json(request, Busy.status_code, Busy.default_detail)
    else:
        page = defaults.ERROR_PAGE_TEMPLATE % {
            "title": f"Service Unavailable ({Busy.status_code})",
            "details": Busy.default_detail,
        }
        answer = HttpResponse(page, status=Busy.status_code)
    answer["Retry-After"] = str(Busy.wait)
    return answer


def _is_api(request: HttpRequest) -> bool:
    return request.path_info.startswith("/api/")


def _json(request: HttpRequest, status: int, detail: str) -> JsonResponse:
    """The shape of the REST API's own errors (registry.api.errors)."""
    body = {"detail": detail, "request_id": str(getattr(request, "request_id", ""))}
    return JsonResponse(body, status=status)
