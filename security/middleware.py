"""Middleware of the control plane."""

from __future__ import annotations

from django.conf import settings
from django.contrib.sessions.middleware import SessionMiddleware as DjangoSessionMiddleware
from django.http import HttpRequest

from security.addresses import client_address

__all__ = ["SessionMiddleware"]


class SessionMiddleware(DjangoSessionMiddleware):
    """Django's, which also says where the request comes from: to the session and to the views."""

    def process_request(self, request: HttpRequest) -> None:
        super().process_request(request)
        request.client_address = client_address(  # type: ignore[attr-defined]
            peer=request.META.get("REMOTE_ADDR"),
            forwarded_for=request.META.get("HTTP_X_FORWARDED_FOR", ""),
            trusted=settings.GATEWAY_TRUSTED_PROXIES,
        )
        request.session.ip_address = request.client_address  # type: ignore[attr-defined]
        agent = request.META.get("HTTP_USER_AGENT", "").replace("\0", "")
        request.session.user_agent = agent  # type: ignore[attr-defined]
