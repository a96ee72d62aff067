"""Django's ORM from the event loop: a few threads, for the rare calls that change something."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TypeVar

from django.db import OperationalError, close_old_connections

from gateway.proxy.memory import DATABASE_SECONDS
from registry.db.tenancy import operator_transaction

__all__ = ["OrmThreads"]

T = TypeVar("T")


class OrmThreads:
    """Runs services off the loop; a healthy call never comes here."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="orm")

    async def run(self, work: Callable[[], T]) -> T:
        """The result of `work`, which may use the ORM.

        OperationalError after DATABASE_SECONDS: a server that is frozen, or gone without a word,
        answers nothing. What `work` did by then is undone when its thread comes to itself.
        """
        given_up = Event()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(DATABASE_SECONDS):
                return await loop.run_in_executor(self._threads, _with_connection, work, given_up)
        except TimeoutError:
            given_up.set()
            raise OperationalError(
                f"PostgreSQL did not answer within {DATABASE_SECONDS:g} s"
            ) from None

    def close(self) -> None:
        """Take no more work. A thread that waits for a silent server is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _with_connection(work: Callable[[], T], given_up: Event) -> T:
    """Run on this thread's connection; it is given back, or replaced if PostgreSQL went away.

    One transaction, which may look for keys and breakers of every tenant.
    """
    close_old_connections()
    try:
        with operator_transaction():
            result = work()
            if given_up.is_set():
                raise OperationalError("too late: nobody waits for this any more")
            return result
    finally:
        close_old_connections()
