"""PostgreSQL for asyncio code: psycopg's pool over the same settings that Django uses."""

from __future__ import annotations

from typing import Any

from django.db import connections
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

__all__ = ["Pool", "async_pool"]

Pool = AsyncConnectionPool[AsyncConnection[TupleRow]]


def async_pool(*, max_size: int, timeout: float, using: str = "default") -> Pool:
    """A closed pool of autocommit connections; `await pool.open()` starts it.

    `timeout` is the longest wait for a free connection, in seconds. Nothing is prepared on the
    server, so that a transaction pooler may stand between.
    """
    return AsyncConnectionPool(
        kwargs={**_parameters(using), "autocommit": True, "prepare_threshold": None},
        min_size=1,
        max_size=max_size,
        timeout=timeout,
        # A try is given up soon, because the next one comes with the next caller; tries that go
        # on wait twice as long each time, up to minutes after PostgreSQL is back.
        reconnect_timeout=5.0,
        open=False,
        name=f"mcp-gateway-{using}",
    )


def _parameters(using: str) -> dict[str, Any]:
    settings = connections[using].settings_dict
    named = {
        "dbname": settings["NAME"],
        "user": settings["USER"],
        "password": settings["PASSWORD"],
        "host": settings["HOST"],
        "port": settings["PORT"],
    }
    options = {name: value for name, value in settings["OPTIONS"].items() if name != "pool"}
    return options | {name: value for name, value in named.items() if value}
