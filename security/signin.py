"""The form that lets operators into the admin, and what guesses of passwords are held to."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from threading import BoundedSemaphore, Lock
from typing import Any

from django.core.exceptions import ValidationError
from unfold.forms import AuthenticationForm

from security.logins import login_deny
from security.rate_limit import Window
from security.refusals import Reason

__all__ = ["Guesses", "SignInForm"]

FAILURES, SECONDS = 20, 300.0
MAX_ADDRESSES = 10_000
# Each waits for its hash inside its request's transaction: beside a full load five seconds, in
# turns, where PostgreSQL ends a transaction that is idle for thirty.
AT_ONCE = 4
BUSY_SECONDS = 5.0


class Guesses:
    """Failed sign-ins by address, the least recent forgotten first. Not shared between processes.

    An IPv6 address counts with its /64, which one subscriber has to themselves. Where there is no
    address, as over a Unix socket, nobody is held up for what somebody else did.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, Window] = OrderedDict()
        self._lock = Lock()

    def take(self, address: str | None) -> float:
        """Count an attempt as failed and return 0; or, uncounted, the seconds to wait for one."""
        if address is None:
            return 0.0
        name, at = _network(address), self._clock()
        with self._lock:
            window = self._failures.setdefault(name, Window(SECONDS))
            self._failures.move_to_end(name)
            if len(self._failures) > MAX_ADDRESSES:
                self._failures.popitem(last=False)
            window.roll(at)
            wait = window.free_in(at, FAILURES)
            window.current += not wait
        return wait

    def has_failed(self, address: str | None) -> bool:
        """Whether one of the last minutes' failures was its own."""
        with self._lock:
            window = self._failures.get(_network(address)) if address else None
            return window is not None and window.used(self._clock()) > 0

    def give_back(self, address: str | None) -> None:
        """Uncount an attempt that did not fail."""
        with self._lock:
            window = self._failures.get(_network(address)) if address else None
            if window is not None and window.current:
                window.current -= 1


def _network(address: str) -> str:
    if ip_address(address).version == 4:
        return address
    return str(ip_network((address, 64), strict=False))


_guesses = Guesses()
# Who guesses holds no place of those who did not: each kind waits for its own.
_places = {has_failed: BoundedSemaphore(AT_ONCE // 2) for has_failed in (False, True)}


class SignInForm(AuthenticationForm):  # type: ignore[misc]
    """Name and password. Who has to wait is told for how long.

    `retry_after` is then in seconds, and nothing was looked up or hashed.
    """

    retry_after: float | None = None

    def clean(self) -> dict[str, Any]:
        address = getattr(self.request, "client_address", None)
        places = _places[_guesses.has_failed(address)]
        if wait := _guesses.take(address):
            raise self._refusal(wait, "Too many failed attempts to sign in from your address.")
        if not places.acquire(blocking=False):
            _guesses.give_back(address)
            raise self._refusal(BUSY_SECONDS, "Too many are signing in at this moment.")
        try:
            cleaned = dict(super().clean())
        finally:
            places.release()
        _guesses.give_back(address)
        return cleaned

    def _refusal(self, wait: float, why: str) -> ValidationError:
        self.retry_after = wait
        number, unit = (wait, "second") if wait < 60 else (wait / 60, "minute")
        message = f"{why} Try again in {math.ceil(number)} {unit}{'s' * (number > 1)}."
        login_deny(
            request=self.request,
            username=self.cleaned_data.get("username") or "",
            reason=Reason.RATE_LIMITED,
            message=message,
        )
        return ValidationError(message, code=Reason.RATE_LIMITED)
