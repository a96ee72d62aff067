"""The data plane of one process: what its exchanges share, and the tasks behind them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import psycopg
from django.conf import settings

from gateway.proxy.breaker import BreakerClient
from gateway.proxy.exchange import Exchange, Receive, Send
from gateway.proxy.gauges import Gauges
from gateway.proxy.orm import OrmThreads
from gateway.proxy.upstream import Upstreams
from gateway.proxy.usage import Usage
from monitoring.logwriter import LogWriter
from registry.db.ids import uuid7
from registry.db.pool import Pool, async_pool
from security.keys import ParsedKey
from security.lookup import FoundKey, find_key, find_plain_key
from security.rate_limit import RateLimiter
from security.services import plain_key_upgrade

__all__ = ["DataPlane"]

logger = logging.getLogger(__name__)

GAUGE_SECONDS = 3.0
USAGE_SECONDS = 10.0
POOL_SIZE = 8
POOL_WAIT_SECONDS = 3.0


class DataPlane:
    """An ASGI application for /mcp and /health; `start` and `stop` follow the process's life."""

    pool: Pool
    log: LogWriter

    def __init__(self) -> None:
        self.upstreams = Upstreams()
        self.limiter = RateLimiter()
        self.usage = Usage()
        self.gauges = Gauges()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        self._orm = OrmThreads()
        self.breaker = BreakerClient(self._orm)
        self.pool = async_pool(max_size=POOL_SIZE, timeout=POOL_WAIT_SECONDS)
        await self.pool.open()
        self.log = LogWriter(self.pool, gauges=self.upstreams.connections)
        self.log.start()
        self._tasks = [
            asyncio.create_task(_every(GAUGE_SECONDS, self._write_gauges), name="gauges"),
            asyncio.create_task(_every(USAGE_SECONDS, self._write_usage), name="usage"),
        ]

    async def stop(self) -> None:
        """Let nothing be lost: counters, log rows, then the connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for step in (
            self.log.stop,
            self._write_usage,
            self.breaker.write_healthy,
            partial(self.gauges.remove, self.pool),
            self.upstreams.close,
        ):
            try:
                await step()
            except Exception:
                logger.exception("a step of the shutdown failed")
        self._orm.close()
        await self.pool.close()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["path"].startswith("/health/"):
            await self._health(scope["path"], send)
        else:
            await Exchange(self, scope, receive, send).run()

    async def find_key(self, key: ParsedKey, *, slug: str) -> FoundKey | None:
        """A key's row by its prefix; a plain key of before is found too, and replaced."""
        async with self.pool.connection() as connection:
            found = await find_key(connection, prefix=key.prefix, slug=slug)
            if found is not None:
                return found
            plain = await find_plain_key(connection, key=key, slug=slug)
        if plain is None or not plain.is_active or not settings.GATEWAY_UPGRADE_PLAIN_KEYS:
            return plain
        await self._orm.run(partial(plain_key_upgrade, key=key))
        async with self.pool.connection() as connection:
            return await find_key(connection, prefix=key.prefix, slug=slug)

    async def _health(self, path: str, send: Send) -> None:
        status, body = 200, {"status": "ok"}
        if path == "/health/ready":
            try:
                async with asyncio.timeout(3), self.pool.connection(timeout=2) as connection:
                    await connection.execute("SELECT 1")
            except (psycopg.Error, TimeoutError):
                status, body = 503, {"status": "unavailable", "reason": "database"}
        elif path != "/health/live":
            status, body = 404, {"status": "not found"}
        headers = [
            (b"content-type", b"application/json"),
            (b"cache-control", b"no-store"),
            (b"x-request-id", str(uuid7()).encode()),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(body).encode()})

    async def _write_gauges(self) -> None:
        await self.upstreams.close_idle()
        await self.gauges.write(self.pool, self.upstreams.all())

    async def _write_usage(self) -> None:
        await self.usage.flush(self.pool)


async def _every(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    """Repeat for ever; a database that is away is met again at the next round."""
    while True:
        await asyncio.sleep(seconds)
        try:
            await work()
        except psycopg.Error as error:
            logger.warning("%s waits for the database: %s", work.__name__, error)
        except Exception:
            logger.exception("%s failed", work.__name__)
