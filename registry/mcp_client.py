"""Talks MCP to a registered server through the official SDK: one probe, or one listing.

This is the control plane's client. It costs tens of milliseconds of CPU a connection, so no call
of an agent ever takes this way. Whatever a server does, the outcome is a value or one
`UpstreamError` with a sentence, within the time and size that `Limits` allows.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from math import isfinite
from typing import Any, cast
from uuid import UUID

import httpx2
import mcp_types
from mcp.client import Client
from mcp.client._transport import Transport as SDKTransport
from mcp.client.sse import sse_client
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import McpHttpClientFactory
from mcp.shared.exceptions import MCPError
from pydantic import BaseModel, ValidationError

from registry.db.encryption import Sealed
from registry.models import MCPServer, Transport
from registry.upstream import AddressPolicy, UpstreamURLError, check_url, resolve_allowed

__all__ = [
    "Limits",
    "Listing",
    "Probe",
    "Target",
    "UpstreamError",
    "UpstreamInvalid",
    "UpstreamTimeout",
    "UpstreamTooLarge",
    "UpstreamUnreachable",
    "UpstreamUnsupported",
    "list_all",
    "probe",
]

# What a foreign server does wrong is told by its health, not by tracebacks in our log.
logging.getLogger("mcp").setLevel(logging.CRITICAL)
logging.getLogger("httpx2").setLevel(logging.WARNING)

CLIENT_INFO = mcp_types.Implementation(name="mcp-registry-gateway", version="1")


class UpstreamError(Exception):
    """The server could not be asked; the message is one sentence for its owner."""


class UpstreamUnreachable(UpstreamError):
    """No connection: refused, unknown host, forbidden address, TLS failure."""


class UpstreamTimeout(UpstreamError):
    """Connected or not, no answer came in time."""


class UpstreamInvalid(UpstreamError):
    """An answer came that is not MCP."""


class UpstreamTooLarge(UpstreamError):
    """An answer, or a listing, is larger than the gateway takes."""


class UpstreamUnsupported(UpstreamError):
    """The gateway cannot talk this transport; says nothing about the server."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that one exchange may cost."""

    timeout_s: float = 10.0  # for the whole exchange, not for one read
    response_bytes: int = 8 * 2**20
    entries: int = 2000  # of each kind: tools, resources, prompts
    pages: int = 100


@dataclass(frozen=True, slots=True)
class Target:
    """What is needed to connect, read from the row before any waiting begins."""

    id: UUID
    url: str
    transport: str
    policy: AddressPolicy
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    allow_stdio: bool = False

    @classmethod
    def of(cls, server: MCPServer, *, policy: AddressPolicy, allow_stdio: bool) -> Target:
        """DecryptionError when the credentials were written with a lost key."""
        return cls(
            id=server.id,
            url=server.endpoint_url,
            transport=server.transport_type,
            policy=policy,
            headers=_headers(server.credentials),
            allow_stdio=allow_stdio,
        )


def _headers(credentials: Any) -> Mapping[str, str]:
    plain = credentials.open() if isinstance(credentials, Sealed) else credentials
    headers: Mapping[str, str] = (plain or {}).get("headers", {})
    return headers


@dataclass(frozen=True, slots=True)
class Probe:
    """What a server said of itself, and how long it took to say it."""

    response_time_ms: float
    protocol_versions: list[str]
    capabilities: dict[str, Any]
    name: str
    version: str
    fault: str = ""  # what it declared and yet could not do, in words


@dataclass(frozen=True, slots=True)
class Listing:
    """Everything a server offers, as plain JSON values that PostgreSQL can store."""

    tools: list[dict[str, Any]]
    resources: list[dict[str, Any]]
    prompts: list[dict[str, Any]]


async def probe(target: Target, *, limits: Limits) -> Probe:
    """Connect, negotiate and, where the server has tools, list the first page of them.

    `response_time_ms` runs from the first packet to the answered handshake.
    """
    began = time.perf_counter()
    async with _session(target, limits) as client:
        elapsed_ms = (time.perf_counter() - began) * 1000
        fault = await _fault(client)
        discovered = client.session.discover_result
        info = client.server_info
        return Probe(
            response_time_ms=elapsed_ms,
            protocol_versions=_versions(discovered, client.protocol_version),
            capabilities=_plain(client.server_capabilities),
            name=_text(info.name) if info else "",
            version=_text(info.version) if info else "",
            fault=fault,
        )


