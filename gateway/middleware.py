"""Middleware of the control plane."""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse

from registry.db.ids import uuid7


class RequestIDMiddleware:
    """Gives each request its id; the audit log, the program's log and the answer carry it."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        request.request_id = uuid7()  # type: ignore[attr-defined]
        response = self.get_response(request)
        response["X-Request-ID"] = str(request.request_id)  # type: ignore[attr-defined]
        return response
