"""Locks between the processes of one machine, freed by the kernel however their holder ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["lock_alone", "lock_shared", "locked", "open_lock"]


def open_lock(path: Path) -> IO[str]:
    """Open a lock file (made with mode 0600) for reading and writing; closing it unlocks.

    The file stays: removing it would let two processes hold two files of one name.
    """
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+")


def lock_shared(file: IO[str]) -> None:
    """Wait until nobody holds it alone, then hold it with others."""
    fcntl.flock(file, fcntl.LOCK_SH)


def lock_alone(file: IO[str]) -> bool:
    """Hold it alone if that is possible now; False when somebody else holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait until nobody else holds the lock, then hold it alone."""
    with open_lock(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
