"""The data plane of one process: what its exchanges share, and the tasks behind them.

A call is decided by what is remembered here of keys and routes; a call whose key and route are in
memory runs no SQL.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg
from django.conf import settings
from django.db import DatabaseError
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from gateway.proxy.breaker import BreakerClient
from gateway.proxy.contact import Contact
from gateway.proxy.exchange import Exchange, Receive, Send
from gateway.proxy.gauges import Gauges
from gateway.proxy.memory import SCHEMA_ERRORS, Memory
from gateway.proxy.metrics import MetricsPage
from gateway.proxy.orm import OrmThreads
from gateway.proxy.route import Route, find_route
from gateway.proxy.tracing import tracing_from_environment
from gateway.proxy.upstream import Upstreams
from gateway.proxy.usage import Usage
from gateway.proxy.watch import CHANNEL, Watch
from gateway.seldom import Seldom
from monitoring.logwriter import LogWriter
from monitoring.logwriter.threads import writer_share
from registry.db.ids import uuid7
from registry.db.pool import Pool, async_pool
from registry.sentences import first_line
from security.authentication import proves
from security.keys import ParsedKey, plain_hash
from security.lookup import FoundKey, find_key, find_plain_key
from security.rate_limit import RateLimiter
from security.services import plain_key_upgrade

if TYPE_CHECKING:
    from gateway.proxy.spans import Tracing

__all__ = ["DataPlane"]

logger = logging.getLogger(__name__)

GAUGE_SECONDS = 3.0
FIGURES_SECONDS = 3.0
USAGE_SECONDS = 10.0
# Tools are counted in columns that indexes cover, so each write costs index entries.
TOOL_USAGE_SECONDS = 60.0
POOL_SIZE = 8
POOL_WAIT_SECONDS = 3.0
PROBE_SECONDS = 1.0
# Of the shutdown; together less than the server gives its workers (gateway.server.STOP_SECONDS).
CALL_OFF_SECONDS, STOP_SECONDS = 1.5, 6.5
# About 3 kB an entry. A key counts once for each server that it calls; beyond the bound those
# that were used least recently are read again when they come.
REMEMBERED_KEYS = 10_000
REMEMBERED_ROUTES = 10_000
# The tables whose triggers send notices, with the columns that these name rows by. Any role of the
# database may send on the channel, so nothing else is believed.
TOLD_OF = {
    "api_keys": {"id"},
    "circuit_breakers": {"server_id"},
    "connection_pools": {"server_id"},
    "enhanced_api_keys": {"id"},
    "mcp_servers": {"id", "slug"},
    "request_queues": {"server_id"},
    "server_access_control": {"server_id"},
    "server_tools": {"server_id"},
    "tenants": {"id"},
    "users": {"id"},
}


class DataPlane:
    """An ASGI application for /mcp, /health and /metrics.

    `start` and `stop` follow the process's life.
    """

    pool: Pool
    log: LogWriter

    def __init__(self, contact: Contact | None = None, tracing: Tracing | None = None) -> None:
        self.contact = contact or Contact()
        self.tracing = tracing  # of the environment, unless it is given
        # By the SHA-256 of the whole key, so that to be found is to be proved; and by the slug.
        self.keys: Memory[tuple[str, str], FoundKey] = Memory(
            self.contact, size=REMEMBERED_KEYS, labels=lambda found: found.labels
        )
        self.routes: Memory[UUID, Route] = Memory(
            self.contact, size=REMEMBERED_ROUTES, labels=lambda route: route.labels
        )
        self.upstreams = Upstreams()
        self.limiter = RateLimiter()
        self.usage = Usage()
        self.gauges = Gauges()
        self.began = time.time()
        self.in_progress = self.ended = 0  # exchanges on /mcp
        self._tasks: list[asyncio.Task[None]] = []
        self._was_misled = False
        self.seldom = Seldom()
        self._schema_lacks = ""  # what the last statement of the gauges did not find

    async def start(self) -> None:
        self._orm = OrmThreads()
        self.tracing = self.tracing or tracing_from_environment()
        self.breaker = BreakerClient(self._orm, self.contact, changed=self.routes.renew)
        self.pool = async_pool(max_size=POOL_SIZE, timeout=POOL_WAIT_SECONDS)
        await self.pool.open()
        self.log = LogWriter(self.pool, gauges=self.upstreams.connections)
        self.log.start()
        writer_share(self.log)
        self.metrics = MetricsPage(self)
        watch = Watch(self.contact, forget=self.forget, announce=self._announce, back=self._back)
        self._tasks = [
            asyncio.create_task(watch.run(), name="watch"),
            asyncio.create_task(_every(GAUGE_SECONDS, self._write_gauges), name="gauges"),
            asyncio.create_task(_every(FIGURES_SECONDS, self.metrics.publish), name="figures"),
            asyncio.create_task(_every(USAGE_SECONDS, self._write_usage), name="usage"),
            asyncio.create_task(_every(TOOL_USAGE_SECONDS, self._write_tool_usage), name="tools"),
        ]

    async def stop(self) -> None:
        """Let nothing be lost: counters, log rows, then the connections.

        A server that is frozen would hold up each of them for good; what is not done in time is
        left alone, not called off, as that would ask the same server again.
        """
        writer_share(None)
        for task in self._tasks:
            task.cancel()
        called_off = [*self._tasks, *self.metrics.call_off()]
        await asyncio.wait(called_off, timeout=CALL_OFF_SECONDS)
        steps = {
            "log": self.log.stop(),
            "usage": self._write_usage(),
            "tools": self.usage.flush_tools(self.pool, at_last=True),
            "breakers": self.breaker.write_kept(),
            "gauges": self.gauges.remove(self.pool),
            "figures": self.metrics.leave(),
        }
        if self.tracing is not None:
            steps["spans"] = self.tracing.stop()
        tasks = [asyncio.create_task(step, name=name) for name, step in steps.items()]
        done, late = await asyncio.wait(tasks, timeout=STOP_SECONDS)
        for task in done:
            if (error := task.exception()) is not None:
                logger.error("a step of the shutdown failed: %s", task.get_name(), exc_info=error)
        if late:
            names = ", ".join(sorted(task.get_name() for task in late))
            logger.error("the shutdown goes on without an answer of PostgreSQL for: %s", names)
        await self.upstreams.close()
        self._orm.close()
        await self.pool.close(timeout=1.0)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["path"].startswith("/health/"):
            await self._health(scope["path"], send)
        elif scope["path"] == "/metrics":
            await self.metrics.answer(scope, send)
        else:
            self.in_progress += 1
            try:
                await Exchange(self, scope, receive, send).run()
            finally:
                self.in_progress -= 1
                self.ended += 1

    async def find_key(self, key: ParsedKey, *, slug: str) -> FoundKey | None:
        """A key's row with the server of a slug; a plain key of before is replaced.

        What is remembered was proved by this very secret, and names a server that exists.
        """

        def is_worth_it(found: FoundKey) -> bool:
            return _is_proved(found, key) and found.server_id is not None

        read = partial(self._read_key, key, slug=slug)
        return await self.keys.get((plain_hash(key), slug), read, keep=is_worth_it)

    async def find_holder(self, key: ParsedKey) -> FoundKey | None:
        """A key's row for what concerns no server; remembered if the secret proves it."""
        read = partial(self._read_key, key, slug="")
        keep = partial(_is_proved, key=key)
        return await self.keys.get((plain_hash(key), ""), read, keep=keep)

    async def find_route(self, server_id: UUID) -> Route | None:
        """The route to a server; None: it is gone."""
        return await self.routes.get(server_id, partial(self._read_route, server_id))

    def forget(self, label: str) -> None:
        """Drop what was made of a row that has changed: `<table>.<column>=<value>`, or a table.

        Other texts change nothing; the first of them is told.
        """
        if not _names_a_change(label):
            if not self._was_misled and not label.startswith(f"{CHANNEL}."):
                self._was_misled = True
                logger.warning("somebody else sends notices on %s: %.100r", CHANNEL, label)
            return
        self.keys.forget(label)
        self.routes.forget(label)

    @asynccontextmanager
    async def _reading(
        self, wait_seconds: float | None = None
    ) -> AsyncIterator[AsyncConnection[TupleRow]]:
        """A connection for what calls have to know; the only way to it."""
        async with self.pool.connection(timeout=wait_seconds) as connection:
            yield connection

    async def _read_key(self, key: ParsedKey, *, slug: str) -> FoundKey | None:
        async with self._reading() as connection:
            found = await find_key(connection, prefix=key.prefix, slug=slug)
            if found is not None:
                return found
            plain = await find_plain_key(connection, key=key, slug=slug)
        if plain is None or not plain.is_active or not settings.GATEWAY_UPGRADE_PLAIN_KEYS:
            return plain
        await self._orm.run(partial(plain_key_upgrade, key=key))
        async with self._reading() as connection:
            return await find_key(connection, prefix=key.prefix, slug=slug)

    async def _read_route(self, server_id: UUID) -> Route | None:
        async with self._reading() as connection:
            return await find_route(connection, server_id=server_id)

    async def _announce(self, text: str) -> None:
        """Send a notice the way that calls take; raises when the database does not answer."""
        async with asyncio.timeout(2 * PROBE_SECONDS), self._reading(PROBE_SECONDS) as connection:
            await connection.execute("SELECT pg_notify(%s, %s)", [CHANNEL, text])

    async def _back(self) -> None:
        """Notices come (again): connections of before may be dead, and outcomes wait."""
        try:
            await self.pool.check()
            await self.breaker.settle()
        except Exception:
            logger.exception("not all that waited for the database was written")

    async def _health(self, path: str, send: Send) -> None:
        status, body = 200, {"status": "ok"}
        if path == "/health/ready":
            status, body = self._readiness()
        elif path != "/health/live":
            status, body = 404, {"status": "not found"}
        headers = [
            (b"content-type", b"application/json"),
            (b"cache-control", b"no-store"),
            (b"x-request-id", str(uuid7()).encode()),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(body).encode()})

    def _readiness(self) -> tuple[int, dict[str, str]]:
        """Ready is who can answer calls, be it from memory; since when the database is away."""
        contact = self.contact
        if self._schema_lacks:
            sentence = f"The database is not set up: {self._schema_lacks}. Run init_db."
            return 503, {"status": "unavailable", "reason": "schema", "message": sentence}
        if contact.is_reachable:
            return 200, {"status": "ok"}
        since = {"database_away_since": contact.lost_at.isoformat()} if contact.lost_at else {}
        if len(self.keys) and len(self.routes) and contact.may_use_memory:
            return 200, {"status": "ok", **since}
        return 503, {"status": "unavailable", "reason": "database", **since}

    async def _write_gauges(self) -> None:
        await self.upstreams.close_idle()
        try:
            await self.gauges.write(self.pool, self.upstreams.all(), self.log.backlog)
        except SCHEMA_ERRORS as error:
            self._schema_lacks = first_line(error)
            raise
        self._schema_lacks = ""
        if self.contact.is_reachable:  # else calls still go to the breakers in memory
            await self.breaker.settle()

    async def _write_usage(self) -> None:
        await self.usage.flush(self.pool)

    async def _write_tool_usage(self) -> None:
        await self.usage.flush_tools(self.pool)


def _is_proved(found: FoundKey, key: ParsedKey) -> bool:
    return not found.key_hash or proves(found, secret=key.secret)


def _names_a_change(label: str) -> bool:
    place, has_value, value = label.partition("=")
    table, _, column = place.partition(".")
    if has_value:
        return bool(value) and column in TOLD_OF.get(table, ())
    return label in TOLD_OF


_untold = Seldom()


async def _every(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    """Repeat for ever; a database that is away is met again at the next round.

    Never in step with other processes, so that each gets its turn at a row that several write.
    """
    while True:
        await asyncio.sleep(seconds * random.uniform(0.75, 1.25))  # noqa: S311
        try:
            await work()
        except (psycopg.Error, DatabaseError) as error:
            if _untold.is_due(type(error).__name__):
                logger.warning(
                    "figures of this process wait for the database: %s", first_line(error)
                )
        except Exception:
            logger.exception("%s failed", work.__name__)
