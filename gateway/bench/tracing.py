"""What spans cost a call: `python -m gateway.bench.tracing`, without a database or a collector.

In the call's own thread: both spans with the attributes of a tool call, as the exchange makes them,
from a traceparent on. Beside it, all threads together: encoding for the collector, without sending.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from uuid import uuid4

import django
from django.utils.timezone import now
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway.settings")
django.setup()

from gateway.bench.figures import quantile  # noqa: E402  (needs the apps loaded)
from gateway.proxy.message import Message  # noqa: E402
from gateway.proxy.route import Route  # noqa: E402
from gateway.proxy.spans import Tracing  # noqa: E402
from monitoring.logwriter import RequestRow  # noqa: E402
from security.access import Call  # noqa: E402

ROUNDS = 5
SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NOT_SAMPLED = f"{SAMPLED[:-1]}0"


class _Encoded(SpanExporter):
    """Takes spans as far as the collector's bytes."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        encode_spans(spans).SerializeToString()
        return SpanExportResult.SUCCESS


def call(tracing: Tracing | None, traceparent: str) -> None:
    """What an exchange does about spans; None: nobody asked for them."""
    row = RequestRow(request_time=now(), request_id=uuid4(), method="POST", path="/mcp/search")
    row.rpc_method, row.tool_name = "tools/call", "search_code"
    row.protocol_version, row.ip_address = "2025-11-25", "203.0.113.9"
    span = None
    if tracing is not None:
        headers = {"traceparent": traceparent, "mcp-session-id": "s1"}
        span = tracing.begin(row, MESSAGE, headers)
    if span is not None:
        span.authorised()
    row.status_code, row.queue_ms, row.tenant_id = 200, 0.1, row.request_id
    if span is not None:
        with span.upstream(ROUTE, row):
            pass
    if tracing is not None and span is not None:
        span.end(row)


MESSAGE = Message(Call("tools/call", "search_code"), 1)
ROUTE = Route(
    server_id=uuid4(),
    slug="search",
    endpoint_url="https://search.example.org/mcp",
    transport_type="http",
    credentials=None,
    breaker_id=uuid4(),
    breaker_state="closed",
    failure_count=0,
    success_count=0,
    failure_threshold=5,
    success_threshold=1,
    last_state_change=now(),
    breaker_timeout_ms=60_000,
    probe_until=None,
    pool_max_size=10,
    pool_timeout_ms=1000,
    idle_timeout_ms=1000,
    queue_max_size=10,
    processing_timeout_ms=1000,
    priority_levels=3,
    is_accepting_requests=True,
    tools_off=[],
)


def cost(work: Callable[[], None], calls: int) -> tuple[float, float]:
    """Microseconds of CPU a call: of this thread, and of the process; medians of some rounds."""
    own, whole = [], []
    for _ in range(ROUNDS):
        thread, process = time.thread_time_ns(), time.process_time_ns()
        for _ in range(calls):
            work()
        own.append((time.thread_time_ns() - thread) / 1000 / calls)
        whole.append((time.process_time_ns() - process) / 1000 / calls)
    return quantile(own, 0.5), quantile(whole, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=5_000)
    calls = parser.parse_args().calls
    tracing = Tracing(BatchSpanProcessor(_Encoded()))
    arms: dict[str, Callable[[], None]] = {
        "off": lambda: call(None, SAMPLED),
        "on": lambda: call(tracing, SAMPLED),
        "on, but the caller's trace is not recorded": lambda: call(tracing, NOT_SAMPLED),
    }
    sys.stdout.write("microseconds of CPU a call: its own thread, all threads\n")
    for name, work in arms.items():
        own, whole = cost(work, calls)
        sys.stdout.write(f"{name:45}{own:8.1f}{whole:8.1f}\n")


if __name__ == "__main__":
    main()
