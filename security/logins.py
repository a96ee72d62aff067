"""Logins in the audit log: who came in, who left, and who was refused.

Connected by the app when Django is ready. Requests that came through no middleware, such as those
that tests make up, leave nothing.
"""

from __future__ import annotations

from typing import Any, TypeGuard

from django.contrib.auth.signals import user_logged_in, user_logged_out, user_login_failed
from django.http import HttpRequest
from django.utils.timezone import now

from monitoring.audit import audit_write
from monitoring.logwriter import Denial
from monitoring.logwriter.denials import LOGIN
from monitoring.logwriter.threads import denial_leave
from registry.audit import Actor
from security.models import User
from security.refusals import Reason

__all__ = ["login_deny", "logins_connect"]

LONGEST_NAME = 150
REFUSED = "Name and password do not fit, or the account is not active."


def logins_connect() -> None:
    """Listen to Django's own signals."""
    user_logged_in.connect(_came_in, dispatch_uid="session.login")
    user_logged_out.connect(_left, dispatch_uid="session.logout")
    user_login_failed.connect(_was_refused, dispatch_uid="session.deny")


def _came_in(*, request: HttpRequest | None, user: User, **_: Any) -> None:
    _note("session.login", request, user)


def _left(*, request: HttpRequest | None, user: User | None, **_: Any) -> None:
    if user is not None:  # else nobody was signed in
        _note("session.logout", request, user)


def _note(action: str, request: HttpRequest | None, user: User) -> None:
    if _came_through(request):
        audit_write(actor=_actor(request, user), action=action, resource=user)


def _was_refused(
    *, credentials: dict[str, Any], request: HttpRequest | None = None, **_: Any
) -> None:
    login_deny(
        request=request,
        username=str(credentials.get("username") or ""),
        reason=Reason.INVALID_CREDENTIALS,
        message=REFUSED,
    )


def login_deny(*, request: HttpRequest | None, username: str, reason: Reason, message: str) -> None:
    """A guess leaves a row whether or not the name is somebody's; many of a minute leave one."""
    if not _came_through(request):
        return
    actor = _actor(request, None)
    denial = Denial(
        action=LOGIN,
        reason=reason,
        message=message,
        username=username.replace("\0", "")[:LONGEST_NAME],
        request_id=actor.request_id,
        ip_address=actor.ip_address,
        user_agent=actor.user_agent[:512],
    )
    if not denial_leave(denial, at=now()):
        details = {"reason": denial.reason, "username": denial.username, "count": 1}
        audit_write(
            actor=actor, action=LOGIN, details=details, success=False, error_message=message
        )


def _came_through(request: HttpRequest | None) -> TypeGuard[HttpRequest]:
    """Whether the middleware has seen it."""
    return request is not None and hasattr(request, "client_address")


def _actor(request: HttpRequest, user: User | None) -> Actor:
    return Actor(
        service_name="admin",
        user_id=user.pk if user is not None else None,
        request_id=getattr(request, "request_id", None),
        ip_address=getattr(request, "client_address", None),
        user_agent=request.headers.get("user-agent", "").replace("\0", ""),
    )
