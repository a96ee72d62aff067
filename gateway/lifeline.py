"""Children of a process that ends are ended too, even when it was killed and could not ask."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from typing import NoReturn

__all__ = ["PARENT_VARIABLE", "die_with", "die_with_named_parent", "leave", "leave_within"]

PARENT_VARIABLE = "GATEWAY_PARENT_PID"
GRACE_SECONDS = 15


def die_with_named_parent() -> None:
    """Obey GATEWAY_PARENT_PID, which who starts a child sets; not passed on to grandchildren."""
    if parent := os.environ.pop(PARENT_VARIABLE, ""):
        die_with(int(parent))


def die_with(parent: int) -> None:
    """Send this process SIGTERM once its parent has ended, and end it by force if it stays.

    Linux could send the signal by itself (prctl), but does so when the parent's first thread
    ends, while others may still hold its files: then the lock of a dying parent would keep its
    children from seeing that they are the last to use the embedded database.
    """
    threading.Thread(target=_watch, args=(parent,), name="lifeline", daemon=True).start()


def leave(status: int) -> NoReturn:
    """End this process at once, whatever its threads wait for: Python would wait for them."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def leave_within(seconds: float) -> None:
    """Have this process end by then, with status 0 if it must be made to."""

    def wait() -> None:
        time.sleep(seconds)
        leave(0)

    threading.Thread(target=wait, name="leave", daemon=True).start()


def _watch(parent: int) -> None:
    _wait_for_end(parent)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os._exit(1)


def _wait_for_end(parent: int) -> None:
    """Return when the parent is gone with all its threads; at once where the system tells."""
    with contextlib.suppress(AttributeError, OSError):  # no such call here, or it is gone already
        handle = os.pidfd_open(parent)
        told = select.poll()
        told.register(handle, select.POLLIN)
        if os.getppid() == parent:
            told.poll()
        os.close(handle)
    while os.getppid() == parent:
        time.sleep(0.5)
