"""Operators' pages, timed in this process: what each takes, and what it asks the database.

A page is asked as a browser asks it, through all middleware, in the transaction and the role that
the gateway gives it; without the network, and with the templates compiled by a first request that
is not counted.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any

from django.apps import apps
from django.db import connection
from django.test import Client
from django.urls import reverse
from django.utils.http import urlencode
from django.utils.timezone import now

from gateway.admin_site import ROOMS
from gateway.bench.figures import quantile
from gateway.proxy.metrics import MetricsPage
from gateway.proxy.plane import DataPlane
from monitoring.models import AuditLog, PerformanceAlert, RequestLog
from registry.admin_keyset import Place
from registry.db.partitions import partitioned_tables
from registry.models import MCPServer
from security.models import User

__all__ = ["METRICS", "Figures", "Page", "measure", "measure_metrics", "pages"]

GOAL_MS, GOAL_STATEMENTS = 300.0, 20
METRICS, METRICS_GOAL_MS = "/metrics", 20.0
# A log's day that is so small may be read whole: that is quicker than any index.
SMALL = 10_000
# A search by stretches (registry.db.search) may read its partitions whole, as its time allows.
SEARCHED = 2_000_000
# What an index leads to, or the id of a request: all else is searched for.
LED = {"window", "before", "tenant_id", "target_server_id", "q"}
SCRAPE_SECONDS = 15.0  # between two scrapes of Prometheus, in docs/metrics.md
PAUSE_SECONDS = 0.1  # instead of these: slow figures are read after the answer, before the next one
Filters = dict[str, dict[str, Any]]  # a page's name and its query
HOUR, DAY, WEEK, MONTH = "1", "24", "168", "720"


@dataclass(frozen=True, slots=True)
class Page:
    name: str
    path: str
    headers: dict[str, str] = field(default_factory=dict)
    searches: bool = False


@dataclass(frozen=True, slots=True)
class Figures:
    """One page: milliseconds of each request, and the statements of the longest one.

    `cpu_ms` is this process's own work, the median: a busy machine makes a request longer, and
    that not by much. `scanned` counts rows of the logs that one request reads without an index,
    `counts` says that it counts a log's rows.
    """

    page: Page
    times: list[float]
    cpu_ms: float
    goal_ms: float
    statements: int | None = None
    goal_statements: int | None = None
    slowest_ms: float = 0.0
    slowest: str = ""
    scanned: int = 0
    counts: bool = False

    @property
    def median(self) -> float:
        return quantile(self.times, 0.5)

    @property
    def missed(self) -> list[str]:
        """Which goals the page misses."""
        many = (self.statements or 0) > (self.goal_statements or 0)
        found = {
            "time": self.median > self.goal_ms,
            "statements": self.goal_statements is not None and many,
            "scan": self.scanned > (SEARCHED if self.page.searches else SMALL),
            "count": self.counts,
        }
        return [name for name, is_so in found.items() if is_so]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {
            "median_ms": self.median,
            "max_ms": max(self.times),
            "missed": self.missed,
        }


# --------------------------------------------------------------------------- which pages


def pages() -> list[Page]:
    """Every page with the filters that there are, by ids of rows that the logs hold.

    LookupError without a row in either log.
    """
    return [*_figures(), *_request_log(), *_audit_log(), *_lists(), *_rows(), *_api()]


def _figures() -> Iterator[Page]:
    index = reverse("admin:index")
    for name, window in (("hour", HOUR), ("day", DAY), ("week", WEEK)):
        yield Page(f"overview, {name}", f"{index}?window={window}")
    yield Page(
        "overview, live part",
        f"{index}?window={DAY}",
        {"hx-request": "true", "hx-target": "gw-live"},
    )
    yield Page("database", reverse("admin:database"))


def _request_log() -> Iterator[Page]:
    row = _newest(RequestLog)
    deep = {hours: _far_down(RequestLog, "request_time", hours) for hours in (DAY, WEEK, MONTH)}
    filters: Filters = {
        "first page": {},
        "far down": deep[DAY],
        "last hour": {"window": HOUR},
        "7 days, far down": deep[WEEK],
        "30 days, far down": deep[MONTH],
        "tenant": {"tenant_id": row.tenant_id},
        "tenant, 30 days, far down": {"tenant_id": row.tenant_id, **deep[MONTH]},
        **{f"outcome {name}": {"outcome": name} for name in ("ok", "refused", "failed")},
        **{f"over {ms} ms": {"slower": ms} for ms in (100, 1000, 10000)},
        "over 10000 ms, 30 days": {"slower": 10000, "window": MONTH},
        "tool that never was, 30 days": {"tool_name": "nothing", "window": MONTH},
        "tenant, error that never was, 30 days": {
            "tenant_id": row.tenant_id,
            "error_type": "nothing",
            "window": MONTH,
        },
        "server": {"target_server_id": row.target_server_id},
        "server, failed, 30 days": {
            "target_server_id": row.target_server_id,
            "outcome": "failed",
            "window": MONTH,
        },
        "API key": {"api_key_id": row.api_key_id},
        "search": {"q": row.request_id},
        "search, 30 days": {"q": row.request_id, "window": MONTH},
    }
    yield from _log("request log", "monitoring_requestlogentry", row, filters)


def _audit_log() -> Iterator[Page]:
    row = _newest(AuditLog)
    filters: Filters = {
        "first page": {},
        "far down": _far_down(AuditLog, "timestamp", DAY),
        "last hour": {"window": HOUR},
        "30 days, far down": _far_down(AuditLog, "timestamp", MONTH),
        "tenant": {"tenant_id": row.tenant_id},
        "action": {"action": row.action.partition(".")[0]},
        "action that never was, 30 days": {"action": "nothing", "window": MONTH},
        "done": {"success": "yes"},
        "refused": {"success": "no"},
        "origin": {"origin": row.service_name},
        "resource": {"resource_id": row.resource_id},
        "resource, 30 days": {"resource_id": row.resource_id, "window": MONTH},
        "search": {"q": row.request_id or row.id},
        "search, 30 days": {"q": row.request_id or row.id, "window": MONTH},
    }
    yield from _log("audit log", "monitoring_auditlogentry", row, filters)


def _newest(log: type[Any]) -> Any:
    row = log.objects.order_by("-id").exclude(tenant_id=None).first()
    if row is None:
        raise LookupError(f"{log._meta.db_table} is empty: fill it first.")
    return row


def _far_down(log: type[Any], time_field: str, hours: str) -> dict[str, Any]:
    """The query of a page that begins when nine tenths of the window are passed."""
    at = now() - timedelta(hours=int(hours)) * 0.9
    row = log.objects.filter(**{f"{time_field}__gte": at}).order_by(time_field).first()
    if row is None:
        return {"window": hours}
    return {"window": hours, "before": Place(getattr(row, time_field), row.id)}


def _log(title: str, name: str, row: Any, filters: Filters) -> Iterator[Page]:
    url = reverse(f"admin:{name}_changelist")
    for filtered, query in filters.items():
        given = {key: str(value) for key, value in query.items()}
        address = f"{url}?{urlencode(given)}" if given else url
        yield Page(f"{title}, {filtered}", address, searches=not query.keys() <= LED)
    yield Page(f"{title}, one row", reverse(f"admin:{name}_change", args=[row.id]))


def _lists() -> Iterator[Page]:
    """The other lists of the sidebar."""
    logs = {"monitoring.RequestLogEntry", "monitoring.AuditLogEntry"}
    for room in ROOMS.values():
        for label, _ in room:
            if label in logs:
                continue
            options = apps.get_model(label)._meta
            url = reverse(f"admin:{options.app_label}_{options.model_name}_changelist")
            yield Page(f"list: {options.verbose_name_plural}", url)
    servers = reverse("admin:registry_mcpserver_changelist")
    yield Page("list: servers, searched", f"{servers}?q=finds")
    tools = reverse("admin:registry_servertool_changelist")
    yield Page("list: tools, searched", f"{tools}?q=tool")


def _rows() -> Iterator[Page]:
    """A server and an alert, which have lists of their own."""
    for model in (MCPServer, PerformanceAlert):
        row = model._default_manager.order_by("id").first()
        if row is not None:
            options = model._meta
            name = f"admin:{options.app_label}_{options.model_name}_change"
            yield Page(f"one {options.verbose_name}", reverse(name, args=[row.pk]))


def _api() -> Iterator[Page]:
    since = urlencode({"since": f"{now() - timedelta(days=30):%Y-%m-%dT%H:%M:%SZ}"})
    for log, never in (("request-logs", "tool"), ("audit-logs", "action")):
        yield Page(f"API: {log}, first page", f"/api/v1/{log}")
        searched = f"/api/v1/{log}?{never}=nothing&{since}"
        yield Page(f"API: {log}, {never} that never was", searched, searches=True)


# --------------------------------------------------------------------------- timing them


def measure(page: Page, *, user: User, times: int) -> Figures:
    """Ask a page so many times, after once that is not counted."""
    client = _signed_in(user)
    _ask(client, page)
    before, asked, cpu = _scanned(), [], []
    for _ in range(times):
        statements: list[tuple[float, str]] = []
        with connection.execute_wrapper(_noting(statements)):
            began, worked = time.perf_counter(), time.process_time()
            _ask(client, page)
            cpu.append((time.process_time() - worked) * 1000)
            asked.append(((time.perf_counter() - began) * 1000, statements))
    _, longest = max(asked, key=lambda one: one[0])
    slowest_ms, slowest = max(longest, default=(0.0, ""))
    return Figures(
        page=page,
        times=[taken for taken, _ in asked],
        cpu_ms=quantile(cpu, 0.5),
        goal_ms=GOAL_MS,
        statements=max(len(statements) for _, statements in asked),
        goal_statements=GOAL_STATEMENTS,
        slowest_ms=slowest_ms,
        slowest=slowest,
        scanned=(_scanned() - before) // times,
        counts=any(_counts_a_log(statement) for _, statement in longest),
    )


def following(page: Page, *, user: User) -> Page | None:
    """The page after one of the API, by its keyset."""
    answer = _ask(_signed_in(user), page).json()
    link = answer.get("next")
    return Page(page.name.replace("first", "next"), link) if link else None


def _signed_in(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def _ask(client: Client, page: Page) -> Any:
    headers = {"host": "localhost", **page.headers}
    answer: Any = client.get(page.path, headers=headers, secure=True)
    if answer.status_code != 200:
        raise LookupError(f"{page.name} ({page.path}) was answered with {answer.status_code}.")
    return answer


def _noting(statements: list[tuple[float, str]]) -> Callable[..., Any]:
    def note(execute: Callable[..., Any], sql: str, *arguments: Any) -> Any:
        began = time.perf_counter()
        try:
            return execute(sql, *arguments)
        finally:
            statements.append(((time.perf_counter() - began) * 1000, sql))

    return note


def _counts_a_log(statement: str) -> bool:
    if not re.search(r"\bcount\s*\(\s*\*\s*\)", statement, re.IGNORECASE):
        return False
    return any(re.search(rf"\b{table}\b", statement) for table in partitioned_tables())


_SCANNED = """
SELECT coalesce(sum(stat.seq_tup_read), 0)::bigint
  FROM unnest(%s::text[]) AS named (name),
       pg_partition_tree(to_regclass(named.name)) AS leaf
  JOIN pg_stat_user_tables AS stat ON stat.relid = leaf.relid
