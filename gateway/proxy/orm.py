"""Django's ORM from the event loop: a few threads, for the rare calls that change something."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from django.db import close_old_connections

from registry.db.tenancy import operator_transaction

__all__ = ["OrmThreads"]

T = TypeVar("T")


class OrmThreads:
    """Runs services off the loop; a healthy call never comes here."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="orm")

    async def run(self, work: Callable[[], T]) -> T:
        """The result of `work`, which may use the ORM."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, _with_connection, work)

    def close(self) -> None:
        self._threads.shutdown(wait=True)


def _with_connection(work: Callable[[], T]) -> T:
    """Run on this thread's connection; it is given back, or replaced if PostgreSQL went away.

    One transaction, which may look for keys and breakers of every tenant.
    """
    close_old_connections()
    try:
        with operator_transaction():
            return work()
    finally:
        close_old_connections()
