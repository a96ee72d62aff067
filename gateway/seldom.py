"""What would fill the log if it were told each time: one line a minute for each cause."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

__all__ = [
    "Seldom",
    "lost_connection",
    "once_a_minute",
    "told_before",
    "wrong_host",
]

SECONDS = 60.0


class Seldom:
    """Asked before a line is written. `clock` gives monotonic seconds."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told: dict[str, float] = {}

    def is_due(self, cause: str) -> bool:
        """Whether nothing was told of this cause for a minute; causes are few and fixed."""
        at = self._clock()
        if at - self._told.get(cause, -SECONDS) < SECONDS:
            return False
        self._told[cause] = at
        return True

    def forget(self, cause: str) -> bool:
        """The cause is gone, and its next line is due at once. Whether there was one."""
        return self._told.pop(cause, None) is not None


def wrong_host(record: logging.LogRecord) -> bool:
    """A filter: a request for another host is one line without a traceback."""
    record.exc_info, record.levelno, record.levelname = None, logging.WARNING, "WARNING"
    if (request := getattr(record, "request", None)) is not None:
        request.is_told = True
    return True


def told_before(record: logging.LogRecord) -> bool:
    """A filter: Django tells of the answer to such a request once more."""
    return not hasattr(getattr(record, "request", None), "is_told")


def lost_connection(record: logging.LogRecord) -> bool:
    """A filter: that the queue lost its connection is told by the worker, in one line."""
    from procrastinate.exceptions import ConnectorException

    return not (record.exc_info and isinstance(record.exc_info[1], ConnectorException))


_libraries = Seldom()


def once_a_minute(record: logging.LogRecord) -> bool:
    """A filter: of what a library repeats for as long as something is away."""
    return _libraries.is_due(f"{record.name} {record.levelname}")