async def list_all(target: Target, *, limits: Limits) -> Listing:
    """All tools, resources with their templates, and prompts that the server declares."""
    async with _session(target, limits) as client:
        has = client.server_capabilities
        return Listing(
            tools=await _pages(client.list_tools, "tools", limits) if has.tools else [],
            resources=[
                *await _pages(client.list_resources, "resources", limits),
                *await _pages(_templates(client), "resource_templates", limits),
            ]
            if has.resources
            else [],
            prompts=await _pages(client.list_prompts, "prompts", limits) if has.prompts else [],
        )


def _versions(discovered: mcp_types.DiscoverResult | None, spoken: str) -> list[str]:
    known = [*(discovered.supported_versions if discovered else []), spoken]
    return sorted({_text(version)[:32] for version in known})[:20]


async def _fault(client: Client) -> str:
    if client.server_capabilities.tools is None:
        return ""
    try:
        await client.list_tools(cache_mode="bypass")
    except MCPError as error:
        return f"It declares tools and cannot list them: {_words(error)}."
    return ""


def _templates(client: Client) -> Callable[..., Awaitable[Any]]:
    """`resources/templates/list`, which many a server with resources does not have."""

    async def page(**options: Any) -> Any:
        try:
            return await client.list_resource_templates(**options)
        except MCPError as error:
            if error.code != mcp_types.METHOD_NOT_FOUND:
                raise
            return mcp_types.ListResourceTemplatesResult(resource_templates=[])

    return page


async def _pages(
    ask: Callable[..., Awaitable[Any]], kind: str, limits: Limits
) -> list[dict[str, Any]]:
    """Follow the cursor to its end, within the limits. A repeated cursor is a fault."""
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    seen: set[str] = set()
    words = kind.replace("_", " ")
    for _ in range(limits.pages):
        page = await ask(cursor=cursor, cache_mode="bypass")
        found.extend(_plain(entry) for entry in getattr(page, kind))
        if len(found) > limits.entries:
            raise UpstreamTooLarge(
                f"It lists more than {limits.entries} {words}; split the server into several."
            )
        cursor = page.next_cursor
        if cursor is None:
            return found
        if cursor in seen:
            raise UpstreamInvalid(f"Its list of {words} never ends: a cursor came back twice.")
        seen.add(cursor)
    raise UpstreamTooLarge(f"Its list of {words} has more than {limits.pages} pages.")


@asynccontextmanager
async def _session(target: Target, limits: Limits) -> AsyncIterator[Client]:
    """A connected client; every way to fail leaves as one UpstreamError."""
    guard = _Guard(policy=target.policy, limits=limits)
    try:
        async with asyncio.timeout(limits.timeout_s):
            async with Client(
                _transport(target, guard, limits),
                read_timeout_seconds=limits.timeout_s,
                client_info=CLIENT_INFO,
                cache=None,
            ) as client:
                yield client
    except TimeoutError:
        raise _late(limits) from None
    except Exception as error:  # noqa: BLE001  (the SDK raises what it meets)
        raise _as_upstream_error(error, guard) from None


def _transport(target: Target, guard: _Guard, limits: Limits) -> Any:
    match target.transport:
        case Transport.HTTP:
            return _streamable_http(target, guard, limits)
        case Transport.SSE:
            # The SDK's own choice of headers and time-outs (`_options`) gives way to ours.
            factory = cast(
                "McpHttpClientFactory",
                lambda **_options: _http_client(guard, limits, headers=target.headers),
            )
            return sse_client(_checked(target), httpx_client_factory=factory)
        case Transport.STDIO:
            return _stdio(target)
        case _:
            raise UpstreamUnsupported(
                f"The gateway cannot check servers over '{target.transport}' yet."
            )


