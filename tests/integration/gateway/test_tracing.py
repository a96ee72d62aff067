"""The spans that calls leave, and that a collector which is away costs none of them anything."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id

from gateway.proxy.plane import DataPlane
from gateway.proxy.spans import Tracing
from gateway.proxy.tracing import tracing_from_environment
from registry.models import MCPServer
from tests.integration.gateway.conftest import CALL, Scene, running_gateway, wait_until
from tests.peers import Peer, status
from tests.receiver import receiving

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
BY_HTTP, BY_MESSAGE = f"00-{TRACE}-{PARENT}-01", f"00-{'4' * 32}-{'5' * 16}-01"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def gateway_url(transactional_db: None, settings: Any, exporter: Any) -> Iterator[str]:
    settings.GATEWAY_ALLOW_PRIVATE_UPSTREAMS = True
    plane = DataPlane(tracing=Tracing(SimpleSpanProcessor(exporter)))
    with running_gateway(plane) as url:
        yield url


def spans_of(exporter: InMemorySpanExporter, *, count: int) -> list[ReadableSpan]:
    """Those of one call, in the order in which they ended; an answer is out before its span."""
    wait_until(lambda: len(exporter.get_finished_spans()) >= count)
    spans = list(exporter.get_finished_spans())
    exporter.clear()
    assert len(spans) == count
    return spans


def traceparent(span: ReadableSpan) -> str:
    context = span.get_span_context()
    return f"00-{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}-01"


def test_a_call_is_two_spans_of_its_caller_s_trace(scene: Scene, exporter: Any) -> None:
    response = scene.call(headers={"traceparent": BY_HTTP, "mcp-session-id": "s1"})
    client, server = spans_of(exporter, count=2)
    assert [span.name for span in (server, client)] == ["tools/call add"] * 2
    assert (server.kind, client.kind) == (SpanKind.SERVER, SpanKind.CLIENT)
    assert format_span_id(server.parent.span_id) == PARENT
    assert client.parent.span_id == server.context.span_id
    assert {format_trace_id(span.context.trace_id) for span in (server, client)} == {TRACE}
    assert scene.peer.seen[-1]["headers"]["traceparent"] == traceparent(client)
    common = {
        "mcp.method.name": "tools/call",
        "gen_ai.tool.name": "add",
        "gen_ai.operation.name": "execute_tool",
        "jsonrpc.request.id": "1",
        "mcp.session.id": "s1",
        "http.response.status_code": 200,
    }
    assert common.items() <= server.attributes.items()
    assert common.items() <= client.attributes.items()
    assert client.attributes["server.port"] == scene.peer.port
    assert server.attributes["mcp_gateway.tenant_id"] == str(scene.tenant.id)
    assert server.attributes["mcp_gateway.request_id"] == response.headers["x-request-id"]
    assert server.attributes["mcp_gateway.queue_ms"] < 1000
    assert [event.name for event in server.events] == ["authorised"]
    assert server.start_time < client.start_time < client.end_time < server.end_time
    assert scene.row(response).request_metadata == {"trace_id": TRACE}

    # What the message says goes first; the request's own trace is linked.
    meta = {"_meta": {"traceparent": BY_MESSAGE, "tracestate": "vendor=1"}}
    scene.call({**CALL, "params": {"name": "add", **meta}}, headers={"traceparent": BY_HTTP})
    client, server = spans_of(exporter, count=2)
    assert format_trace_id(server.context.trace_id) == "4" * 32
    assert [format_trace_id(link.context.trace_id) for link in server.links] == [TRACE]
    assert scene.peer.seen[-1]["headers"]["tracestate"] == "vendor=1"

    # A caller who traces nothing, or says nonsense, begins a trace.
    scene.call(
        {**CALL, "id": "\ud800", "params": {"name": "add", "_meta": {"traceparent": 7}}},
        headers={"traceparent": "00-nonsense"},
    )
    client, server = spans_of(exporter, count=2)
    assert server.parent is None
    assert server.attributes["jsonrpc.request.id"].encode()


def test_what_fails_says_why(scene: Scene, exporter: Any) -> None:
    scene.call(key="", headers={"traceparent": BY_HTTP})
    [refused] = spans_of(exporter, count=1)
    assert (refused.name, refused.attributes["error.type"]) == ("POST", "missing_credentials")
    assert (refused.status.status_code, format_span_id(refused.parent.span_id)) == (
        StatusCode.ERROR,
        PARENT,
    )

    scene.call(b"{}")
    [unreadable] = spans_of(exporter, count=1)
    assert unreadable.attributes["error.type"] == "invalid_request"

    scene.peer.behave = status(503)
    scene.call()
    for span in spans_of(exporter, count=2):
        assert span.attributes["error.type"] == "upstream_error"
        assert span.attributes["http.response.status_code"] == 503

    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}/mcp"
        MCPServer.objects.filter(id=scene.server.id).update(endpoint_url=address)
        response = scene.call()
    assert response.status_code == 502
    client, server = spans_of(exporter, count=2)
    assert client.attributes["error.type"] == "upstream_unreachable"
    assert server.attributes["error.type"] == "upstream_unreachable"
    assert server.status.description == response.json()["error"]["message"]

    scene.call(method="OPTIONS")
    assert not exporter.get_finished_spans()


@pytest.mark.usefixtures("transactional_db")
@pytest.mark.parametrize("is_there", [True, False])
def test_spans_go_to_the_collector_of_the_environment(
    is_there: bool, peer: Peer, monkeypatch: Any, settings: Any
) -> None:
    settings.GATEWAY_ALLOW_PRIVATE_UPSTREAMS = True
    monkeypatch.setenv("OTEL_SERVICE_NAME", "gateway-of-tests")
    if not is_there:
        monkeypatch.setattr("gateway.proxy.spans.LAST_SPANS_SECONDS", 0.2)
    with receiving() as receiver, socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # not listening: whoever connects is refused
        port = receiver.url.split(":")[2].partition("/")[0] if is_there else nobody.getsockname()[1]
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        with running_gateway() as url:
            scene = traced_scene(url, peer)
            began = time.monotonic()
            for _ in range(20):
                assert scene.send().status_code == 200
            assert time.monotonic() - began < 5
            ending = time.monotonic()
        assert time.monotonic() - ending < 10  # a collector that is away holds nobody up
        paths = {call.path for call in receiver.calls}
        sent = [span for call in receiver.calls for span in spans_in(call.body)]
    assert paths == ({"/v1/traces"} if is_there else set())
    assert sent == (["gateway-of-tests: tools/call add"] * 40 if is_there else [])


def traced_scene(url: str, peer: Peer) -> Scene:
    from tests.factories import EnhancedAPIKeyFactory, MCPServerFactory, TenantFactory

    tenant = TenantFactory()
    server = MCPServerFactory(tenant=tenant, endpoint_url=peer.url)
    return Scene(url, tenant, server, EnhancedAPIKeyFactory(tenant=tenant), peer)


def spans_in(body: bytes) -> list[str]:
    found = []
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        names = {one.key: one.value.string_value for one in resource.resource.attributes}
        for scope in resource.scope_spans:
            found += [f"{names['service.name']}: {span.name}" for span in scope.spans]
    return found


COLLECTOR = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({}, ""),
        ({**COLLECTOR, "OTEL_SDK_DISABLED": "true"}, ""),
        ({**COLLECTOR, "OTEL_TRACES_EXPORTER": "none"}, ""),
        ({**COLLECTOR, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "write http/protobuf"),
        (COLLECTOR, "install the extra `otel`"),
    ],
)
def test_calls_go_on_without_spans(
    environ: dict[str, str], told: str, monkeypatch: Any, caplog: Any
) -> None:
    monkeypatch.setitem(sys.modules, "gateway.proxy.spans", None)  # as if it were not installed
    with caplog.at_level(logging.WARNING):
        assert tracing_from_environment(environ) is None
    assert told in caplog.text
    assert bool(told) == bool(caplog.text)


def test_a_value_that_the_sdk_refuses_stops_no_gateway(monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "100")  # below a batch
    assert tracing_from_environment(COLLECTOR) is None
    assert "check the OTEL_* variables" in caplog.text


def test_nothing_is_imported_that_nobody_asked_for() -> None:
    look = (
        "import json, sys; from gateway.proxy.tracing import tracing_from_environment as t; "
        "t({}); print(json.dumps([m for m in sys.modules if m.startswith('opentelemetry')]))"
    )
    found = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == []
