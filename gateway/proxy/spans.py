"""Spans of calls, named as OpenTelemetry's conventions for MCP name them (docs/tracing.md).

https://opentelemetry.io/docs/specs/semconv/gen-ai/mcp/
The provider is this module's own: what libraries would trace by the global one stays off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from threading import Thread
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    Link,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from gateway import __version__
from gateway.proxy.failures import Failure
from gateway.proxy.message import Message
from gateway.proxy.route import Route
from monitoring.logwriter import RequestRow, storable

__all__ = ["CallSpan", "Tracing", "otlp_tracing"]

Attributes = dict[str, AttributeValue]

# What a method's name or URI is called. A URI is no part of the span's name: there are too many.
NAMED = {
    "tools/call": "gen_ai.tool.name",
    "prompts/get": "gen_ai.prompt.name",
    "resources/read": "mcp.resource.uri",
    "resources/subscribe": "mcp.resource.uri",
    "resources/unsubscribe": "mcp.resource.uri",
}
IN_SPAN_NAME = {"tools/call", "prompts/get"}
LONGEST = 255
LAST_SPANS_SECONDS = 2.0  # the SDK itself would go on for half a minute
_w3c = TraceContextTextMapPropagator()


def otlp_tracing() -> Tracing:
    """To the collector that the environment names, in batches, by a thread of its own.

    Both take their settings from OTEL_EXPORTER_OTLP_* and OTEL_BSP_*. A queue that is full drops
    spans, so a collector that is slow or away holds up no call.
    """
    return Tracing(BatchSpanProcessor(OTLPSpanExporter()))


class Tracing:
    """Where one process's spans begin and go."""

    def __init__(self, processor: SpanProcessor) -> None:
        own = {"service.name": "mcp-gateway", "service.version": __version__}
        stated = OTELResourceDetector().detect().attributes
        resource = Resource.create({**own, **stated})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("gateway.proxy", __version__)

    def begin(
        self, row: RequestRow, message: Message | None, headers: Mapping[str, str]
    ) -> CallSpan:
        """The span of a call that came in at the row's time, as part of its caller's trace.

        What the message says of its trace goes before the HTTP request's headers, which may carry
        another one: that is linked.
        """
        parent, links = _origin(message, headers)
        common = _common(row, message, headers)
        name = _name(row, message)
        span = self._tracer.start_span(
            name,
            context=parent,
            kind=SpanKind.SERVER,
            attributes={
                **common,
                "client.address": row.ip_address or "",
                "http.request.method": row.method,
                "mcp_gateway.request_id": str(row.request_id),
            },
            links=links,
            start_time=int(row.request_time.timestamp() * 1e9),
        )
        return CallSpan(self, span, name, common)

    def begin_upstream(self, call: CallSpan, route: Route) -> Span:
        return self._tracer.start_span(
            call.name,
            context=call.context,
            kind=SpanKind.CLIENT,
            attributes={
                **call.common,
                **_address(route.endpoint_url),
                "mcp_gateway.server": route.slug,
            },
        )

    async def stop(self) -> None:
        """Send what waits, for as long as a collector that answers needs; the rest is lost."""
        done, loop = asyncio.Event(), asyncio.get_running_loop()

        def shut_down() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # the loop is closed: nobody waited
                loop.call_soon_threadsafe(done.set)

        Thread(target=shut_down, name="last spans", daemon=True).start()
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_SPANS_SECONDS):
                await done.wait()


class CallSpan:
    """The span of one call at the gateway; `outgoing` is what the server is told of the trace."""

    def __init__(self, tracing: Tracing, span: Span, name: str, common: Attributes) -> None:
        self._tracing, self._span = tracing, span
        self.name, self.common = name, common
        self.context = set_span_in_context(span, Context())
        self.outgoing: dict[str, str] = {}

    def authorised(self) -> None:
        self._span.add_event("authorised")

    @contextmanager
    def upstream(self, route: Route, row: RequestRow) -> Iterator[None]:
        """The span of the exchange with the server: inside, `outgoing` names it."""
        span = self._tracing.begin_upstream(self, route)
        _w3c.inject(self.outgoing, set_span_in_context(span, Context()))
        try:
            yield
        except Failure as failure:
            _failed(span, failure.reason, failure.message)
            raise
        except asyncio.CancelledError:
            _failed(span, "cancelled", "The caller went away.")
            raise
        except Exception as error:
            _failed(span, type(error).__name__, "")
            raise
        else:
            span.set_attribute("http.response.status_code", row.status_code)
            _failed(span, row.error_type, row.error_message)
        finally:
            span.end()

    def end(self, row: RequestRow) -> None:
        """With what the log row says of the call; the row then names the trace."""
        span = self._span
        if span.is_recording():
            row.request_metadata["trace_id"] = format_trace_id(span.get_span_context().trace_id)
            span.set_attributes(_outcome(row))
            _failed(span, row.error_type, row.error_message)
        span.end()


def _origin(
    message: Message | None, headers: Mapping[str, str]
) -> tuple[Context, tuple[Link, ...]]:
    """The context that a call continues, and a link to the other one if there are two."""
    by_http = _w3c.extract(headers, Context())
    if message is None or not message.trace:
        return by_http, ()
    by_message = _w3c.extract(message.trace, Context())
    stated, other = map(_span_of, (by_message, by_http))
    if not stated.is_valid:
        return by_http, ()
    return by_message, (Link(other),) if other.is_valid and other != stated else ()


def _span_of(context: Context) -> SpanContext:
    return get_current_span(context).get_span_context()


def _name(row: RequestRow, message: Message | None) -> str:
    """The method and its tool or prompt; of what was never read HTTP's method alone."""
    if message is not None and row.rpc_method in IN_SPAN_NAME:
        return f"{row.rpc_method} {_text(message.call.name)}"
    return _text(row.rpc_method) or row.method


def _common(row: RequestRow, message: Message | None, headers: Mapping[str, str]) -> Attributes:
    """What both spans of a call say."""
    found: Attributes = {"network.transport": "tcp", "network.protocol.name": "http"}
    if row.rpc_method:
        found["mcp.method.name"] = _text(row.rpc_method)
    if message is not None:
        if message.id is not None:
            found["jsonrpc.request.id"] = _text(str(message.id))
        if named := NAMED.get(message.call.method):
            found[named] = _text(message.call.name)
    if row.rpc_method == "tools/call":
        found["gen_ai.operation.name"] = "execute_tool"
    if row.protocol_version:
        found["mcp.protocol.version"] = _text(row.protocol_version)
    if session := headers.get("mcp-session-id"):
        found["mcp.session.id"] = _text(session)
    return found


def _address(url: str) -> Attributes:
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:  # no URL: connecting will tell
        return {}
    return {"server.address": parts.hostname or "", "server.port": port}


def _text(text: str) -> str:
    """As the log keeps it; what is no Unicode would cost the whole batch."""
    return storable(text)[:LONGEST]


def _outcome(row: RequestRow) -> Attributes:
    named = {
        "mcp_gateway.tenant_id": row.tenant_id,
        "mcp_gateway.api_key_id": row.api_key_id,
        "mcp_gateway.server_id": row.target_server_id,
    }
    found: Attributes = {name: str(value) for name, value in named.items() if value is not None}
    found["http.response.status_code"] = row.status_code
    if row.queue_ms is not None:
        found["mcp_gateway.queue_ms"] = row.queue_ms
    return found


def _failed(span: Span, error_type: str, message: str) -> None:
    if error_type:
        span.set_attribute("error.type", error_type)
        span.set_status(Status(StatusCode.ERROR, _text(message) or None))