@asynccontextmanager
async def _streamable_http(
    target: Target, guard: _Guard, limits: Limits
) -> AsyncIterator[SDKTransport]:
    async with _http_client(guard, limits, headers=target.headers) as http:
        transport = streamable_http_client(_checked(target), http_client=http)
        async with transport as streams:
            yield streams  # type: ignore[misc]


def _http_client(
    guard: _Guard, limits: Limits, *, headers: Mapping[str, str]
) -> httpx2.AsyncClient:
    # A proxy from the environment would connect for us, to an address nobody has checked.
    # Compressed answers are not asked for: their size says nothing of what they unfold to.
    return httpx2.AsyncClient(
        transport=guard,
        timeout=limits.timeout_s,
        trust_env=False,
        headers={**headers, "Accept-Encoding": "identity"},
    )


def _checked(target: Target) -> str:
    check_url(target.url, transport=target.transport)
    return target.url


def _stdio(target: Target) -> StdioServerParameters:
    if not target.allow_stdio:
        raise UpstreamUnsupported("Servers over stdio need GATEWAY_ALLOW_STDIO=on.")
    command, *arguments = shlex.split(target.url)
    return StdioServerParameters(command=command, args=arguments)


@cache
def _tls() -> ssl.SSLContext:
    """Loading the certificates takes longer than a probe, so it is done once a process.

    SSL_CERT_FILE and SSL_CERT_DIR count: a company's own authority signs inner servers.
    """
    return httpx2.create_ssl_context()


class _Guard(httpx2.AsyncBaseTransport):
    """Connects to the addresses that were checked, and ends what is too large or elsewhere.

    `failure` keeps the first reason: the SDK hides what happened below it.
    """

    def __init__(self, *, policy: AddressPolicy, limits: Limits) -> None:
        self.policy = policy
        self.limits = limits
        self.failure: UpstreamError | None = None
        self.status: int | None = None  # of the last POST's answer, when it was an error
        self._inner = httpx2.AsyncHTTPTransport(verify=_tls(), trust_env=False)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        try:
            return await self._answer(request)
        except UpstreamURLError as error:
            raise self._fail(UpstreamUnreachable(str(error))) from None
        except UpstreamError as error:
            raise self._fail(error) from None
        except httpx2.TimeoutException:
            raise
        except httpx2.ProtocolError:
            raise self._fail(UpstreamInvalid("It does not speak HTTP.")) from None
        except httpx2.TransportError as error:
            raise self._fail(UpstreamUnreachable(_connection_words(request, error))) from None

    async def _answer(self, request: httpx2.Request) -> httpx2.Response:
        response = await self._connect(request)
        if request.method == "POST":  # the others are optional, and often refused
            self.status = response.status_code if response.status_code >= 400 else None
        if 300 <= response.status_code < 400:
            await response.aclose()
            raise UpstreamInvalid(
                f"It redirects to {_text(response.headers.get('location', 'nowhere'))[:200]}; "
                "register the address where it really is."
            )
        if response.headers.get("content-encoding", "identity") != "identity":
            await response.aclose()
            raise UpstreamInvalid("It compresses answers although it was asked not to.")
        assert isinstance(response.stream, httpx2.AsyncByteStream)  # noqa: S101
        response.stream = _Bounded(response.stream, self)
        return response

    async def _connect(self, request: httpx2.Request) -> httpx2.Response:
        """Try each checked address in turn; TLS still proves the name."""
        host = request.url.host
        port = request.url.port or (443 if request.url.scheme == "https" else 80)
        addresses = await resolve_allowed(host, port, policy=self.policy)
        extensions = {**request.extensions, "sni_hostname": host}
        for last, ip in enumerate(addresses, start=1 - len(addresses)):
            there = httpx2.Request(
                request.method,
                request.url.copy_with(host=ip),
                headers=request.headers,  # Host among them: it keeps the name
                stream=request.stream,
                extensions=extensions,
            )
            try:
                return await self._inner.handle_async_request(there)
            except httpx2.ConnectError:
                if last == 0:
                    raise
        raise UpstreamUnreachable(f"The host '{host}' has no address; check its spelling.")

    def _fail(self, error: UpstreamError) -> httpx2.TransportError:
        self.failure = self.failure or error
        return httpx2.TransportError(str(error))

    def too_large(self) -> httpx2.TransportError:
        most = self.limits.response_bytes
        return self._fail(UpstreamTooLarge(f"It sent an answer of more than {most:,} bytes."))

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Bounded(httpx2.AsyncByteStream):
    """A response body that stops at the limit; a stream of events counts as one body."""

    def __init__(self, inner: httpx2.AsyncByteStream, guard: _Guard) -> None:
        self._inner = inner
        self._guard = guard

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = self._guard.limits.response_bytes
        async for chunk in self._inner:
            left -= len(chunk)
            if left < 0:
                raise self._guard.too_large()
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()


