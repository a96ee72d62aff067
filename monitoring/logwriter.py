"""The one writer of the request log: rows wait in memory and are copied in batches.

A call only appends to a list. A task of the same event loop copies what has gathered, at most
half a second old, so that a call never waits for its own log row.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import deque
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql

from registry.db.ids import uuid7
from registry.db.pool import Pool

__all__ = ["LogWriter", "RequestRow", "storable"]

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 0.5
BATCH_ROWS = 2000
MAX_WAITING = 100_000
STOP_SECONDS = 5.0


@dataclass(slots=True, kw_only=True)
class RequestRow:
    """One row of `request_logs`, field by column; durations in milliseconds."""

    id: UUID = field(default_factory=uuid7)
    request_time: datetime
    request_id: UUID
    tenant_id: UUID | None = None
    user_id: UUID | None = None
    api_key_id: UUID | None = None
    ip_address: str | None = None
    method: str
    path: str
    rpc_method: str = ""
    tool_name: str = ""
    target_server_id: UUID | None = None
    status_code: int = 0
    duration_ms: float = 0.0
    upstream_ms: float | None = None
    queue_ms: float | None = None
    request_size_bytes: int = 0
    response_size_bytes: int = 0
    error_type: str = ""
    error_message: str = ""
    protocol_version: str = ""
    request_metadata: dict[str, Any] = field(default_factory=dict)

    def values(self) -> list[Any]:
        """The row as COPY takes it: texts cut to their columns, without NUL characters."""
        return [_value(name, getattr(self, name)) for name in _COLUMNS]


_COLUMNS = tuple(f.name for f in fields(RequestRow))
_WIDTHS = {
    "method": 16,
    "path": 512,
    "rpc_method": 255,
    "tool_name": 255,
    "error_type": 63,
    "error_message": 2000,
    "protocol_version": 32,
}
_COPY = sql.SQL("COPY request_logs ({}) FROM STDIN").format(
    sql.SQL(", ").join(map(sql.Identifier, _COLUMNS))
)


def _value(name: str, value: Any) -> Any:
    if name in _WIDTHS:
        return storable(value)[: _WIDTHS[name]]
    if name == "request_metadata":
        return storable(json.dumps(_storable_tree(value), ensure_ascii=False))
    return value


def _storable_tree(value: Any) -> Any:
    """The same for the texts inside: an escaped NUL is no JSON that PostgreSQL stores."""
    if isinstance(value, dict):
        return {storable(key): _storable_tree(item) for key, item in value.items()}
    return storable(value) if isinstance(value, str) else value


def storable(text: str) -> str:
    """A text as PostgreSQL can store it: no NUL, no lone surrogate."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


class LogWriter:
    """Gathers rows and copies them; `start` and `stop` belong to the process's life."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._waiting: deque[RequestRow] = deque()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self.dropped = 0

    def put(self, row: RequestRow) -> None:
        """Take a row. Past the bound the oldest is dropped and counted, never silently."""
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            self.dropped += 1
        self._waiting.append(row)

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="log-writer")

    async def stop(self) -> None:
        """Write what waits, for five seconds at most; what is lost then is said."""
        self._stopping = True
        self._wake.set()
        if self._task is not None:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._task, STOP_SECONDS)
        lost = len(self._waiting) + self.dropped
        if lost:
            logger.error("request log rows lost: %d", lost)

    async def _run(self) -> None:
        pause = FLUSH_SECONDS
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), pause)
            try:
                await self._flush()
                pause = FLUSH_SECONDS
            except psycopg.OperationalError as error:
                # PostgreSQL is away: keep the rows, ask less and less often.
                pause = min(5.0, pause * 2)
                logger.warning("request log waits (%d rows): %s", len(self._waiting), error)
            except Exception:
                # Whatever it is, the task must live: without it rows gather until they are lost.
                pause = min(5.0, pause * 2)
                logger.exception("request log waits (%d rows)", len(self._waiting))
            if self._stopping and (not self._waiting or pause > FLUSH_SECONDS):
                return

    async def _flush(self) -> None:
        while self._waiting:
            size = min(BATCH_ROWS, len(self._waiting))
            await self._write([self._waiting.popleft() for _ in range(size)])

    async def _write(self, batch: list[RequestRow]) -> None:
        """Copy a batch; halve it where PostgreSQL refuses a row, until that row stands alone.

        Rows that could not be tried go back to the front of those that wait.
        """
        pieces = [batch]
        while pieces:
            piece = pieces.pop()
            try:
                await self._copy(piece)
            except (psycopg.DataError, psycopg.IntegrityError) as error:
                half = len(piece) // 2
                if half:
                    pieces += [piece[half:], piece[:half]]
                elif not isinstance(error, psycopg.errors.UniqueViolation):
                    self.dropped += 1
                    logger.error("request log row refused: %s", error)  # noqa: TRY400  (one line)
                # A row that is there already was written by a try whose answer got lost.
            except BaseException:
                untried = [row for left in (*pieces, piece) for row in left]
                self._waiting.extendleft(reversed(untried))
                raise

    async def _copy(self, batch: list[RequestRow]) -> None:
        async with self._pool.connection() as connection, connection.transaction():
            # The last moments of a request log may be lost in a crash; a call is not held up.
            await connection.execute("SET LOCAL synchronous_commit = off")
            async with connection.cursor() as cursor, cursor.copy(_COPY) as copy:
                for row in batch:
                    await copy.write_row(row.values())
