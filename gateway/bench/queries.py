"""What the program asks: its own querysets and statements, caught on their way to the database."""

from __future__ import annotations

import random
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import accumulate
from typing import Any, NoReturn, Self, cast
from uuid import UUID

import psycopg
from django.db import connection as django_connection
from django.db.models import QuerySet
from psycopg import AsyncConnection, sql

from gateway.proxy.route import find_route
from monitoring import queries as monitoring
from monitoring.api.views import NewestAudit, NewestRequest
from monitoring.models import AuditLog, RequestLog
from monitoring.querysets import Window, within
from registry.api.pagination import Keyset, NewestFirst
from registry.db.keyset import beyond
from registry.models import HealthStatus, MCPServer, ServerMetric, ServerTool
from security.keys import ParsedKey
from security.lookup import find_key, find_plain_key
from security.models import EnhancedAPIKey, ServerAccessControl, Session, User
from security.sessions import SessionStore

__all__ = ["CLASSES", "QUERIES", "Goal", "Parameters", "Query", "Statement", "draw"]

Connection = psycopg.Connection[Any]
Values = tuple[Any, ...]
CLASSES = ("frequent", "rare", "absent")
SAMPLE = 20_000
SEED = 20_26


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement with its parameters, and who binds them: the driver or the server."""

    sql: str
    parameters: Any
    is_bound_by_server: bool = False


@dataclass(frozen=True, slots=True)
class Parameters:
    """One draw. `kind` is one of CLASSES."""

    values: Values
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What the query shall reach; savings are shares of execution time, 0 to 1."""

    against_bare: float | None = None
    against_django: float | None = None
    buffers: int | None = None  # the most that any of the explained executions may touch
    without: tuple[str, ...] = ()  # plan nodes that must not occur


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One question, with how often its parameters occur.

    `drawn` selects one row a parameter set from `table`, so often as the program would ask;
    `compared` names the result columns that must be equal between arms (none: all), where rows of
    the same rank may stand for each other. `walled`: a tenant asks, whose id is the first
    parameter, and row-level security holds; else the gateway asks, across tenants. None: walled
    where the parameters begin with a tenant.
    """

    name: str
    title: str
    table: str
    drawn: tuple[str, ...]
    where: str = "true"
    absent: Callable[[int], Values] | None
    ask: Callable[..., Any] = field(repr=False)
    compared: tuple[str, ...] = ()
    headline: bool = False
    goal: Goal = Goal()
    walled: bool | None = None

    @property
    def is_walled(self) -> bool:
        return self.drawn[:1] == ("tenant_id",) if self.walled is None else self.walled

    def tenant_of(self, values: Values) -> UUID | None:
        """Whose transaction the question is asked in; None: the operator's."""
        return values[0] if self.is_walled else None

    def statement(self, values: Values, *, at: datetime) -> Statement:
        """What the program sends for these parameters at that time."""
        return _caught(lambda: self.ask(at, *values))


# --------------------------------------------------------------------------- catching statements


class _Caught(Exception):
    def __init__(self, statement: Statement) -> None:
        self.statement = statement
        super().__init__(statement.sql)


def _caught(ask: Callable[[], Any]) -> Statement:
    """The first statement that a call would run; it is not run."""

    def stop(_execute: Any, statement: str, parameters: Any, *_: Any) -> NoReturn:
        raise _Caught(Statement(statement, parameters))

    try:
        with django_connection.execute_wrapper(stop):
            asked = ask()
            if isinstance(asked, QuerySet):
                list(asked)
            elif isinstance(asked, Coroutine):
                asked.send(None)
    except _Caught as caught:
        return caught.statement
    raise LookupError("The call ran no statement.")


class _AsyncCursor:
    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def execute(self, statement: str, parameters: Any = None) -> NoReturn:
        raise _Caught(Statement(statement, parameters, is_bound_by_server=True))


class _AsyncConnection:
    """Stands where the data plane has its connection, and catches what it would send."""

    def cursor(self, **_: Any) -> AbstractAsyncContextManager[Any]:
        return _AsyncCursor()


_plane = cast("AsyncConnection[Any]", _AsyncConnection())


# --------------------------------------------------------------------------- drawing parameters