"""


def _scanned() -> int:
    """Rows of the logs that were read without an index so far, by anybody."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_force_next_flush()")
        cursor.execute(_SCANNED, [partitioned_tables()])
        return int(cursor.fetchone()[0])


# --------------------------------------------------------------------------- /metrics


def measure_metrics(*, times: int) -> Figures:
    """`/metrics` as scrapes 15 s apart have it: figures read anew each time, slow ones each fourth.

    On a connection of the data plane's pool, in the operator's role; nobody's key is checked.
    """
    before = _scanned()
    taken, cpu = asyncio.run(_metrics(times))
    scanned = (_scanned() - before) // (times + 1)  # the pool is closed: all is counted by now
    return Figures(Page("metrics", METRICS), taken, cpu, METRICS_GOAL_MS, scanned=scanned)


async def _metrics(times: int) -> tuple[list[float], float]:
    """Milliseconds of each answer, and the median of the process's own."""
    plane = DataPlane()
    await plane.start()
    try:
        with _open_to_all():
            found: list[tuple[float, float]] = []
            page = MetricsPage(plane, clock=lambda: len(found) * SCRAPE_SECONDS)
            plane.metrics = page  # so that its readings end with the plane
            while len(found) <= times:  # the first one is not counted
                found.append(await _scraped(page))
                await asyncio.sleep(PAUSE_SECONDS)
        taken, cpu = zip(*found[1:], strict=True)
        return list(taken), quantile(cpu, 0.5)
    finally:
        await plane.stop()


@contextmanager
def _open_to_all() -> Iterator[None]:
    from django.conf import settings

    usual, settings.GATEWAY_METRICS_OPEN = settings.GATEWAY_METRICS_OPEN, True
    try:
        yield
    finally:
        settings.GATEWAY_METRICS_OPEN = usual


async def _scraped(page: MetricsPage) -> tuple[float, float]:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": METRICS, "headers": []}
    began, worked = time.perf_counter(), time.process_time()
    await page.answer(scope, send)
    cpu = (time.process_time() - worked) * 1000
    milliseconds = (time.perf_counter() - began) * 1000
    if b"mcp_gateway_database_up 1.0" not in sent[-1]["body"]:
        raise LookupError(f"{METRICS} came without PostgreSQL's figures.")
    return milliseconds, cpu
