"""PostgreSQL for asyncio code: psycopg's pool over the same settings that Django uses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from django.conf import settings
from django.db import connections
from psycopg import AsyncConnection, Error
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from registry.db.tenancy import begin_as_operator

__all__ = ["Pool", "async_direct_connection", "async_pool"]

RECONNECT_SECONDS = 5.0
# For a statement that nobody waits for any more to be called off.
CANCEL_SECONDS = 1.0

Pool = AsyncConnectionPool[AsyncConnection[TupleRow]]


class _Connection(AsyncConnection[TupleRow]):
    """One whose callers may give up: psycopg would ask a silent server for ten seconds more."""

    async def cancel_safe(self, *, timeout: float = CANCEL_SECONDS) -> None:  # noqa: ASYNC109
        try:
            await super().cancel_safe(timeout=min(timeout, CANCEL_SECONDS))
        except Error:
            self.pgconn.finish()  # or it would be waited for until the statement ends
            raise


class _OperatorPool(AsyncConnectionPool[AsyncConnection[TupleRow]]):
    """The one place where the data plane's statements get their role."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._taken: set[AsyncConnection[TupleRow]] = set()
        super().__init__(*arguments, **options)

    async def close(self, timeout: float = 5.0) -> None:  # noqa: ASYNC109  (psycopg's own)
        """Close those in use as well: who waits for a silent server would wait for ever."""
        await super().close(timeout)
        for taken in tuple(self._taken):
            await taken.close()

    @asynccontextmanager
    async def connection(
        self,
        timeout: float | None = None,  # noqa: ASYNC109  (psycopg's own parameter)
    ) -> AsyncIterator[AsyncConnection[TupleRow]]:
        async with super().connection(timeout) as taken:
            self._taken.add(taken)
            try:
                await begin_as_operator(taken)
                yield taken
            finally:
                self._taken.discard(taken)


def async_pool(*, max_size: int, timeout: float, using: str = "default") -> Pool:
    """A closed pool for work across tenants; `await pool.open()` starts it.

    What happens inside one `pool.connection()` is one transaction as the operator's role.

    `timeout` is the longest wait for a free connection, in seconds. Nothing is prepared on the
    server, so that a transaction pooler may stand between.
    """
    return _OperatorPool(
        connection_class=_Connection,
        kwargs={
            **_parameters(connections[using].settings_dict),
            "autocommit": True,
            "prepare_threshold": None,
        },
        min_size=1,
        max_size=max_size,
        timeout=timeout,
        # An attempt pauses twice as long each time: given up soon, the next caller begins anew,
        # and not minutes after PostgreSQL is back.
        reconnect_timeout=RECONNECT_SECONDS,
        open=False,
        name=f"mcp-gateway-{using}",
    )


async def async_direct_connection(*, application_name: str) -> AsyncConnection[TupleRow]:
    """An autocommit connection with a session of its own, as LISTEN needs: past a pooler."""
    database = connections["default"].settings_dict | (settings.DATABASE_DIRECT or {})
    parameters = _parameters(database) | {"application_name": application_name}
    return await _Connection.connect(**parameters, autocommit=True, prepare_threshold=None)


def _parameters(database: dict[str, Any]) -> dict[str, Any]:
    named = {
        "dbname": database["NAME"],
        "user": database["USER"],
        "password": database["PASSWORD"],
        "host": database["HOST"],
        "port": database["PORT"],
    }
    options = {name: value for name, value in database["OPTIONS"].items() if name != "pool"}
    return options | {name: value for name, value in named.items() if value}
