"""How long others wait for locks, as pg_stat_activity tells it every few milliseconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import psycopg

__all__ = ["SAMPLE_SECONDS", "LockWatch", "watching"]

SAMPLE_SECONDS = 0.005  # shorter waits escape
_WAITING = """
SELECT pid FROM pg_stat_activity
 WHERE datname = current_database() AND application_name = %s
   AND wait_event_type = 'Lock' AND wait_event <> 'extend'  -- a file that grows is no lock of DDL
"""


class LockWatch:
    """The longest wait of the sessions of one application since `reset`."""

    def __init__(self) -> None:
        self._longest = 0.0
        self._since: dict[int, float] = {}
        self.failed: psycopg.Error | None = None

    def reset(self) -> None:
        self._longest = 0.0

    @property
    def longest_ms(self) -> float:
        if self.failed:
            raise self.failed  # a watch that saw nothing would say that nobody waited
        return self._longest * 1000

    def watch(self, connection: psycopg.Connection[Any], application: str, over: Event) -> None:
        try:
            while not over.wait(SAMPLE_SECONDS):
                rows = connection.execute(_WAITING, [application]).fetchall()
                self._note(time.monotonic(), {pid for (pid,) in rows})
        except psycopg.Error as error:
            self.failed = error

    def _note(self, at: float, waiting: set[int]) -> None:
        self._since = {pid: self._since.get(pid, at) for pid in waiting}
        waits = [at - first for first in self._since.values()]
        # Who was seen once waited for some of the time between two looks.
        self._longest = max([self._longest, *(wait + SAMPLE_SECONDS for wait in waits)])


@contextmanager
def watching(connection: psycopg.Connection[Any], *, application: str) -> Iterator[LockWatch]:
    """Watch from a thread of its own, on a connection that it closes."""
    watch, over = LockWatch(), Event()
    thread = Thread(target=watch.watch, args=(connection, application, over))
    thread.start()
    try:
        yield watch
    finally:
        over.set()
        thread.join()
        connection.close()
