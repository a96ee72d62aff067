"""One HTTP exchange on /mcp: from the caller's request to the log row that remembers it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import UUID

import aiohttp
from django.conf import settings
from django.utils.timezone import now
from structlog.contextvars import bound_contextvars

from gateway.proxy.breaker import Permit
from gateway.proxy.failures import BROKEN_BODY, Failure, error_body
from gateway.proxy.gate import QueueFull, QueueTimeout
from gateway.proxy.headers import request_headers, response_headers
from gateway.proxy.memory import DATABASE_ERRORS, SCHEMA_ERRORS
from gateway.proxy.message import InvalidMessage, Message, check_headers, parse_message
from gateway.proxy.route import Route
from gateway.proxy.upstream import Upstream, invalid_answer
from monitoring.logwriter import Denial, RequestRow, storable
from registry.db.encryption import DecryptionError, decrypt_json
from registry.db.ids import uuid7
from registry.sentences import first_line
from security.access import Call, decide
from security.addresses import client_address
from security.authentication import (
    check_state,
    presented_key,
    proves,
    refuse_unknown_key,
)
from security.lookup import FoundKey
from security.refusals import Reason, Refusal, whole_seconds

if TYPE_CHECKING:
    from gateway.proxy.plane import DataPlane
    from gateway.proxy.spans import CallSpan

__all__ = ["Exchange"]

logger = logging.getLogger(__name__)

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

ALLOW = "GET, POST, DELETE, OPTIONS"
# Nginx's number for a caller that left; only the log sees it.
CLIENT_CLOSED_REQUEST = 499
# Who waits longest when a server is busy: what keeps a connection going is first, a call next,
# and listings, which clients repeat, come last.
PRIORITY = {
    "initialize": 0,
    "ping": 0,
    "server/discover": 0,
    "tools/list": 2,
    "resources/list": 2,
    "resources/templates/list": 2,
    "prompts/list": 2,
}
# What stays open without saying anything: a GET stream, and its successor of 2026-07-28.
STREAMS = {"stream", "subscriptions/listen"}
BODY_SECONDS = 30.0
PARSE_INLINE_BYTES = 64 * 1024
NAME_LENGTH = 255
# What the audit log remembers: all that access control and the limits refuse.
DENIALS = frozenset(Reason) | {"origin_not_allowed"}
# In a header's value: what no client may be sent.
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# What was looked up before a wait as long as this is looked up again (milliseconds).
STALE_MS = 100
_UNTRACED = contextlib.nullcontext()


class _CallerGone(Exception):
    """The connection was closed from the other end: nobody is left to answer."""


class Exchange:
    """The state of one exchange. `run` never raises but for cancellation."""

    def __init__(
        self, plane: DataPlane, scope: dict[str, Any], receive: Receive, send: Send
    ) -> None:
        self.plane = plane
        self.receive, self.send = receive, send
        self.http_method: str = scope["method"]
        self.slug = storable(scope["path"].removeprefix("/mcp").strip("/"))
        self.headers = _headers(scope["headers"])
        self.began = time.perf_counter()
        self.request_id = uuid7()
        self.body = b""
        self.message: Message | None = None
        self.found: FoundKey | None = None
        self.span: CallSpan | None = None  # None, too, where nobody wants spans
        self._answer_seconds = 0.0
        self.answered = False  # the response's head is on its way
        client = scope.get("client")
        self.row = RequestRow(
            request_time=now(),
            request_id=self.request_id,
            method=self.http_method,
            path=scope["path"],
            ip_address=client_address(
                peer=client[0] if client else None,
                forwarded_for=self.headers.get("x-forwarded-for", ""),
                trusted=settings.GATEWAY_TRUSTED_PROXIES,
            ),
        )

    async def run(self) -> None:
        """Answer the request and leave its row with the log writer."""
        with bound_contextvars(request_id=str(self.request_id)):
            try:
                await self._answer_or_fail()
            except _CallerGone:
                self._note(CLIENT_CLOSED_REQUEST, "client_disconnected", "The caller went away.")
            finally:
                self._log()

    async def _answer_or_fail(self) -> None:
        try:
            await self._handle()
        except _CallerGone:
            raise
        except Failure as failure:
            await self._fail(failure)
        except (*DATABASE_ERRORS, *SCHEMA_ERRORS) as error:
            await self._fail(self._without_database(error))
        except Exception:
            logger.exception("request %s failed", self.request_id)
            await self._fail(
                Failure(
                    500,
                    "internal_error",
                    "The gateway failed. Tell its operator the request id of this answer.",
                )
            )

    def _without_database(self, error: Exception) -> Failure:
        """Calls are refused as long as it lasts, so the log has it once a minute."""
        if isinstance(error, SCHEMA_ERRORS):
            what, wait = (
                "The gateway's database is not set up; its operator finds why in the log",
                30,
            )
        else:
            what, wait = "The gateway cannot reach its database", 5
        if self.plane.seldom.is_due(what):
            logger.warning("calls are refused: %s", first_line(error))
        return Failure(
            503, "database_unavailable", f"{what}. Try again in {wait} s.", retry_after=wait
        )

    async def _handle(self) -> None:
        self._check_origin()
        if self.http_method == "OPTIONS":
            await self._respond(204, [("allow", ALLOW), *self._preflight()], b"")
            return
        if self.http_method not in {"GET", "POST", "DELETE"}:
            raise Failure(
                405,
                "invalid_request",
                f"{self.http_method} is not part of MCP. Use POST; with a session GET and DELETE.",
                headers=(("allow", ALLOW),),
            )
        found = await self._authenticate()
        began = time.perf_counter()
        call = await self._read_call()
        if (time.perf_counter() - began) * 1000 > STALE_MS:
            found = await self._authenticate()
        route = await self._authorise(found, call)
        if self.span is not None:
            self.span.authorised()
        await self._forward(route, call)

    # ------------------------------------------------------------------ reading

    def _check_origin(self) -> None:
        """A browser names the page that asks; only listed pages may (DNS rebinding)."""
        origin = self.headers.get("origin")
        if origin is not None and origin.rstrip("/") not in settings.GATEWAY_ALLOWED_ORIGINS:
            raise Failure(
                403,
                "origin_not_allowed",
                f"Pages of {origin[:200]} may not call this gateway. "
                "Add the origin to GATEWAY_ALLOWED_ORIGINS.",
            )

    async def _read_call(self) -> Call:
        """What is asked for. Only who holds a key has a body read and parsed."""
        try:
            async with asyncio.timeout(BODY_SECONDS):
                self.body = await self._read_body()
        except TimeoutError:
            raise Failure(
                408,
                "invalid_request",
                f"The request's body did not arrive within {BODY_SECONDS:g} s. Send it again.",
            ) from None
        self.row.request_size_bytes = len(self.body)
        if self.http_method == "GET":
            return self._noted(Call("stream"))
        if self.http_method == "DELETE":
            return self._noted(Call("session/end"))
        try:
            content_type = self.headers.get("content-type", "").partition(";")[0].strip().lower()
            if content_type != "application/json":
                raise InvalidMessage("Send the message with 'Content-Type: application/json'.")
            self.message = await self._parse()
            check_headers(self.message, self.headers)
        except InvalidMessage as error:
            self.message = self.message or Message(Call(""), error.id)
            raise Failure(400, "invalid_request", str(error), code=error.code) from None
        return self._noted(self.message.call)

    async def _parse(self) -> Message:
        """A large body is parsed in a thread: other calls go on meanwhile."""
        if len(self.body) <= PARSE_INLINE_BYTES:
            return parse_message(self.body)
        return await asyncio.to_thread(parse_message, self.body)

    def _noted(self, call: Call) -> Call:
        row = self.row
        row.rpc_method = call.method[:NAME_LENGTH]
        if call.method == "tools/call":
            row.tool_name = call.name[:NAME_LENGTH]
        elif call.name:
            row.request_metadata["name"] = call.name[:1000]
        stated = self.message.protocol_version if self.message else ""
        row.protocol_version = self.headers.get("mcp-protocol-version", stated)[:NAME_LENGTH]
        if theirs := self.headers.get("x-request-id"):
            row.request_metadata["client_request_id"] = theirs[:200]
        if self.plane.tracing is not None:
            self.span = self.plane.tracing.begin(row, self.message, self.headers)
        return call

    async def _read_body(self) -> bytes:
        limit = settings.GATEWAY_MAX_REQUEST_BYTES
        announced = self.headers.get("content-length", "0")
        chunks: list[bytes] = []
        size = int(announced) if announced.isdigit() else 0
        more = size <= limit
        size = size if size > limit else 0
        while more:
            event = await self.receive()
            if event["type"] == "http.disconnect":
                # Said of malformed chunks too. Who has left does not hear the answer.
                raise Failure(400, "invalid_request", BROKEN_BODY)
            chunks.append(event.get("body", b""))
            size += len(chunks[-1])
            more = event.get("more_body", False) and size <= limit
        if size > limit:
            raise Failure(
                413,
                "request_too_large",
                f"The request is larger than {limit} bytes. Send less, or have "
                "GATEWAY_MAX_REQUEST_BYTES raised.",
            )
        return b"".join(chunks)

    # ------------------------------------------------------------------ deciding

    async def _authenticate(self) -> FoundKey:
        """The caller's key, proved and in order; a Failure otherwise."""
        key = presented_key(
            authorization=self.headers.get("authorization", ""),
            x_api_key=self.headers.get("x-api-key", ""),
        )
        if isinstance(key, Refusal):
            raise Failure.of(key)
        found = await self.plane.find_key(key, slug=self.slug)
        if found is None:
            raise Failure.of(refuse_unknown_key())
        at = self.row.request_time
        # A plain key has no salted hash: finding it was the proof.
        if found.key_hash and not proves(found, secret=key.secret):
            self.row.request_metadata["key_prefix"] = key.prefix
            self.plane.usage.failed_attempts[found.id].add(at=at, failed=True)
            raise Failure.of(refuse_unknown_key())
        self.found = found
        self.row.tenant_id, self.row.user_id = found.tenant_id, found.user_id
        self.row.api_key_id = found.id
        refusal = check_state(found, ip=self.row.ip_address, at=at)
        if refusal is not None:
            raise Failure.of(refusal)
        return found

    async def _authorise(self, found: FoundKey, call: Call) -> Route:
        server_id = self._decide(found, call)
        refusal = self.plane.limiter.take(
            found.id,
            per_hour=found.rate_limit_per_hour,
            per_day=found.rate_limit_per_day,
            at=self.row.request_time.timestamp(),
        )
        if refusal is not None:
            raise Failure.of(refusal)
        return await self._route(server_id)

    def _decide(self, found: FoundKey, call: Call) -> UUID:
        """The id of the server that may be called so; Failure when it may not."""
        target = found.target
        self.row.target_server_id = target.id if target else None
        at = self.row.request_time
        refusal = decide(found.caller, target, call, slug=self.slug, at=at)
        if refusal is not None:
            raise Failure.of(refusal)
        assert target is not None  # decide refuses a missing one  # noqa: S101
        return target.id

    async def _route(self, server_id: UUID) -> Route:
        """The route to a server, of which this call's tool is not switched off."""
        route = await self.plane.find_route(server_id)
        if route is None:
            raise Failure(404, "server_not_found", f"Server '{self.slug}' was just removed.")
        if storable(self.row.tool_name) in route.tools_off:
            raise Failure(
                403,
                "method_denied",
                f"Tool '{self.row.tool_name}' of server '{route.slug}' is switched off. "
                "Use another one, or ask an administrator.",
            )
        return route

    # ------------------------------------------------------------------ forwarding

    async def _forward(self, route: Route, call: Call) -> None:
        """Pass the call on while watching whether its caller is still there."""
        work = asyncio.ensure_future(self._call(route, call))
        gone = asyncio.ensure_future(self._gone())
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise _CallerGone
            await work
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _gone(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass

    async def _call(self, route: Route, call: Call) -> None:
        upstream = self.plane.upstreams.of(route)
        permit = await self.plane.breaker.permit(route)
        reached = False
        try:
            async with self._slot(upstream, call) as waited:
                self.row.queue_ms = waited
                if waited > STALE_MS and permit.probe_until is None:
                    found = await self._authenticate()
                    route = await self._route(self._decide(found, call))
                    upstream.configure(route)
                    permit = await self.plane.breaker.permit(route)
                reached = True
                with self.span.upstream(route, self.row) if self.span else _UNTRACED:
                    await self._exchange(upstream, permit, call)
        finally:
            if not reached:
                await asyncio.shield(self.plane.breaker.released(permit))

    @contextlib.asynccontextmanager
    async def _slot(self, upstream: Upstream, call: Call) -> AsyncIterator[float]:
        """A place among the server's connections, in turn.

        What answers or cancels a call that holds a place goes past the queue, or both would wait
        for each other; so do streams, which idle for hours. Each has a bound of its own.
        """
        past_queue = None
        if call.method in STREAMS:
            past_queue = upstream.streams
        elif self.message is not None and self.message.is_reply:
            past_queue = upstream.replies
        try:
            if past_queue is not None:
                with past_queue.place():
                    yield 0.0
                return
            async with upstream.gate.slot(priority=PRIORITY.get(call.method, 1)) as waited:
                yield waited
        except QueueFull as full:
            raise _queued_too_long(upstream, full) from None

    async def _exchange(self, upstream: Upstream, permit: Permit, call: Call) -> None:
        began = time.perf_counter()
        outcome = self.plane.breaker
        try:
            response = await upstream.request(
                self.http_method,
                body=self.body if self.http_method == "POST" else None,
                headers=self._outgoing(upstream.route),
                streams=call.method in STREAMS,
            )
            async with response:
                if _is_no_answer(response):
                    raise invalid_answer(
                        upstream.route,
                        f"status {response.status}, {response.content_type or 'no content type'}",
                    )
                if response.status >= 500:
                    await outcome.failed(permit, timed_out=False)
                    self._note(response.status, "upstream_error", f"HTTP {response.status}")
                else:
                    await outcome.succeeded(permit)
                self._answer_seconds = upstream.route.processing_timeout_ms / 1000
                permit = replace(permit, probe_until=None, had_failures=True)
                await self._stream(response)
        except Failure as failure:
            if failure.server_failed:
                timed_out = failure.reason == "upstream_timeout"
                await asyncio.shield(outcome.failed(permit, timed_out=timed_out))
            else:
                await asyncio.shield(outcome.released(permit))
            raise
        except asyncio.CancelledError:
            # Who leaves at once says nothing about the server; who waited in vain does.
            silence = (time.perf_counter() - began) * 1000
            if not self.answered and silence >= upstream.route.processing_timeout_ms / 2:
                await asyncio.shield(outcome.failed(permit, timed_out=True))
            else:
                await asyncio.shield(outcome.released(permit))
            raise
        finally:
            self.row.upstream_ms = (time.perf_counter() - began) * 1000

    def _outgoing(self, route: Route) -> dict[str, str]:
        own: dict[str, str] = {}
        if route.credentials is not None:
            try:
                stored = decrypt_json(route.credentials)
            except DecryptionError as error:
                logger.error("server %s: %s", route.slug, error)  # noqa: TRY400  (one line)
                raise Failure(
                    502,
                    "upstream_invalid",
                    f"The stored credentials of server '{route.slug}' cannot be read. "
                    "Tell the gateway's operator.",
                ) from None
            own = {name.lower(): str(value) for name, value in stored.get("headers", {}).items()}
        passed = request_headers(self.headers, request_id=str(self.request_id), own=own)
        return passed if self.span is None else passed | self.span.outgoing

    async def _stream(self, response: aiohttp.ClientResponse) -> None:
        """Pass the answer on chunk by chunk, as it comes."""
        headers = response_headers(response.headers.items())
        if response.content_type == "text/event-stream":
            headers.append(("x-accel-buffering", "no"))
        await self._start(response.status, headers)
        # An event stream may last; an answer of one piece has the time of one answer.
        lasts = response.content_type == "text/event-stream"
        limit = None if lasts else self._answer_seconds
        try:
            async with asyncio.timeout(limit):
                async for chunk in response.content.iter_any():
                    self.row.response_size_bytes += len(chunk)
                    await self._body(chunk, more=True)
        except (aiohttp.ClientError, OSError) as error:
            # Too late for another status: end the stream, and tell log and breaker.
            raise _broken_stream(self.slug, error) from None
        await self._body(b"", more=False)

    # ------------------------------------------------------------------ answering

    async def _fail(self, failure: Failure) -> None:
        status = self.row.status_code if self.answered else failure.status
        self._note(status, failure.reason, failure.message)
        if failure.detail and self.plane.seldom.is_due(f"{self.slug}: {failure.reason}"):
            logger.warning("server %s cannot be reached: %s", self.slug, failure.detail)
        if failure.reason in DENIALS:
            self._deny(failure)
        if self.answered:
            # The head is out. The body is left unended, so that the server cuts the connection
            # and the caller does not take a half for the whole.
            return
        id_ = self.message.id if self.message else None
        body = error_body(failure, message_id=id_, request_id=self.request_id)
        await self._respond(failure.status, failure.response_headers(), body)

    async def _respond(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.row.response_size_bytes = len(body)
        await self._start(status, [*headers, ("content-length", str(len(body)))])
        await self._body(body, more=False)

    async def _start(self, status: int, headers: list[tuple[str, str]]) -> None:
        own = [("x-request-id", str(self.request_id)), *self._cors()]
        # As aiohttp decoded them: whatever bytes a server sent come out as they went in.
        raw = [
            (name.encode("latin-1"), value.encode("utf-8", "surrogateescape"))
            for name, value in headers + own
        ]
        self.answered = True
        self.row.status_code = self.row.status_code or status
        await self.send({"type": "http.response.start", "status": status, "headers": raw})

    async def _body(self, chunk: bytes, *, more: bool) -> None:
        await self.send({"type": "http.response.body", "body": chunk, "more_body": more})

    def _cors(self) -> list[tuple[str, str]]:
        origin = self.headers.get("origin", "").rstrip("/")
        if origin not in settings.GATEWAY_ALLOWED_ORIGINS:
            return []
        exposed = "Mcp-Session-Id, X-Request-ID, Retry-After, WWW-Authenticate"
        return [
            ("access-control-allow-origin", origin),
            ("access-control-expose-headers", exposed),
            ("vary", "Origin"),
        ]

    def _preflight(self) -> list[tuple[str, str]]:
        wanted = self.headers.get("access-control-request-headers", "")
        return [
            ("access-control-allow-methods", ALLOW),
            ("access-control-allow-headers", wanted[:1000]),
            ("access-control-max-age", "600"),
        ]

    # ------------------------------------------------------------------ remembering

    def _note(self, status: int, error_type: str, message: str) -> None:
        self.row.status_code = self.row.status_code if self.answered else status
        self.row.error_type, self.row.error_message = error_type, message

    def _deny(self, failure: Failure) -> None:
        """Leave the refusal for the audit log; of a key nothing but its prefix."""
        row = self.row
        key = presented_key(
            authorization=self.headers.get("authorization", ""),
            x_api_key=self.headers.get("x-api-key", ""),
        )
        self.plane.log.deny(
            Denial(
                reason=failure.reason,
                message=failure.message,
                method=row.rpc_method,
                tool=row.tool_name,
                server=self.slug[:NAME_LENGTH],
                server_id=row.target_server_id,
                tenant_id=row.tenant_id,
                user_id=row.user_id,
                api_key_id=row.api_key_id,
                key_prefix="" if isinstance(key, Refusal) else key.prefix,
                request_id=self.request_id,
                ip_address=row.ip_address,
                user_agent=self.headers.get("user-agent", ""),
            ),
            at=now(),
        )

    def _log(self) -> None:
        row = self.row
        row.duration_ms = (time.perf_counter() - self.began) * 1000
        if self.plane.tracing is not None and self.http_method != "OPTIONS":
            span = self.span or self.plane.tracing.begin(row, self.message, self.headers)
            span.end(row)
        self.plane.log.put(row)
        if self.found is None or self.http_method == "OPTIONS":
            return
        usage, failed = self.plane.usage, row.status_code >= 400 or bool(row.error_type)
        usage.keys[self.found.id].add(at=row.request_time, failed=failed)
        if self.found.rule_id is not None:
            usage.rules[self.found.rule_id].add(at=row.request_time, failed=failed)
        if row.tool_name and row.target_server_id and row.upstream_ms is not None:
            usage.count_tool(
                row.target_server_id,
                row.tool_name,
                at=row.request_time,
                failed=failed,
                milliseconds=row.upstream_ms,
            )


def _headers(raw: list[tuple[bytes, bytes]]) -> dict[str, str]:
    """Names in lower case; a header that comes twice is joined, as HTTP reads it."""
    found: dict[str, str] = {}
    for name, value in raw:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        found[key] = f"{found[key]}, {text}" if key in found else text
    return found


def _is_no_answer(response: aiohttp.ClientResponse) -> bool:
    """Whether an answer is none of MCP's: a web page, a redirect, no HTTP at all."""
    if not 200 <= response.status <= 599 or 300 <= response.status < 400:
        return True
    if any(map(_CONTROL.search, response.headers.values())):
        return True
    if response.status in {202, 204} or response.status >= 400 or response.method == "DELETE":
        return False
    return response.content_type not in {"application/json", "text/event-stream"}


def _queued_too_long(upstream: Upstream, full: QueueFull) -> Failure:
    slug = upstream.route.slug
    if isinstance(full, QueueTimeout):
        reason, what = "queue_timeout", "no connection came free in time"
    else:
        reason, what = "queue_full", "too many calls wait for it"
    return Failure(
        503,
        reason,
        f"Server '{slug}' is busy: {what}. Try again in {whole_seconds(full.retry_after)} s.",
        retry_after=full.retry_after,
    )


def _broken_stream(slug: str, error: Exception) -> Failure:
    if isinstance(error, TimeoutError):
        reason, what = "upstream_timeout", "fell silent in its answer"
    else:
        reason, what = "upstream_unreachable", "broke off its answer"
    return Failure(502, reason, f"Server '{slug}' {what}.", server_failed=True)