def draw(connection: Connection, query: Query, *, count: int, absent: int) -> list[Parameters]:
    """`count` parameter sets as often as they occur in the rows, and `absent` that do not, mixed.

    Frequent are those whose first value is among the few that make up half of the rows.
    """
    chance = random.Random(f"{SEED} {query.name}")  # noqa: S311  (the same ones in every run)
    sample = _sample(connection, query)
    frequent = _frequent([values[0] for values in sample]) if query.drawn else set()
    found = [
        Parameters(values, "frequent" if not values or values[0] in frequent else "rare")
        for values in chance.choices(sample, k=count)
    ]
    if query.absent is not None:
        found += [Parameters(query.absent(i), "absent") for i in range(absent)]
    chance.shuffle(found)
    return found


def _sample(connection: Connection, query: Query) -> list[Values]:
    if not query.drawn:
        return [()]
    statement = sql.SQL(
        "SELECT {} FROM (SELECT * FROM {} TABLESAMPLE BERNOULLI ({}) REPEATABLE (42)"
        " WHERE {} ORDER BY id) AS drawn"
    ).format(
        sql.SQL(", ").join(map(sql.SQL, query.drawn)),
        sql.Identifier(query.table),
        min(100.0, 100.0 * SAMPLE / max(1, _rows(connection, query.table))),
        sql.SQL(query.where),
    )
    found = connection.execute(statement).fetchall()
    if not found:
        raise LookupError(f"No row of {query.table} is fit for the query {query.name}.")
    return found


def _rows(connection: Connection, table: str) -> int:
    found = connection.execute(
        "SELECT sum(greatest(0, c.reltuples)) FROM pg_class c WHERE c.oid = to_regclass(%s)"
        " OR c.oid IN (SELECT relid FROM pg_partition_tree(to_regclass(%s)) WHERE isleaf)",
        [table, table],
    ).fetchone()
    return int(found[0] or 0) if found else 0


def _frequent(values: Sequence[Any]) -> set[Any]:
    """The most frequent values, as few as make up half of them all."""
    ranked = Counter(values).most_common()
    reached = list(accumulate(times for _, times in ranked))
    return {value for value, _ in ranked[: bisect(reached, len(values) / 2)]}


def _nobody(i: int) -> UUID:
    """The id of no row: its time is before that of all others."""
    return UUID(int=(1_600_000_000_000 + i) << 80 | 0x7 << 76 | 0b10 << 62 | i)


# --------------------------------------------------------------------------- the questions


def _next_page(rows: QuerySet[Any], keyset: type[Keyset], place: tuple[str, ...]) -> QuerySet[Any]:
    return keyset.first_page(rows.filter(beyond(keyset.ordering, place, newer=False)))


def _last_day(at: datetime) -> Window:
    return Window.of(since=None, until=None, at=at)


def _audit(at: datetime, **conditions: Any) -> QuerySet[AuditLog]:
    rows = AuditLog.objects.filter(**conditions)
    return within(rows, field="timestamp", window=_last_day(at))


def _requests(at: datetime, **conditions: Any) -> QuerySet[RequestLog]:
    rows = RequestLog.objects.filter(**conditions)
    return within(rows, field="request_time", window=_last_day(at))


def _one_request(at: datetime, request_id: UUID) -> QuerySet[RequestLog]:
    window = Window.around(request_id) or _last_day(at)
    rows = RequestLog.objects.filter(request_id=request_id)
    return NewestRequest.first_page(within(rows, field="request_time", window=window))


def _metrics(at: datetime, server: UUID) -> QuerySet[ServerMetric]:
    rows = within(
        ServerMetric.objects.filter(server_id=server), field="timestamp", window=_last_day(at)
    )
    return rows.order_by("-timestamp")


_KEY = "(SELECT key_prefix FROM enhanced_api_keys AS k WHERE k.id = drawn.api_key_id)"
_SLUG = "substr(path, 6)"  # of /mcp/server-17
_TOOL_CALLS = "rpc_method = 'tools/call'"

