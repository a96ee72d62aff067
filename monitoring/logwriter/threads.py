"""The log writer for code that runs in threads: pages, the worker's jobs, and commands.

A process that goes on running has one writer, which lives in its event loop (`process_writer`);
threads leave their rows there. Without one, in a command that ends soon, the rows are written at
once, by a writer that lives for them alone: PostgreSQL has them then, or the spool.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime

from asgiref.sync import async_to_sync

from monitoring.logwriter.denials import Denial
from monitoring.logwriter.rows import MetricRow
from monitoring.logwriter.writer import LogWriter
from registry.db.pool import async_pool
from registry.metrics import Measured

__all__ = ["denial_leave", "metrics_write", "process_writer", "writer_share"]

POOL_WAIT_SECONDS = 3.0


class _Current:
    """The writer of this process, if it has one. The lock: no row comes after the last round."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._place: tuple[asyncio.AbstractEventLoop, LogWriter] | None = None

    def set(self, place: tuple[asyncio.AbstractEventLoop, LogWriter] | None) -> None:
        with self._lock:
            self._place = place

    def take(self, leave: Callable[[LogWriter], None]) -> bool:
        """Have something left with it; False where there is none."""
        with self._lock:
            if self._place is None:
                return False
            loop, writer = self._place
            loop.call_soon_threadsafe(leave, writer)
            return True


_current = _Current()


@asynccontextmanager
async def process_writer() -> AsyncIterator[None]:
    """Inside, one writer takes the rows that threads of this process leave.

    ImproperlyConfigured if the spool's folder is unusable.
    """
    async with _writer() as writer:
        writer_share(writer)
        try:
            yield
        finally:
            writer_share(None)


def writer_share(writer: LogWriter | None) -> None:
    """Let threads leave rows with the writer of this event loop; None: not any more."""
    _current.set((asyncio.get_running_loop(), writer) if writer else None)


def denial_leave(denial: Denial, *, at: datetime) -> bool:
    """Leave a refusal with the writer of this process; False where there is none."""
    return _current.take(lambda writer: writer.deny(denial, at=at))


def metrics_write(rows: Sequence[Measured]) -> None:
    """Have the figures of health checks in `server_metrics`, at most a second from now."""
    made = [
        MetricRow(
            timestamp=row.timestamp,
            server_id=row.server_id,
            response_time_ms=row.response_time_ms,
            error_rate=row.error_rate,
            custom_metrics=row.custom_metrics,
        )
        for row in rows
    ]
    if not _current.take(lambda writer: _put(writer, made)):
        async_to_sync(_write_now)(made)


async def _write_now(rows: Sequence[MetricRow]) -> None:
    async with _writer() as writer:
        _put(writer, rows)


@asynccontextmanager
async def _writer() -> AsyncIterator[LogWriter]:
    pool = async_pool(max_size=1, timeout=POOL_WAIT_SECONDS)
    await pool.open()
    try:
        writer = LogWriter(pool)
        writer.start()
        try:
            yield writer
        finally:
            await writer.stop()
    finally:
        await pool.close(timeout=1.0)


def _put(writer: LogWriter, rows: Sequence[MetricRow]) -> None:
    for row in rows:
        writer.put(row)
