"""`/metrics` for Prometheus: who may read it, and the page. See docs/metrics.md."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.utils.timezone import now
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder, generate_latest
from prometheus_client.registry import Collector

from gateway.proxy.failures import Failure
from gateway.proxy.figures import FIGURES, Board, Sample, own_samples
from gateway.proxy.memory import DATABASE_ERRORS
from gateway.proxy.readings import Reading, Readings
from monitoring.alerts.metrics import metric_of
from monitoring.logwriter import Status
from monitoring.logwriter.writer import default_folder
from registry.db.ids import uuid7
from security.access import refuse_watching
from security.addresses import client_address
from security.authentication import check_state, presented_key, proves, refuse_unknown_key
from security.keys import ParsedKey, plain_hash
from security.refusals import Refusal

if TYPE_CHECKING:
    from gateway.proxy.exchange import Send
    from gateway.proxy.plane import DataPlane

__all__ = ["MetricsPage"]

logger = logging.getLogger(__name__)

PREFIX = "mcp_gateway_"
SEVERITIES = ("info", "warning", "critical")
BREAKER_STATES = ("closed", "half_open", "open")
DAY = 86_400
# Metrics of the view become names of Prometheus's.
_NAME = re.compile(r"[a-z][a-z0-9_]*")
MAX_READERS = 1000


class MetricsPage:
    """Answers scrapes of one process. `publish` is called every few seconds besides.

    `clock` gives monotonic seconds.
    """

    def __init__(self, plane: DataPlane, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._plane = plane
        self._readings = Readings(plane.pool, plane.contact, clock=clock)
        self._board = Board(default_folder() / "processes", name=plane.gauges.name)
        # Keys that were let in last time, by their hash: they may see how the processes do
        # while PostgreSQL cannot be asked about them, for as long as that lasts.
        self._readers: set[str] = set()

    async def publish(self) -> None:
        """Tell the processes beside this one its figures."""
        await asyncio.to_thread(self._board.write, self._own(self._plane.log.status))

    def call_off(self) -> list[asyncio.Task[None]]:
        """Read no more figures; returns what was under way and is cancelled, to be waited for."""
        return self._readings.call_off()

    async def leave(self) -> None:
        await asyncio.to_thread(self._board.leave)

    async def answer(self, scope: dict[str, Any], send: Send) -> None:
        """Answer one request."""
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in scope["headers"]
        }
        try:
            await self._let_in(scope, headers)
            encode, content_type = _encoder(headers.get("accept", ""))
            body = await self._body(encode)
            extra = [("content-type", content_type), ("cache-control", "no-store")]
            await _send(send, 200, extra, b"" if scope["method"] == "HEAD" else body)
        except Failure as failure:
            await _refuse(send, failure)

    # ------------------------------------------------------------------ who may read

    async def _let_in(self, scope: dict[str, Any], headers: Mapping[str, str]) -> None:
        """Failure unless the request may see the page."""
        if scope["method"] not in {"GET", "HEAD"}:
            allow = (("allow", "GET, HEAD"),)
            raise Failure(405, "invalid_request", "/metrics can be read only.", headers=allow)
        if settings.GATEWAY_METRICS_OPEN:
            return
        key = presented_key(
            authorization=headers.get("authorization", ""), x_api_key=headers.get("x-api-key", "")
        )
        if isinstance(key, Refusal):
            raise Failure.of(key)
        hash_ = plain_hash(key)
        try:
            refusal = await self._refusal(key, ip=_address(scope, headers))
        except DATABASE_ERRORS:
            if hash_ not in self._readers:
                raise Failure(
                    503,
                    "database_unavailable",
                    "The gateway cannot reach its database, so it cannot check this key. "
                    "One that has read /metrics before is let in.",
                    retry_after=5,
                ) from None
            return
        if refusal is not None:
            self._readers.discard(hash_)
            raise Failure.of(refusal)
        if len(self._readers) < MAX_READERS:
            self._readers.add(hash_)

    async def _refusal(self, key: ParsedKey, *, ip: str | None) -> Refusal | None:
        plane, at = self._plane, now()
        found = await plane.find_holder(key)
        if found is None:
            return refuse_unknown_key()
        # A plain key has no salted hash: finding it was the proof.
        if found.key_hash and not proves(found, secret=key.secret):
            plane.usage.failed_attempts[found.id].add(at=at, failed=True)
            return refuse_unknown_key()
        refusal = check_state(found, ip=ip, at=at) or refuse_watching(found.caller)
        plane.usage.keys[found.id].add(at=at, failed=refusal is not None)
        return refusal

    # ------------------------------------------------------------------ what they see

    async def _body(self, encode: Callable[[Collector], bytes]) -> bytes:
        reading, log = await self._readings.get(), self._plane.log.status
        own = {self._plane.gauges.name: self._own(log)}

        def made() -> bytes:
            processes = self._board.others() | own
            return encode(_Page(_families(reading, processes, spool=log.spooled_bytes)))

        return await asyncio.to_thread(made)  # off the loop, on which calls wait

    def _own(self, log: Status) -> list[Sample]:
        return own_samples(self._plane, log=log)


class _Page(Collector):
    """The families of one answer, each name once."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families: dict[str, Metric] = {}
        for family in families:
            self._families.setdefault(family.name, family)

    def collect(self) -> Iterable[Metric]:
        return self._families.values()