def _as_upstream_error(error: BaseException, guard: _Guard) -> UpstreamError:
    """The one boundary where foreign errors become ours."""
    if guard.failure is not None:
        return guard.failure
    leaf = _first_leaf(error)
    if isinstance(leaf, UpstreamError):
        return leaf
    if isinstance(leaf, MCPError):
        return _told_by_sdk(leaf, guard)
    return _told_by_transport(leaf, guard)


def _told_by_sdk(error: MCPError, guard: _Guard) -> UpstreamError:
    if guard.status is not None:
        return UpstreamInvalid(_status_words(guard.status))
    if error.code == mcp_types.REQUEST_TIMEOUT:
        return _late(guard.limits)
    if error.code == mcp_types.PARSE_ERROR:
        return UpstreamInvalid("It answered with JSON that is no JSON-RPC message.")
    return UpstreamInvalid(f"It did not answer as an MCP server: {_words(error)}.")


def _told_by_transport(error: BaseException, guard: _Guard) -> UpstreamError:
    match error:
        case UpstreamURLError():
            return UpstreamUnreachable(str(error))
        case TimeoutError() | httpx2.TimeoutException():
            return _late(guard.limits)
        case httpx2.HTTPStatusError():
            return UpstreamInvalid(_status_words(error.response.status_code))
        case FileNotFoundError() | PermissionError():
            return UpstreamUnreachable(f"Its command cannot be run: {error.strerror}.")
        case httpx2.SSEError():
            return UpstreamInvalid("It answered with something that is no stream of events.")
        case ValidationError():
            return UpstreamInvalid("It answered with something that is not MCP.")
        case _:
            return UpstreamInvalid(f"It broke the exchange off: {_words(error)}.")


def _late(limits: Limits) -> UpstreamTimeout:
    return UpstreamTimeout(f"It gave no answer within {limits.timeout_s:g} seconds.")


def _words(error: BaseException) -> str:
    """The first line of what an error says, short enough for a table."""
    said = error.message if isinstance(error, MCPError) else str(error) or type(error).__name__
    return (_text(said).strip().splitlines() or ["no reason given"])[0][:200].rstrip(".")


def _first_leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _status_words(status: int) -> str:
    if status in (401, 403):
        return f"It answers HTTP {status}: its credentials are missing or wrong."
    if status == 404:
        return "It answers HTTP 404: there is no MCP endpoint at this path."
    return f"It answers HTTP {status}."


def _connection_words(request: httpx2.Request, error: httpx2.TransportError) -> str:
    return f"No connection to {request.url.host}: {_words(error)}."


def _plain(value: BaseModel) -> dict[str, Any]:
    """A model as JSON that `jsonb` takes."""
    dumped = value.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {_text(key): _storable(inner) for key, inner in dumped.items()}


def _storable(value: Any) -> Any:
    """PostgreSQL has no NUL in text, no infinity in JSON, and JSON no unbounded integers."""
    match value:
        case str():
            return _text(value)
        case bool() | None:
            return value
        case float():
            return value if isfinite(value) else None
        case int():
            return value if value.bit_length() <= 64 else None
        case dict():
            return {_text(key): _storable(inner) for key, inner in value.items()}
        case list():
            return [_storable(inner) for inner in value]
        case _:
            return _text(str(value))


def _text(value: str) -> str:
    return value.replace("\x00", "").encode("utf-8", "replace").decode()