QUERIES: tuple[Query, ...] = (
    # ---- the guide's five
    Query(
        name="server_discovery",
        title="Server discovery",
        headline=True,
        table="request_logs",
        drawn=(
            "tenant_id",
            "(SELECT transport_type FROM mcp_servers AS s WHERE s.id = drawn.target_server_id)",
        ),
        absent=lambda i: (_nobody(i), "stdio"),
        ask=lambda _at, tenant, transport: MCPServer.objects.fastest(
            tenant_id=tenant, transport=transport, limit=20
        ),
        goal=Goal(against_bare=0.95, against_django=0.90, buffers=60, without=("Sort",)),
    ),
    Query(
        name="user_authentication",
        title="User authentication, by session",
        headline=True,
        table="sessions",
        drawn=("user_agent",),
        where="is_active",
        absent=lambda i: (f"nobody-{i}",),
        ask=lambda _at, cookie: SessionStore(cookie).load(),
        goal=Goal(against_bare=0.98, buffers=12),
    ),
    Query(
        name="audit_page",
        title="Audit log, first page",
        headline=True,
        table="audit_logs",
        drawn=("tenant_id",),
        absent=lambda i: (_nobody(i),),
        ask=lambda at, tenant: NewestAudit.first_page(_audit(at, tenant_id=tenant)),
        goal=Goal(against_bare=0.98, against_django=0.95),
    ),
    Query(
        name="api_key_validation",
        title="API key validation",
        headline=True,
        table="request_logs",
        drawn=(_KEY, _SLUG),
        absent=lambda i: (f"absent-{i}", f"server-{1 + i}"),
        ask=lambda _at, prefix, slug: find_key(_plane, prefix=prefix, slug=slug),
        goal=Goal(against_bare=0.99, buffers=20),
    ),
    Query(
        name="tool_discovery",
        title="Tool discovery",
        headline=True,
        table="request_logs",
        drawn=("tool_name",),
        where=_TOOL_CALLS,
        absent=lambda i: (f"absent_{i}",),
        ask=lambda _at, name: ServerTool.objects.named(name).select_related("server")[:20],
        compared=("success_count",),
        goal=Goal(against_bare=0.95),
    ),
    # ---- and what else the gateway lives on
    Query(
        name="sign_in",
        title="Sign-in, by user name",
        table="users",
        drawn=("username",),
        absent=lambda i: (f"nobody-{i}",),
        ask=lambda _at, name: User.objects.get_by_natural_key(name),
    ),
    Query(
        name="plain_key_validation",
        title="Plain key validation",
        table="api_keys",
        drawn=("substr(key_prefix, 7)",),
        absent=lambda i: (f"absent-{i}",),
        ask=lambda _at, secret: find_plain_key(
            _plane, key=ParsedKey(prefix="plain", secret=secret), slug="server-10"
        ),
    ),
    Query(
        name="call_route",
        title="A call's route",
        table="request_logs",
        drawn=("target_server_id",),
        where=_TOOL_CALLS,
        absent=lambda i: (_nobody(i),),
        ask=lambda _at, server: find_route(_plane, server_id=server),
    ),
    Query(
        name="audit_next_page",
        title="Audit log, a later page",
        table="audit_logs",
        drawn=("tenant_id", "timestamp::text", "id::text"),
        absent=lambda i: (_nobody(i), "2020-01-01T00:00:00+00", str(_nobody(i))),
        ask=lambda _at, tenant, time, place: _next_page(
            AuditLog.objects.filter(
                tenant_id=tenant,
                timestamp__gte=datetime.fromisoformat(time) - timedelta(days=1),
            ),
            NewestAudit,
            (time, place),
        ),
    ),
    Query(
        name="audit_of_user",
        title="What one user did",
        table="audit_logs",
        drawn=("user_id",),
        absent=lambda i: (_nobody(i),),
        ask=lambda at, user: NewestAudit.first_page(_audit(at, user_id=user)),
    ),
    Query(
        name="audit_of_resource",
        title="What happened to one resource",
        table="audit_logs",
        drawn=("resource_type", "resource_id"),
        absent=lambda i: ("mcp_servers", str(_nobody(i))),
        ask=lambda at, kind, pk: NewestAudit.first_page(
            _audit(at, resource_type=kind, resource_id=pk)
        ),
    ),
    Query(
        name="request_page",
        title="Request log, first page",
        table="request_logs",
        drawn=("tenant_id",),
        absent=lambda i: (_nobody(i),),
        ask=lambda at, tenant: NewestRequest.first_page(_requests(at, tenant_id=tenant)),
    ),
    Query(
        name="failed_requests",
        title="Failed requests of a tenant",
        table="request_logs",
        drawn=("tenant_id",),
        absent=lambda i: (_nobody(i),),
        ask=lambda at, tenant: NewestRequest.first_page(
            _requests(at, tenant_id=tenant, status_code__gte=400)
        ),
    ),
    Query(
        name="requests_of_server",
        title="Requests to one server",
        table="request_logs",
        drawn=("tenant_id", "target_server_id"),
        absent=lambda i: (_nobody(i), _nobody(i)),
        ask=lambda at, tenant, server: NewestRequest.first_page(
            _requests(at, tenant_id=tenant, target_server_id=server)
        ),
    ),
    Query(
        name="calls_of_server",
        title="Calls of one server, by everybody",
        table="request_logs",
        drawn=("target_server_id",),
        absent=lambda i: (_nobody(i),),
        ask=lambda at, server: NewestRequest.first_page(_requests(at, target_server_id=server)),
    ),
    Query(
        name="one_request",
        title="One request, by X-Request-ID",
        table="request_logs",
        drawn=("request_id",),
        absent=lambda i: (_nobody(i),),
        ask=_one_request,
    ),
    Query(
        name="fastest_of_route",
        title="Fastest good calls of a route",
        table="request_logs",
        drawn=("path", "method", "target_server_id"),
        where="status_code < 400",
        absent=lambda i: (f"/mcp/absent-{i}", "POST", _nobody(i)),
        ask=lambda at, path, method, server: _requests(
            at, path=path, method=method, target_server_id=server, status_code__lt=400
        ).order_by("duration_ms")[:10],
    ),
    Query(
        name="tenant_performance",
        title="A tenant's last 24 hours",
        table="request_logs",
        drawn=("tenant_id",),
        absent=lambda i: (_nobody(i),),
        ask=lambda _at, tenant: monitoring.request_performance(hours=24, tenant_id=tenant),
    ),
    Query(
        name="tenant_usage",
        title="A tenant's usage of 24 hours",
        table="request_logs",
        drawn=("tenant_id",),
        absent=None,  # an unknown tenant is an error, not an empty answer
        ask=lambda _at, tenant: monitoring.tenant_usage(tenant_ids=[tenant], hours=24),
    ),
    Query(
        name="unhealthy_servers",
        title="A tenant's unhealthy servers",
        table="request_logs",
        drawn=("tenant_id",),
        absent=lambda i: (_nobody(i),),
        ask=lambda _at, tenant: NewestFirst.first_page(
            MCPServer.objects.visible_to(tenant).filter(health_status=HealthStatus.UNHEALTHY)
        ),
    ),
    Query(
        name="address_registered",
        title="Is this address registered?",
        table="mcp_servers",
        drawn=("endpoint_url", "transport_type"),
        absent=lambda i: (f"https://absent-{i}.example.org/mcp", "http"),
        ask=lambda _at, url, transport: MCPServer.objects.filter(
            endpoint_url=url, transport_type=transport
        ),
    ),
    Query(
        name="tools_of_server",
        title="Tools of one server",
        table="request_logs",
        drawn=("target_server_id",),
        absent=lambda i: (_nobody(i),),
        ask=lambda _at, server: ServerTool.objects.filter(server_id=server).order_by("name"),
    ),
    Query(
        name="most_used_tools",
        title="Most used tools",
        table="server_tools",
        drawn=(),
        absent=None,
        ask=lambda _at: ServerTool.objects.filter(total_calls__gt=0).order_by(
            "-total_calls", "-success_count"
        )[:20],
        compared=("total_calls", "success_count"),
    ),
    Query(
        name="sessions_of_user",
        title="A user's live sessions",
        table="sessions",
        drawn=("user_id",),
        absent=lambda i: (_nobody(i),),
        ask=lambda at, user: Session.objects.filter(
            user_id=user, is_active=True, expires_at__gt=at
        ),
    ),
    Query(
        name="who_is_here",
        title="Who is here now?",
        table="sessions",
        drawn=(),
        absent=None,
        ask=lambda _at: Session.objects.filter(is_active=True).order_by("-last_activity")[:50],
    ),
    Query(
        name="keys_of_tenant",
        title="A tenant's API keys, first page",
        table="request_logs",
        drawn=("tenant_id",),
        absent=lambda i: (_nobody(i),),
        ask=lambda _at, tenant: NewestFirst.first_page(
            EnhancedAPIKey.objects.filter(tenant_id=tenant)
        ),
    ),
    Query(
        name="keys_of_user",
        title="A user's API keys",
        table="enhanced_api_keys",
        drawn=("user_id",),
        where="user_id IS NOT NULL",
        absent=lambda i: (_nobody(i),),
        ask=lambda _at, user: NewestFirst.first_page(EnhancedAPIKey.objects.filter(user_id=user)),
    ),
    Query(
        name="rules_of_user",
        title="A user's access rules",
        table="server_access_control",
        drawn=("user_id",),
        where="user_id IS NOT NULL",
        absent=lambda i: (_nobody(i),),
        ask=lambda _at, user: NewestFirst.first_page(
            ServerAccessControl.objects.filter(user_id=user)
        ),
    ),
    Query(
        name="metrics_of_server",
        title="A server's metrics of 24 hours",
        table="server_metrics",
        drawn=("server_id",),
        absent=lambda i: (_nobody(i),),
        ask=_metrics,
    ),
)