def _families(
    reading: Reading | None, processes: Mapping[str, list[Sample]], *, spool: int
) -> Iterator[Metric]:
    """The view's come first: its names are given, and would win."""
    if reading is not None:
        yield from _of_view(reading)
        yield from _of_calls(reading)
        yield from _of_database(reading)
    up = "1: the figures of PostgreSQL are here, at most some seconds old."
    yield _gauge("database_up", up, {"": float(reading is not None)})
    yield _gauge("spool_bytes", "Log rows in files of this machine, in bytes.", {"": spool})
    yield from _of_processes(processes)


def _of_view(reading: Reading) -> Iterator[Metric]:
    """A gauge a metric of performance_monitoring."""
    values: defaultdict[str, dict[str, float]] = defaultdict(dict)
    units: dict[str, str] = {}
    for metric, subject, value, unit in reading.monitoring:
        if value is not None and _NAME.fullmatch(metric):
            named = subject or ""
            # Two standbys may have one name; here it may stand once.
            values[metric][named] = max(value, values[metric].get(named, value))
            units[metric] = unit or ""
    for metric, found in values.items():
        yield _gauge(metric, _help(metric, units[metric]), found, label="subject")


def _help(metric: str, unit: str) -> str:
    """What a metric of the view is, and its unit; the view may be newer than this program."""
    about = metric_of(metric).about or f"{metric} of performance_monitoring"
    return f"{about[0].upper()}{about[1:]}. Unit: {unit or 'none'}."


def _of_calls(reading: Reading) -> Iterator[Metric]:
    totals = reading.totals
    yield CounterMetricFamily(PREFIX + "requests", "Calls ever logged.", value=totals.requests)
    failed = "Of these, calls answered with a status of 400 or above."
    yield CounterMetricFamily(PREFIX + "request_errors", failed, value=totals.errors)
    yield HistogramMetricFamily(
        PREFIX + "request_duration_seconds",
        "Durations of calls, from the gateway's first byte to its last.",
        buckets=[(_bound(bound), count) for bound, count in totals.up_to()],
        sum_value=totals.seconds,
    )


def _of_database(reading: Reading) -> Iterator[Metric]:
    alerts = {severity: reading.alerts.get(severity, 0) for severity in SEVERITIES}
    yield _gauge("alerts_firing", "Alert rules that fire.", alerts, label="severity")
    breakers = {state: reading.breakers.get(state, 0) for state in BREAKER_STATES}
    yield _gauge("breakers", "Circuit breakers.", breakers, label="state")
    ahead = {table: seconds / DAY for table, seconds in reading.partitions.items()}
    help_ = "Days until a log's last partition ends."
    yield _gauge("partitions_ahead_days", help_, ahead, label="table")
    took = "How long the last reading of PostgreSQL's figures took."
    yield _gauge("database_reading_seconds", took, {"": reading.seconds})
    yield from _of_slow_figures(reading)


def _of_slow_figures(reading: Reading) -> Iterator[Metric]:
    well = "0: the last reading of the slow figures (sizes, statistics, partitions) failed."
    yield _gauge("slow_figures_up", well, {"": float(reading.slow_is_read)})
    if reading.slow_age is not None:
        age = "How long ago the slow figures that are shown were read, in seconds."
        yield _gauge("slow_figures_age_seconds", age, {"": reading.slow_age})


def _of_processes(processes: Mapping[str, list[Sample]]) -> Iterator[Metric]:
    families: dict[str, Metric] = {}
    for process, samples in sorted(processes.items()):
        for name, labels, value in samples:
            family = families.setdefault(name, _of_process(name))
            family.add_metric([process, *labels], value)  # type: ignore[attr-defined]
    return iter(families.values())


def _of_process(name: str) -> Metric:
    figure = FIGURES[name]
    kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
    return kind(PREFIX + name, figure.help, labels=("process", *figure.labels))


def _gauge(name: str, help_: str, values: Mapping[str, float], *, label: str = "") -> Metric:
    """A gauge a value of its label; without a label there is one value."""
    family = GaugeMetricFamily(PREFIX + name, help_, labels=[label] if label else [])
    for named, value in values.items():
        family.add_metric([named] if label else [], value)
    return family


def _bound(seconds: float) -> str:
    return "+Inf" if math.isinf(seconds) else str(seconds)


def _encoder(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    """What the client reads: OpenMetrics, or the older text for whoever says something odd."""
    try:
        return choose_encoder(accept)
    except ValueError:
        return generate_latest, "text/plain; version=0.0.4; charset=utf-8"


# ------------------------------------------------------------------ HTTP


def _address(scope: dict[str, Any], headers: Mapping[str, str]) -> str | None:
    client = scope.get("client")
    return client_address(
        peer=client[0] if client else None,
        forwarded_for=headers.get("x-forwarded-for", ""),
        trusted=settings.GATEWAY_TRUSTED_PROXIES,
    )


async def _refuse(send: Send, failure: Failure) -> None:
    """In the shape of the REST API's errors."""
    id_ = str(uuid7())
    body = {"detail": failure.message, "reason": failure.reason, "request_id": id_}
    headers = failure.response_headers()
    await _send(send, failure.status, headers, json.dumps(body).encode(), request_id=id_)


async def _send(
    send: Send,
    status: int,
    headers: Iterable[tuple[str, str]],
    body: bytes,
    *,
    request_id: str = "",
) -> None:
    own = (("x-request-id", request_id or str(uuid7())), ("content-length", str(len(body))))
    raw = [(name.encode(), value.encode("latin-1")) for name, value in (*headers, *own)]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
