"""Development data: servers that look real, keys, and a history of calls.

The same arguments give the same data, but for the secrets of the keys and for when it happened.
Everything made here can be told from what people made: rows of ordinary tables have an id of one
known millisecond, rows of logs say so themselves. Its servers live under .invalid, where nothing
ever answers (RFC 6761); health checks leave them alone because of their mark.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import secrets
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import accumulate, islice
from typing import Any
from uuid import UUID

from django.contrib.auth.models import Group
from django.db import connection, transaction
from django.db.models import Max, Min
from psycopg import sql

from gateway.defaults import DEFAULT_TENANT
from gateway.models import BreakerState, CircuitBreaker
from monitoring.audit import Actor
from monitoring.models import AuditLog, RequestLog
from monitoring.retention.partitions import partitions_prepare
from monitoring.rollups import rollups_compact, rollups_rebuild
from registry.models import (
    SEEDED,
    HealthStatus,
    MCPServer,
    ServerMetric,
    ServerTool,
    SystemConfig,
    Tenant,
)
from security.models import EnhancedAPIKey, Role, User
from security.services import api_key_create

__all__ = ["SAMPLE_SLUG", "SAMPLE_URL", "Seeded", "foreign_rows", "seed", "seed_remove"]

SAMPLE_SLUG = "sample"
SAMPLE_URL = "http://127.0.0.1:8765/mcp"  # `up` writes the port that its sample really has

ACTOR = Actor(service_name="seed")
MARK = {SEEDED: True}
HISTORY = "development.seeded_calls"
BATCH = 20_000
# 2020-01-01T00:00:00Z: no program of ours made an id then, so this millisecond marks ours.
MARKED_MS = 1_577_836_800_000
FIRST_ID, AFTER_LAST_ID = UUID(int=MARKED_MS << 80), UUID(int=(MARKED_MS + 1) << 80)

# name, median milliseconds of a call, its tools from the most to the least used
CATALOGUE: tuple[tuple[str, float, tuple[str, ...]], ...] = (
    ("Code search", 45, ("search_code", "read_file", "list_repositories", "blame")),
    ("Issue tracker", 120, ("search_issues", "get_issue", "create_issue", "add_comment")),
    ("Documentation", 35, ("search_pages", "read_page", "list_spaces")),
    ("Data warehouse", 640, ("run_query", "list_tables", "describe_table", "explain_query")),
    ("Calendar", 90, ("list_events", "find_free_time", "create_event")),
    ("Chat", 75, ("search_messages", "post_message", "list_channels")),
    ("Web fetch", 820, ("fetch_page", "extract_text")),
    ("File store", 60, ("list_files", "read_file", "write_file", "delete_file")),
    ("Build system", 210, ("list_runs", "get_log", "start_run", "cancel_run")),
    ("Metrics", 150, ("query_range", "list_alerts", "silence_alert")),
    ("Customer records", 180, ("find_customer", "list_orders", "update_customer")),
    ("Translation", 380, ("translate", "detect_language")),
    ("Geocoding", 55, ("find_address", "reverse_geocode")),
    ("Mail", 130, ("search_mail", "read_mail", "send_mail")),
    ("Image tools", 1400, ("resize", "describe_image", "extract_text")),
)
USERS = (("developer", Role.USER, "Dana Developer"), ("viewer", Role.READONLY, "Vic Viewer"))
KEYS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Coding agent (development)", ("proxy", "read")),
    ("Support agent (development)", ("proxy",)),
    ("Nightly jobs (development)", ("proxy",)),
    ("Dashboard (development)", ("read", "metrics", "health")),
)
CLIENTS = ("192.0.2.17", "192.0.2.44", "198.51.100.8", "203.0.113.90")
RPC_METHODS, RPC_WEIGHTS = (
    ("tools/call", "tools/list", "initialize", "resources/read"),
    (82, 9, 5, 4),
)
# status, error type, share of all calls in ordinary times
ORDINARY_FAILURES = (
    (502, "upstream_unreachable", 0.004),
    (504, "upstream_timeout", 0.002),
    (429, "rate_limited", 0.006),
    (403, "method_denied", 0.003),
    (404, "server_not_found", 0.002),
)
BURST_FAILURES = ((502, "upstream_unreachable"), (504, "upstream_timeout"), (503, "circuit_open"))
# Of the few calls in the window of the alerts a single failure, or slow one, would raise one.
CALM, CALM_MS = timedelta(minutes=15), 800.0
DURATION_OF_FAILURE = {504: 30_000.0, 503: 0.6, 429: 0.5, 403: 0.5, 404: 0.4}


@dataclass(slots=True)
class Seeded:
    """What was added. `keys` and `admin_password` are secrets: show them once, keep none."""

    servers: int = 0
    requests: int = 0
    requests_before: int = 0  # of an earlier seeding, which is left as it is
    keys: dict[str, str] = field(default_factory=dict, repr=False)  # name to text
    admin_password: str | None = field(default=None, repr=False)  # None: the user was there


def seed(
    *,
    servers: int,
    requests: int,
    days: int,
    at: datetime,
    admin_password: str | None = None,
    sample_url: str = SAMPLE_URL,
    told: Callable[[int], None] = lambda _rows: None,
) -> Seeded:
    """Add what is missing: users, keys, servers with tools, and a history that ends at `at`.

    Needs the default tenant (`defaults_ensure`). `told` hears of each batch of calls. Nothing is
    doubled: rows that exist stay, and a history that exists is neither moved nor made longer.
    """
    done = Seeded()
    with transaction.atomic():
        tenant = Tenant.objects.get(slug=DEFAULT_TENANT)
        done.admin_password = _admin(admin_password)
        users = _users(tenant)
        done.keys = _keys(tenant, users[0])
        done.servers = _servers(tenant, servers, at=at, sample_url=sample_url)
    done.requests_before = _history_known()
    if done.requests_before or not requests:
        return done
    partitions_prepare(at=at, back_to=at - timedelta(days=days))
    with transaction.atomic():
        done.requests = _history(tenant, requests=requests, days=days, at=at, told=told)
        # Counting marked rows in a log of millions takes longer than remembering how many.
        SystemConfig.objects.create(
            key=HISTORY, value=done.requests, category="development",
            description="Calls that seed_dev_data made up.",
        )  # fmt: skip
    rollups_compact()
    with connection.cursor() as cursor:
        cursor.execute(
            "ANALYZE request_logs, request_rollups, audit_logs, server_metrics, server_tools"
        )
    return done


@transaction.atomic
def seed_remove() -> int:
    """Remove what `seed` made and nothing else; the administrator stays. Returns rows removed."""
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL statement_timeout = '15min'")  # logs may have grown large
    SystemConfig.objects.filter(key=HISTORY, tenant=None).delete()
    removed = _calls_remove()
    removed += AuditLog.objects.filter(details__seeded=True).delete()[0]
    servers = _marked(MCPServer.objects.all())
    removed += ServerMetric.objects.filter(server_id__in=servers.values("pk")).delete()[0]
    for model in (MCPServer, EnhancedAPIKey, User):
        removed += _marked(model._default_manager.all()).delete()[0]
    return removed


def _calls_remove() -> int:
    """Remove the seeded calls, from the rollups as well."""
    calls = RequestLog.objects.filter(request_metadata__seeded=True)
    span = calls.aggregate(first=Min("request_time"), last=Max("request_time"))
    removed = calls.delete()[0]
    if removed:
        rollups_rebuild(first=span["first"].date(), last=span["last"].date())
    return removed


def foreign_rows() -> list[str]:
    """What else there is: "servers", "calls" that seeding did not make. Cheap on a large log."""
    servers = MCPServer.objects.exclude(pk__gte=FIRST_ID, pk__lt=AFTER_LAST_ID)
    newest = RequestLog.objects.order_by("-pk").values_list("request_metadata", flat=True)[:1000]
    found = {
        "servers": servers.exclude(slug=SAMPLE_SLUG).exists(),
        "calls": any(not metadata.get("seeded") for metadata in newest),
    }
    return [what for what, is_there in found.items() if is_there]


# ---------------------------------------------------------------- the nouns


def marked_id(kind: str, name: str) -> UUID:
    """A version 7 UUID of the known millisecond; always the same for the same thing."""
    noise = int.from_bytes(hashlib.sha256(f"{kind}:{name}".encode()).digest()[:10], "big")
    return _uuid7(MARKED_MS, noise)


def _marked(rows: Any) -> Any:
    return rows.filter(pk__gte=FIRST_ID, pk__lt=AFTER_LAST_ID)


def _history_known() -> int:
    """Calls of an earlier seeding; 0 when there was none or it was removed."""
    found = SystemConfig.objects.filter(key=HISTORY, tenant=None).first()
    return int(found.value) if found else 0


def _admin(password: str | None) -> str | None:
    """The superuser `admin`; returns its password when it was made here."""
    if User.objects.filter(username="admin").exists():
        return None
    password = password or secrets.token_urlsafe(12)
    admin = User.objects.create_superuser(
        username="admin", email="", password=password, full_name="Administrator", role=Role.ADMIN
    )
    admin.groups.set(Group.objects.filter(name=Role.ADMIN.value))
    return password


def _users(tenant: Tenant) -> list[User]:
    """Made without a password: nobody signs in as them until somebody sets one."""
    made = []
    for username, role, full_name in USERS:
        user, _ = User.objects.get_or_create(
            username=username,
            defaults={
                "id": marked_id("user", username),
                "full_name": full_name,
                "role": role,
                "tenant": tenant,
                "password": "!",
            },
        )
        user.groups.add(*Group.objects.filter(name=role.value))
        made.append(user)
    return made


def _keys(tenant: Tenant, user: User) -> dict[str, str]:
    known = set(_marked(EnhancedAPIKey.objects.all()).values_list("pk", flat=True))
    texts = {}
    for name, scopes in KEYS:
        pk = marked_id("key", name)
        if pk not in known:
            _, texts[name] = api_key_create(
                actor=ACTOR, id=pk, name=name, tenant=tenant, user=user, scopes=scopes
            )
    return texts


def _servers(tenant: Tenant, count: int, *, at: datetime, sample_url: str) -> int:
    rows = [_server(tenant, number, at=at) for number in range(count)]
    # An ordinary row: `up` gives it the address of a real server, which no --reset may take away.
    sample = MCPServer(
        tenant=tenant,
        name="Sample",
        slug=SAMPLE_SLUG,
        description="A real MCP server that comes with the gateway.",
        endpoint_url=sample_url,
        tags=["sample"],
    )
    before = MCPServer.objects.count()
    MCPServer.objects.bulk_create([*rows, sample], ignore_conflicts=True)
    added = MCPServer.objects.count() - before
    known = set(_marked(MCPServer.objects.all()).values_list("pk", flat=True))
    ServerTool.objects.bulk_create(
        (tool for n, row in enumerate(rows) if row.pk in known for tool in _tools(row, n)),
        ignore_conflicts=True,
        batch_size=1000,
    )
    _half_open_breaker(rows, at=at)
    return added


def _server(tenant: Tenant, number: int, *, at: datetime) -> MCPServer:
    name, median_ms, _ = CATALOGUE[number % len(CATALOGUE)]
    generation = number // len(CATALOGUE)
    name = f"{name} {generation + 1}" if generation else name
    slug = name.lower().replace(" ", "-")
    status, rate = HealthStatus.HEALTHY, 0.998
    if number % 7 == 4:
        status, rate = HealthStatus.DEGRADED, 0.94
    elif number % 7 == 6:
        status, rate = HealthStatus.UNHEALTHY, 0.41
    return MCPServer(
        id=marked_id("server", slug),
        tenant=tenant,
        name=name,
        slug=slug,
        description=f"{name}, made by seed_dev_data.",
        version=f"1.{number % 9}.0",
        endpoint_url=f"https://{slug}.mcp.invalid/mcp",
        tags=["seed"],
        capabilities={"tools": {"listChanged": True}},
        protocol_versions=["2025-11-25", "2026-07-28"],
        health_status=status,
        last_health_check=at - timedelta(seconds=20 + number),
        health_metadata=dict(MARK),
        avg_response_time=median_ms * 0.4,
        success_rate=rate,
    )


def _tools(server: MCPServer, number: int) -> Iterator[ServerTool]:
    for name in CATALOGUE[number % len(CATALOGUE)][2]:
        yield ServerTool(
            id=marked_id("tool", f"{server.slug}/{name}"),
            server=server,
            name=name,
            title=name.replace("_", " ").capitalize(),
            description=f"{name.replace('_', ' ').capitalize()} in {server.name}.",
            input_schema={"type": "object", "properties": {"query": {"type": "string"}}},
            schema_hash=hashlib.sha256(f"{server.slug}/{name}".encode()).hexdigest(),
        )


def _half_open_breaker(rows: Sequence[MCPServer], *, at: datetime) -> None:
    """The first server that is down has a breaker to look at; an open one would raise an alert."""
    down = [row.pk for row in rows if row.health_status == HealthStatus.UNHEALTHY][:1]
    since = at - timedelta(seconds=20)
    CircuitBreaker.objects.filter(
        server_id__in=down, service_name="", state=BreakerState.CLOSED, total_failures=0
    ).update(
        state=BreakerState.HALF_OPEN,
        last_state_change=since,
        last_failure_time=since,
        failure_count=5,
        total_failures=5,
        total_requests=5,
        updated_at=at,
    )


# ---------------------------------------------------------------- the history


@dataclass(frozen=True, slots=True)
class Burst:
    """A time in which most calls of one server fail."""

    server: UUID
    begin: datetime
    end: datetime


@dataclass(slots=True)
class Cast:
    """Who takes part, each with its share of the traffic."""

    tenant: UUID
    servers: list[tuple[UUID, str, float, tuple[str, ...]]]  # id, slug, median ms, tools
    keys: list[tuple[UUID, UUID | None]]  # id, user


@dataclass(slots=True)
class Tally:
    """What the calls add up to, for the counters of tools and keys."""

    calls: Counter[tuple[UUID, str]] = field(default_factory=Counter)
    failures: Counter[tuple[UUID, str]] = field(default_factory=Counter)
    milliseconds: defaultdict[tuple[UUID, str], float] = field(
        default_factory=lambda: defaultdict(float)
    )
    last: dict[tuple[UUID, str], datetime] = field(default_factory=dict)
    by_key: Counter[UUID] = field(default_factory=Counter)


def _history(
    tenant: Tenant, *, requests: int, days: int, at: datetime, told: Callable[[int], None]
) -> int:
    cast, tally = _cast(tenant), Tally()
    if not cast.servers:
        return 0
    dice = random.Random(f"{len(cast.servers)}/{requests}/{days}")  # noqa: S311  (no secret)
    calls = _calls(cast, tally, dice, requests=requests, days=days, at=at)
    written = 0
    while batch := list(islice(calls, BATCH)):
        _copy(RequestLog._meta.db_table, REQUEST_COLUMNS, batch)
        written += len(batch)
        told(len(batch))
    _write_counters(tally, at=at)
    _copy(ServerMetric._meta.db_table, METRIC_COLUMNS, _metrics(cast, dice, days=days, at=at))
    AuditLog.objects.bulk_create(_audit(cast, dice, days=days, at=at))
    return written


def _cast(tenant: Tenant) -> Cast:
    rows = _marked(MCPServer.objects.exclude(slug=SAMPLE_SLUG)).order_by("slug")
    order = {name.lower().replace(" ", "-"): place for place, (name, *_) in enumerate(CATALOGUE)}
    servers = []
    for row in sorted(rows, key=lambda row: (order.get(row.slug, len(order)), row.slug)):
        tools = tuple(row.tools.order_by("id").values_list("name", flat=True))
        servers.append((row.pk, row.slug, (row.avg_response_time or 40) / 0.4, tools or ("run",)))
    keys = _marked(EnhancedAPIKey.objects.filter(scopes__contains=["proxy"])).order_by("name")
    return Cast(tenant=tenant.pk, servers=servers, keys=list(keys.values_list("pk", "user_id")))


REQUEST_COLUMNS = (
    "id", "request_time", "request_id", "tenant_id", "user_id", "api_key_id", "ip_address",
    "method", "path", "rpc_method", "tool_name", "target_server_id", "status_code",
    "duration_ms", "upstream_ms", "queue_ms", "request_size_bytes", "response_size_bytes",
    "error_type", "error_message", "protocol_version", "request_metadata",
)  # fmt: skip
METRIC_COLUMNS = (
    "id", "server_id", "timestamp", "response_time_ms", "error_rate", "active_connections",
    "custom_metrics",
)  # fmt: skip


def _calls(
    cast: Cast, tally: Tally, dice: random.Random, *, requests: int, days: int, at: datetime
) -> Iterator[tuple[Any, ...]]:
    """Rows of `request_logs` in the order of time."""
    bursts = _bursts(cast, dice, days=days, at=at)
    # Few servers, tools and keys do most of the work: shares fall like 1, 1/2, 1/3 … (Zipf).
    server_shares = _zipf(len(cast.servers))
    key_shares = _zipf(len(cast.keys))
    tool_shares = {len(tools): _zipf(len(tools)) for *_, tools in cast.servers}
    metadata = json.dumps(MARK)
    for when in _times(dice, requests=requests, days=days, at=at):
        pk, slug, median_ms, tools = dice.choices(cast.servers, cum_weights=server_shares)[0]
        key, user = dice.choices(cast.keys, cum_weights=key_shares)[0]
        rpc = dice.choices(RPC_METHODS, RPC_WEIGHTS)[0]
        tool = ""
        if rpc == "tools/call":
            tool = dice.choices(tools, cum_weights=tool_shares[len(tools)])[0]
        burning = any(b.server == pk and b.begin <= when <= b.end for b in bursts)
        status, error = _outcome(dice, burning=burning)
        longest_ms = math.inf
        if when > at - CALM:
            status, error, longest_ms = 200, "", CALM_MS
        upstream_ms = None
        if status == 200:
            upstream_ms = min(dice.lognormvariate(math.log(median_ms), 0.55), longest_ms)
        queue_ms = dice.expovariate(1 / 4) if burning else 0.0
        duration_ms = DURATION_OF_FAILURE.get(status, 3.0) + queue_ms
        if upstream_ms is not None:
            duration_ms = upstream_ms + queue_ms + dice.uniform(0.4, 1.6)
        if tool:
            _count(tally, (pk, tool), when, duration_ms, failed=status != 200)
        tally.by_key[key] += 1
        milliseconds = int(when.timestamp() * 1000)
        yield (
            str(_uuid7(milliseconds, dice.getrandbits(74))),
            when.isoformat(),
            str(_uuid7(milliseconds, dice.getrandbits(74))),
            str(cast.tenant),
            str(user) if user else None,
            str(key),
            dice.choice(CLIENTS),
            "POST",
            f"/mcp/{slug}",
            rpc,
            tool,
            str(pk),
            status,
            round(duration_ms, 3),
            None if upstream_ms is None else round(upstream_ms, 3),
            round(queue_ms, 3),
            dice.randint(140, 900),
            int(dice.lognormvariate(7.2, 1.1)) if status == 200 else 180,
            error,
            "",
            "2026-07-28" if dice.random() < 0.4 else "2025-11-25",
            metadata,
        )


def _count(
    tally: Tally, tool: tuple[UUID, str], when: datetime, duration_ms: float, *, failed: bool
) -> None:
    tally.calls[tool] += 1
    tally.failures[tool] += failed
    tally.milliseconds[tool] += duration_ms
    tally.last[tool] = when


def _times(dice: random.Random, *, requests: int, days: int, at: datetime) -> list[datetime]:
    """Busy in the afternoon, quiet at night and at the weekend; never later than `at`."""
    begin = at - timedelta(days=days)
    hours = [begin + timedelta(hours=hour) for hour in range(days * 24)]
    weights = [_busy(hour) for hour in hours]
    found = [
        hour + timedelta(seconds=dice.uniform(0, 3600))
        for hour in dice.choices(hours, weights, k=requests)
    ]
    return sorted(found)


def _busy(hour: datetime) -> float:
    daily = 1.15 + math.sin((hour.hour - 8) / 24 * 2 * math.pi)
    return daily * (0.35 if hour.weekday() >= 5 else 1.0)


def _bursts(cast: Cast, dice: random.Random, *, days: int, at: datetime) -> list[Burst]:
    """About one bad half hour every two days."""
    found = []
    for _ in range(max(1, days // 2)):
        begin = at - timedelta(seconds=dice.uniform(3600, days * 86_400))
        length = timedelta(minutes=dice.uniform(10, 40))
        found.append(Burst(dice.choice(cast.servers)[0], begin, begin + length))
    return found


def _outcome(dice: random.Random, *, burning: bool) -> tuple[int, str]:
    if burning and dice.random() < 0.65:
        return dice.choice(BURST_FAILURES)
    luck = dice.random()
    for status, error, share in ORDINARY_FAILURES:
        if luck < share:
            return status, error
        luck -= share
    return 200, ""


def _metrics(
    cast: Cast, dice: random.Random, *, days: int, at: datetime
) -> Iterator[tuple[Any, ...]]:
    """One measurement a server and hour."""
    mark = json.dumps(MARK)
    for hour in range(days * 24, 0, -1):
        when = at - timedelta(hours=hour)
        milliseconds = int(when.timestamp() * 1000)
        for pk, _, median_ms, _ in cast.servers:
            yield (
                str(_uuid7(milliseconds, dice.getrandbits(74))),
                str(pk),
                when.isoformat(),
                round(dice.lognormvariate(math.log(median_ms * 0.4), 0.3), 3),
                round(dice.betavariate(1, 60), 4),
                dice.randint(0, 12),
                mark,
            )


def _audit(cast: Cast, dice: random.Random, *, days: int, at: datetime) -> Iterator[AuditLog]:
    """What people did in that time, ten entries a day."""
    deeds = (("server.update", "mcp_servers"), ("server.check", "mcp_servers"),
             ("api_key.create", "enhanced_api_keys"), ("session.login", "users"))  # fmt: skip
    for _ in range(days * 10):
        when = at - timedelta(seconds=dice.uniform(0, days * 86_400))
        action, table = dice.choices(deeds, (4, 2, 1, 5))[0]
        server = dice.choice(cast.servers)
        yield AuditLog(
            id=_uuid7(int(when.timestamp() * 1000), dice.getrandbits(74)),
            timestamp=when,
            tenant_id=cast.tenant,
            service_name="admin" if table != "enhanced_api_keys" else "cli",
            action=action,
            resource_type=table,
            resource_id=str(server[0]) if table == "mcp_servers" else "",
            details=dict(MARK),
            ip_address=dice.choice(CLIENTS),
            success=dice.random() > 0.03,
        )


def _write_counters(tally: Tally, *, at: datetime) -> None:
    tools = []
    for (server, name), calls in tally.calls.items():
        failures = tally.failures[server, name]
        tools.append(
            (server, name, calls, calls - failures, failures,
             tally.milliseconds[server, name] / calls, tally.last[server, name])
        )  # fmt: skip
    columns: list[list[Any]] = [list(column) for column in zip(*tools, strict=True)] or [[]] * 7
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE server_tools AS tool SET
                total_calls = seen.calls, success_count = seen.successes,
                error_count = seen.failures, avg_execution_time = seen.ms,
                last_used_at = seen.last, updated_at = %s
            FROM unnest(%s::uuid[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[],
                        %s::float8[], %s::timestamptz[])
                AS seen(server_id, name, calls, successes, failures, ms, last)
            WHERE tool.server_id = seen.server_id AND tool.name = seen.name
            """,
            [at, *columns],
        )
        cursor.execute(
            """
            UPDATE enhanced_api_keys AS key SET total_requests = seen.calls, last_used = %s
            FROM unnest(%s::uuid[], %s::bigint[]) AS seen(id, calls) WHERE key.id = seen.id
            """,
            [at, list(tally.by_key), list(tally.by_key.values())],
        )


def _copy(table: str, columns: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> None:
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    with connection.cursor() as cursor:
        cursor.execute("SELECT row_security_active(%s::regclass)", [table])
        if cursor.fetchone()[0]:  # where policies are asked, COPY is refused
            insert = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
                sql.Identifier(table),
                sql.SQL(", ").join(map(sql.Identifier, columns)),
                sql.SQL(", ").join(sql.Placeholder() * len(columns)),
            )
            cursor.executemany(insert, rows)  # type: ignore[arg-type]  # it takes any iterable
            return
        with cursor.copy(statement) as copy:
            for row in rows:
                copy.write_row(row)


def _zipf(count: int) -> list[float]:
    """Cumulative shares of `count` ranks."""
    return list(accumulate(1 / rank for rank in range(1, count + 1)))


def _uuid7(milliseconds: int, noise: int) -> UUID:
    """A version 7 UUID of that time; the lowest 74 bits of `noise` fill the rest."""
    high, low = noise >> 62 & 0xFFF, noise & (1 << 62) - 1
    return UUID(int=milliseconds << 80 | 0x7 << 76 | high << 64 | 0b10 << 62 | low)
