"""How passwords are hashed beside calls.

A hash is dear on purpose. Without a bound whoever posts names and passwords to the admin takes the
cores that calls need.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import get_native_id
from typing import Any

from django.contrib.auth.hashers import PBKDF2PasswordHasher

__all__ = ["YieldingHasher"]

NICENESS = 10  # about a tenth of a core where somebody else wants it


class YieldingHasher(PBKDF2PasswordHasher):
    """Django's own hasher and hashes: one at a time, on a thread that yields to calls."""

    def encode(self, *arguments: Any, **options: Any) -> str:
        return _thread.submit(super().encode, *arguments, **options).result()


def _yield_to_others() -> None:
    # Linux keeps a niceness for each thread; elsewhere the bound of one at a time must do.
    with suppress(AttributeError, OSError):
        os.setpriority(os.PRIO_PROCESS, get_native_id(), NICENESS)


_thread = ThreadPoolExecutor(1, "passwords", initializer=_yield_to_others)
