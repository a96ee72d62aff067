"""Real MCP servers on loopback for tests, each in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from mcp.server.mcpserver import MCPServer


def sample_server(*, tools: int = 2) -> MCPServer:
    """`tools` tools named tool_0…, one resource, one template and one prompt."""
    server = MCPServer("test-server", version="3.2.1")
    for number in range(tools):
        server.add_tool(_echo, name=f"tool_{number}", description=f"Echo {number}")

    @server.resource("note://today", mime_type="text/plain")
    def today() -> str:
        return "rain"

    @server.resource("note://{day}")
    def note(day: str) -> str:
        return day

    @server.prompt()
    def greet(name: str) -> str:
        """Say hello."""
        return f"Hello {name}"

    return server


def _echo(text: str) -> str:
    return text


@contextmanager
def running(app: Any) -> Iterator[str]:
    """Serve an ASGI application on a free port of 127.0.0.1; yields its base URL."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("the test server did not start")
            threading.Event().wait(0.01)
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        sock.close()


@contextmanager
def mcp_over_http(server: MCPServer | None = None, **options: Any) -> Iterator[str]:
    """A Streamable HTTP server; yields the URL of its endpoint."""
    app = (server or sample_server()).streamable_http_app(**options)
    with running(app) as base:
        yield f"{base}/mcp"


@contextmanager
def mcp_over_sse(server: MCPServer | None = None) -> Iterator[str]:
    """A server of the HTTP+SSE transport; yields the URL of its event stream."""
    with running((server or sample_server()).sse_app()) as base:
        yield f"{base}/sse"


@contextmanager
def answering(
    respond: Callable[[bytes], bytes | None],
) -> Iterator[str]:
    """A raw TCP server that answers each request with `respond(head)`; None: never answers."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            answer = respond(head)
            if answer is None:
                await reader.read()  # until the other side gives up
            else:
                writer.write(answer)
                await writer.drain()
        writer.close()

    ready = threading.Event()
    state: dict[str, Any] = {}

    async def main() -> None:
        state["stop"] = asyncio.Event()
        state["loop"] = asyncio.get_running_loop()
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        state["port"] = server.sockets[0].getsockname()[1]
        ready.set()
        async with server:
            await state["stop"].wait()

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    ready.wait(5)
    try:
        yield f"http://127.0.0.1:{state['port']}/mcp"
    finally:
        state["loop"].call_soon_threadsafe(state["stop"].set)
        thread.join(timeout=10)


def http_answer(body: bytes, *, status: str = "200 OK", content_type: str = "application/json"):
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + body


def closed_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]
