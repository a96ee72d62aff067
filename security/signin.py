"""The form that lets operators into the admin, and what guesses of passwords are held to."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from threading import Lock
from typing import Any

from django.core.exceptions import ValidationError
from unfold.forms import AuthenticationForm

from security.logins import login_deny
from security.rate_limit import Window
from security.refusals import Reason

__all__ = ["Guesses", "SignInForm"]

FAILURES, SECONDS = 20, 300.0
MAX_ADDRESSES = 10_000


class Guesses:
    """Failed sign-ins by address, the least recent forgotten first. Not shared between processes.

    An IPv6 address counts with its /64, which one subscriber has to themselves.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, Window] = OrderedDict()
        self._lock = Lock()

    def wait(self, address: str | None) -> float:
        """Seconds until this address may try again; 0 when it may now."""
        with self._lock:
            window = self._failures.get(_network(address))
            if window is None:
                return 0.0
            at = self._clock()
            window.roll(at)
            return window.free_in(at, FAILURES)

    def note(self, address: str | None) -> None:
        """Count one failure."""
        name = _network(address)
        with self._lock:
            window = self._failures.setdefault(name, Window(SECONDS))
            self._failures.move_to_end(name)
            if len(self._failures) > MAX_ADDRESSES:
                self._failures.popitem(last=False)
            window.roll(self._clock())
            window.current += 1


def _network(address: str | None) -> str:
    if not address or ip_address(address).version == 4:
        return address or ""
    return str(ip_network((address, 64), strict=False))


_guesses = Guesses()


class SignInForm(AuthenticationForm):  # type: ignore[misc]
    """Name and password. Where too many were wrong the form says how long to wait.

    `retry_after` is then in seconds, and nothing was looked up or hashed.
    """

    retry_after: float | None = None

    def clean(self) -> dict[str, Any]:
        address = getattr(self.request, "client_address", None)
        if wait := _guesses.wait(address):
            raise self._too_many(wait)
        try:
            return dict(super().clean())
        except ValidationError:
            _guesses.note(address)
            raise

    def _too_many(self, wait: float) -> ValidationError:
        self.retry_after = wait
        minutes = math.ceil(wait / 60)
        message = (
            "Too many failed attempts to sign in from your address. "
            f"Try again in {minutes} minute{'s' * (minutes > 1)}."
        )
        login_deny(
            request=self.request,
            username=self.cleaned_data.get("username") or "",
            reason=Reason.RATE_LIMITED,
            message=message,
        )
        return ValidationError(message, code=Reason.RATE_LIMITED)
