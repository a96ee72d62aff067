"""MCP servers that behave, and some that do not: real sockets, in a thread of their own."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Peer:
    """A scripted upstream. `behave` may be replaced at any time; `seen` holds what came in."""

    behave: Handler
    seen: list[dict[str, Any]] = field(default_factory=list)
    port: int = 0
    in_flight: int = 0
    most_in_flight: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.seen.append({"method": request.method, "headers": headers, "body": body})
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self.behave(request)
        finally:
            self.in_flight -= 1


async def answer(request: web.Request) -> web.StreamResponse:
    """A well-behaved JSON answer that echoes the request's id and method."""
    message = json.loads(await request.read() or b"{}")
    if "id" not in message:
        return web.Response(status=202)
    result = {"echo": message.get("method")}
    return web.json_response({"jsonrpc": "2.0", "id": message["id"], "result": result})


def status(code: int, text: str = "broken") -> Handler:
    async def behave(_: web.Request) -> web.StreamResponse:
        return web.Response(status=code, text=text)

    return behave


def after(seconds: float, then: Handler = answer) -> Handler:
    async def behave(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        return await then(request)

    return behave


def when(release: threading.Event, then: Handler = answer) -> Handler:
    """Answers only once the test lets it."""

    async def behave(request: web.Request) -> web.StreamResponse:
        while not release.is_set():
            await asyncio.sleep(0.005)
        return await then(request)

    return behave


def events(gates: list[threading.Event], *, ended: threading.Event | None = None) -> Handler:
    """An SSE answer: one event each time the next gate opens."""

    async def behave(request: web.Request) -> web.StreamResponse:
        headers = {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        try:
            for number, gate in enumerate(gates):
                while not gate.is_set():
                    await asyncio.sleep(0.005)
                    if request.transport is None or request.transport.is_closing():
                        raise ConnectionResetError
                await response.write(f"data: {number}\n\n".encode())
        except (ConnectionResetError, asyncio.CancelledError):
            if ended is not None:
                ended.set()
            raise
        return response

    return behave


async def break_off(request: web.Request) -> web.StreamResponse:
    """Promises more than it sends."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.content_length = 1000
    await response.prepare(request)
    await response.write(b'{"jsonrpc"')
    assert request.transport is not None
    request.transport.close()
    return response


@contextmanager
def running_peer(behave: Handler = answer) -> Iterator[Peer]:
    peer = Peer(behave)
    loop = asyncio.new_event_loop()
    ready, stop = threading.Event(), asyncio.Event()

    async def serve() -> None:
        app = web.Application()
        app.router.add_route("*", "/mcp", peer.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        peer.port = runner.addresses[0][1]
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert ready.wait(5)
    try:
        yield peer
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(5)
        loop.close()
