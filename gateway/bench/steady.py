"""A steady load on a running gateway: calls of all kinds, operators who look, tasks in a hurry."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from itertools import cycle
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import aiohttp
from django.db import connection
from django.utils.timezone import now

from monitoring.models import ScheduledTask
from registry.periodic import PeriodicTask

__all__ = ["Hurry", "Load", "loading"]

VERSION = "2026-07-28"
META = {
    "io.modelcontextprotocol/protocolVersion": VERSION,
    "io.modelcontextprotocol/clientInfo": {"name": "soak", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}
MOST_AT_ONCE = 200  # a gateway that answers no more would be given ever more
PATIENCE_SECONDS = 30
GONE_SECONDS = 0.05  # after which some clients hang up on a stream
LOOK_SECONDS = 2.0
LOOKED_AT = (
    "/metrics",
    "/api/v1/summaries/request-performance?hours=24",
    "/api/v1/servers",
    "/api/v1/request-logs",
    "/metrics",
    "/api/v1/audit-logs",
    "/api/v1/database/performance",
    "/admin/login/",
    "/health/ready",
)
# What a hundred calls are; the rest adds two numbers.
KINDS = {
    7: "list", 19: "unknown tool", 31: "list", 43: "unknown key", 53: "hang up",
    61: "unknown server", 73: "list", 83: "nonsense", 97: "unknown tool",
}  # fmt: skip


class Load:
    """Sends `rate` calls a second for as long as it is entered, each when its time has come."""

    def __init__(self, url: str, *, server: str, key: str, rate: float) -> None:
        self.answers: Counter[str] = Counter()  # by kind and status
        self.behind = 0  # calls not sent, for too many were under way
        self._url, self._server, self._rate = url, server, rate
        self._key = {"authorization": f"Bearer {key}"}
        self._under_way: set[asyncio.Task[None]] = set()

    async def run(self, stop: threading.Event) -> None:
        limit = aiohttp.ClientTimeout(total=PATIENCE_SECONDS)
        connector = aiohttp.TCPConnector(limit=MOST_AT_ONCE)
        async with aiohttp.ClientSession(self._url, timeout=limit, connector=connector) as http:
            looking = asyncio.create_task(self._look(http, stop))
            await self._send_all(http, stop)
            await asyncio.gather(looking, *self._under_way)

    async def _send_all(self, http: aiohttp.ClientSession, stop: threading.Event) -> None:
        began, sent = time.monotonic(), 0
        while not stop.is_set():
            due = int((time.monotonic() - began) * self._rate)
            for number in range(sent, due):
                self._send(http, number)
            sent = due
            await asyncio.sleep(0.5 / self._rate)

    def _send(self, http: aiohttp.ClientSession, number: int) -> None:
        if len(self._under_way) >= MOST_AT_ONCE:
            self.behind += 1
            return
        kind = KINDS.get(number % 100, "add")
        task = asyncio.create_task(self._one(http, kind))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _one(self, http: aiohttp.ClientSession, kind: str) -> None:
        patience = GONE_SECONDS if kind == "hang up" else PATIENCE_SECONDS
        try:
            status = await asyncio.wait_for(_post(http, *self._request(kind)), patience)
            self.answers[f"{kind}: {status}"] += 1
        except TimeoutError:
            self.answers[f"{kind}: time-out"] += 1
        except aiohttp.ClientError as error:
            self.answers[f"{kind}: {type(error).__name__}"] += 1

    def _request(self, kind: str) -> tuple[str, dict[str, str], Any]:
        method, name, arguments = _CALLS.get(kind, ("tools/call", "add", {"a": 2, "b": 3}))
        headers = _headers(method, name) | self._key
        body: Any = _message(method, name, arguments)
        slug = self._server
        if kind == "unknown key":
            headers["authorization"] = f"Bearer mcpgw_{uuid4().hex[:12]}_{uuid4().hex * 2}"
        elif kind == "unknown server":
            slug = f"no-{uuid4().hex[:8]}"
        return f"/mcp/{slug}", headers, "{" if kind == "nonsense" else body

    async def _look(self, http: aiohttp.ClientSession, stop: threading.Event) -> None:
        """What watches the gateway, and who: one address after another."""
        for path in cycle(LOOKED_AT):
            if stop.is_set():
                return
            try:
                async with http.get(path, headers=self._key) as answer:
                    await answer.read()
                    self.answers[f"look: {answer.status}"] += 1
            except (TimeoutError, aiohttp.ClientError) as error:
                self.answers[f"look: {type(error).__name__}"] += 1
            await asyncio.sleep(LOOK_SECONDS)


_CALLS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "list": ("tools/list", "", {}),
    "unknown tool": ("tools/call", "no_such_tool", {}),
    "hang up": ("tools/call", "countdown", {"start": 3, "seconds": 1}),
}


def _headers(method: str, name: str) -> dict[str, str]:
    named = {"mcp-name": name} if name else {}
    return {
        "content-type": "application/json",
        "accept": "application/json, text/event-stream",
        "mcp-protocol-version": VERSION,
        "mcp-method": method,
        **named,
    }


def _message(method: str, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    params: dict[str, Any] = {"_meta": META}
    if name:
        params |= {"name": name, "arguments": arguments}
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}


async def _post(http: aiohttp.ClientSession, path: str, headers: dict[str, str], body: Any) -> int:
    sent = {"data": body} if isinstance(body, str) else {"json": body}
    async with http.post(path, headers=headers, **sent) as answer:
        await answer.read()
        return answer.status


@contextmanager
def loading(load: Load) -> Iterator[None]:
    """The load runs in a thread of its own inside; what broke it is raised at the end."""
    stop, broken = threading.Event(), []

    def run() -> None:
        try:
            asyncio.run(load.run(stop))
        except Exception as error:  # noqa: BLE001  (raised again below)
            broken.append(error)

    thread = threading.Thread(target=run, name="load")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    for error in broken:
        raise error


class Hurry:
    """Has periodic tasks run `speed` times as often while it is entered.

    A task becomes due again as if somebody had asked for it to be run now; its work, its time and
    the clock are what they always are. A worker looks once a second, so nothing runs more often.
    """

    def __init__(self, tasks: Mapping[str, PeriodicTask], *, speed: float) -> None:
        at = now()
        self._usual = {name: task.interval(at) for name, task in tasks.items()}
        self._waits = {name: usual / speed for name, usual in self._usual.items()}
        self._next = {name: at + wait for name, wait in self._waits.items()}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hurry", daemon=True)
        self.broken: list[Exception] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def runs(self, *, over: timedelta) -> dict[str, tuple[int, float]]:
        """Of each task: how often it ran, and how often it would have without hurry."""
        rows = ScheduledTask.objects.filter(name__in=self._usual).values_list("name", "runs")
        return {name: (ran, over / self._usual[name]) for name, ran in rows}

    def _run(self) -> None:
        try:
            while not self._stop.wait(1):
                self._ask()
        except Exception as error:  # noqa: BLE001  (told by whoever entered)
            self.broken.append(error)
        finally:
            connection.close()

    def _ask(self) -> None:
        at = now()
        due = [name for name, moment in self._next.items() if moment <= at]
        ScheduledTask.objects.filter(name__in=due, next_run__gt=at).update(next_run=at)
        self._next |= {name: at + self._waits[name] for name in due}
