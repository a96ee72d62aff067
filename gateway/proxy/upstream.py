"""Connections to one server: an HTTP client of its own, behind a gate that bounds its use."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import aiohttp

from gateway.proxy.failures import Failure
from gateway.proxy.gate import Allowance, Gate
from gateway.proxy.route import Route
from registry.sentences import first_line
from registry.upstream import current_policy, guarded_socket

__all__ = ["Upstream", "Upstreams", "invalid_answer"]

STREAMABLE_HTTP = "http"
# A server without traffic for so long gives its client up (seconds).
IDLE_UPSTREAM_SECONDS = 900.0
# A server and process. Each is a socket on either side.
MAX_STREAMS = 1000
MAX_REPLIES = 200


class Upstream:
    """One server's connections in this process."""

    def __init__(self, route: Route) -> None:
        self.route = route
        self.gate = Gate(route.limits)
        # What holds no slot: streams that idle for hours, and answers that calls wait for.
        self.streams = Allowance(MAX_STREAMS)
        self.replies = Allowance(MAX_REPLIES)
        self.created = self.errors = 0
        self.mean_connect_ms: float | None = None
        self.last_used = time.monotonic()
        self._connector = aiohttp.TCPConnector(
            limit=0,  # the gate is the bound
            keepalive_timeout=route.idle_timeout_ms / 1000,
            socket_factory=partial(guarded_socket, policy=current_policy()),
        )
        self._session = aiohttp.ClientSession(
            connector=self._connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Content-Type"),
            trace_configs=[self._trace()],
        )

    @property
    def idle(self) -> int:
        """Open connections that no call uses."""
        # aiohttp tells of connections made and reused but not of those closed: look.
        return sum(map(len, self._connector._conns.values()))

    @property
    def active(self) -> int:
        """Calls and streams that hold a connection."""
        return self.gate.active + self.streams.active + self.replies.active

    @property
    def closed(self) -> int:
        """An estimate: what was opened and is neither in use nor idle."""
        return max(0, self.created - self.idle - self.active)

    def configure(self, route: Route) -> None:
        """Take what the operator changed since the last call."""
        if route is not self.route:  # remembered routes are the same object call after call
            if route.limits != self.gate.limits:
                self.gate.resize(route.limits)
            self.route = route
        self.last_used = time.monotonic()

    async def request(
        self, method: str, *, body: bytes | None, headers: Mapping[str, str], streams: bool
    ) -> aiohttp.ClientResponse:
        """Send one request and wait for the answer's head; Failure when there is none.

        With `streams` the server may stay silent as long as it likes.
        """
        route = self.route
        if route.transport_type != STREAMABLE_HTTP:
            raise Failure(
                502,
                "upstream_invalid",
                f"Server '{route.slug}' speaks {route.transport_type}; the gateway forwards "
                "Streamable HTTP. Register an endpoint of that kind.",
            )
        connect = route.pool_timeout_ms / 1000
        silence = None if streams else route.processing_timeout_ms / 1000
        timeout = aiohttp.ClientTimeout(total=None, connect=connect, sock_read=silence)
        try:
            # Around all of it: a server that drips its answer's head never falls silent.
            async with asyncio.timeout(silence and connect + silence):
                return await self._session.request(
                    method,
                    route.endpoint_url,
                    data=body,
                    headers=headers,
                    timeout=timeout,
                    allow_redirects=False,
                )
        except aiohttp.ConnectionTimeoutError as error:
            self.errors += 1
            raise _unreachable(route, error) from None
        except TimeoutError:  # aiohttp's for reading is one, too
            raise _timeout(route) from None
        except (aiohttp.ClientConnectionError, OSError, ValueError) as error:
            self.errors += 1
            raise _unreachable(route, error) from None
        except aiohttp.ClientError:
            raise invalid_answer(route, "its answer is not valid HTTP") from None

    async def close(self) -> None:
        await self._session.close()

    def _trace(self) -> aiohttp.TraceConfig:
        trace = aiohttp.TraceConfig()

        async def start(_session: Any, context: SimpleNamespace, _params: Any) -> None:
            context.began = time.monotonic()

        async def end(_session: Any, context: SimpleNamespace, _params: Any) -> None:
            took = (time.monotonic() - context.began) * 1000
            mean = self.mean_connect_ms
            self.mean_connect_ms = took if mean is None else mean + 0.1 * (took - mean)
            self.created += 1

        trace.on_connection_create_start.append(start)
        trace.on_connection_create_end.append(end)
        return trace


class Upstreams:
    """The servers that this process talks to."""

    def __init__(self) -> None:
        self._by_server: dict[Any, Upstream] = {}

    def of(self, route: Route) -> Upstream:
        upstream = self._by_server.get(route.server_id)
        if upstream is None:
            upstream = self._by_server[route.server_id] = Upstream(route)
        upstream.configure(route)
        return upstream

    def all(self) -> list[Upstream]:
        return list(self._by_server.values())

    def connections(self, server_id: UUID) -> tuple[int, int] | None:
        """A server's connections in use and the most there may be; None without traffic."""
        upstream = self._by_server.get(server_id)
        return (upstream.active, upstream.route.pool_max_size) if upstream else None

    async def close_idle(self) -> None:
        """Forget servers without traffic, so that memory follows use."""
        limit = time.monotonic() - IDLE_UPSTREAM_SECONDS
        for server_id, upstream in list(self._by_server.items()):
            if upstream.last_used < limit and not upstream.active:
                del self._by_server[server_id]
                await upstream.close()

    async def close(self) -> None:
        for upstream in self.all():
            await upstream.close()
        self._by_server.clear()


def _unreachable(route: Route, error: Exception) -> Failure:
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, PermissionError):
        why = "the gateway may not connect to its address"
    elif isinstance(error, aiohttp.ConnectionTimeoutError):
        why = "connecting took too long"
    elif isinstance(error, aiohttp.ServerDisconnectedError):
        why = "it closed the connection without an answer"
    else:
        why = "no connection could be made"
    return Failure(
        502,
        "upstream_unreachable",
        f"Server '{route.slug}' cannot be reached: {why}. Try again later; its operator can see "
        "its health at /api/v1/servers.",
        server_failed=not isinstance(cause, PermissionError),
        detail=first_line(getattr(cause, "strerror", None) or cause),
    )


def _timeout(route: Route) -> Failure:
    seconds = route.processing_timeout_ms / 1000
    return Failure(
        504,
        "upstream_timeout",
        f"Server '{route.slug}' did not answer within {seconds:g} s. The call may still have "
        "taken effect there.",
        server_failed=True,
    )


def invalid_answer(route: Route, why: str) -> Failure:
    return Failure(
        502,
        "upstream_invalid",
        f"Server '{route.slug}' did not answer as an MCP server: {why}. "
        "Check that its registered URL is its MCP endpoint.",
        server_failed=True,
    )
