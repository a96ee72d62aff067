"""Seeded rows, made inside PostgreSQL: skewed as real ones are, and correlated.

Popularity follows Zipf's law (the k-th of n is asked for in proportion to 1/k): of tenants, of
servers, of each server's tools. A call's tenant, path, tool, key and duration follow from its
server, its status from the server's health. Everything but the time of the run is the same for
the same sizes. No call lies in the two hours before the last day begins, so that a window of
24 hours that moves while the benchmark runs holds the same rows all the while.

Foreign keys and triggers are off meanwhile, for they would take most of the time: what triggers
make is made at once, and the rollups of the last days, into which all summaries of the benchmark
look, are counted by the function that counts them after a repair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import psycopg
from django.db import connection as django_connection
from django.db import models
from psycopg import sql

from gateway.bench.arms import columns, tables
from monitoring.models import (
    AlertEvent,
    AuditLog,
    DatabaseSizeSnapshot,
    OptimizeRun,
    PerformanceAlert,
    RequestLog,
    StatementSnapshot,
)
from registry.db.partitions import partitions_make
from registry.models import (
    MCPServer,
    ServerMetric,
    ServerPrompt,
    ServerResource,
    ServerTool,
    SystemConfig,
    Tenant,
)
from security.models import APIKey, EnhancedAPIKey, ServerAccessControl, Session, User

__all__ = [
    "DAYS",
    "ROLLUP_DAYS",
    "TABLES",
    "Sizes",
    "age_rows",
    "analyse",
    "fill",
    "make_partitions",
]

Connection = psycopg.Connection[Any]
Told = Callable[[str], None]

DAYS = 30
SEED = 0.42
TOOLS_EACH = 8
# Bytes with all three arms and their indexes, rounded up from what PostgreSQL 15 and 18 needed.
BYTES_A_REQUEST, BYTES_A_SERVER = 2_000, 30_000


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many rows; what the command does not take follows from what it takes."""

    requests: int
    servers: int

    @property
    def tenants(self) -> int:
        return max(20, self.servers // 50)

    @property
    def keys(self) -> int:
        return self.tenants * 20

    @property
    def users(self) -> int:
        return self.tenants * 10

    @property
    def sessions(self) -> int:
        return self.users * 5

    @property
    def audit(self) -> int:
        return max(1000, self.requests // 4)

    @property
    def metrics(self) -> int:
        return max(1000, self.requests // 10)

    @property
    def names(self) -> int:
        """Distinct tool names at each of a server's places."""
        return max(10, self.servers // 40)

    @property
    def bytes_needed(self) -> int:
        return self.requests * BYTES_A_REQUEST + self.servers * BYTES_A_SERVER + 2**30


# --------------------------------------------------------------------------- what rows look like

_HELPERS = """
CREATE SCHEMA bench;
-- PostgreSQL puts a function's expression where the call is, if all in it is as immutable as the
-- function says: i::text is, and text || bigint is not.
-- A version 7 UUID of a time, the rest of it from a text.
CREATE FUNCTION bench.uuid7(ms bigint, salt text) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT overlay(overlay(md5(salt) PLACING lpad(to_hex(ms), 12, '0') || '7' FROM 1 FOR 13)
                   PLACING '8' FROM 17 FOR 1)::uuid $$;
-- The id of the i-th tenant, server, user, …: known without looking it up, in the order of i.
CREATE FUNCTION bench.id(kind text, i bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT bench.uuid7(1700000000000 + i, kind || i::text) $$;
-- 1 to n, k in proportion to 1/k.
CREATE FUNCTION bench.zipf(n bigint) RETURNS bigint LANGUAGE sql VOLATILE AS $$
    SELECT least(n, floor(power(n + 1, random()))::bigint) $$;
-- 0 to 1, always the same for the same number.
CREATE FUNCTION bench.share(i bigint) RETURNS double precision LANGUAGE sql IMMUTABLE AS $$
    SELECT (hashint8(i) & 2147483647) / 2147483648.0 $$;
-- No two tools of a server (places 1 to 8) have one name; some names are on many servers.
CREATE FUNCTION bench.tool(server bigint, place bigint, names bigint) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT 'tool_' || (place
        + 8 * floor(names * power(bench.share(server * 8 + place), 2))::bigint)::text $$;
"""

# One row a server with what its tools, calls and metrics follow from. The most popular servers are
# not the oldest ones: 7919 is prime, so the multiplication deals the ranks out anew.
_SERVERS = """
CREATE TABLE bench.server AS
SELECT i, 1 + (i::bigint * 7919 %% %(servers)s)::int AS rank, bench.id('server', i) AS id,
       'server-' || i AS slug, s.tenant, bench.id('tenant', s.tenant) AS tenant_id,
       (ARRAY['http', 'http', 'http', 'http', 'http', 'http', 'http', 'sse', 'stdio',
              'websocket'])[1 + floor(10 * s.a)::int] AS transport,
       -- Servers that answer slowly are degraded more often.
       CASE WHEN s.b > 0.5 THEN 'healthy' WHEN s.c > 0.8 THEN 'degraded'
            WHEN s.b > 0.1 THEN 'healthy' WHEN s.b > 0.06 THEN 'unhealthy'
            WHEN s.b > 0.03 THEN 'unknown' ELSE 'maintenance' END AS health,
       exp(2 + 4 * s.c) AS latency
  FROM (SELECT i, CASE WHEN i %% 10 = 0 THEN NULL ELSE bench.zipf(%(tenants)s) END AS tenant,
               random() AS a, random() AS b, random() AS c
          FROM generate_series(1, %(servers)s) AS i OFFSET 0) AS s
 ORDER BY i;
CREATE UNIQUE INDEX ON bench.server (rank);
CREATE UNIQUE INDEX ON bench.server (i);
ANALYZE bench.server;
"""

# What a NOT NULL column gets that no query looks at, by its type.
_FILL = {
    "uuid": "bench.id('any', i)",
    "boolean": "false",
    "jsonb": "'{}'",
    "timestamp with time zone": "now()",
    "bytea": "decode(md5(i::text) || md5(i::text), 'hex')",
}
_SCHEMA = (
    """'{"type": "object", "required": ["path"], "properties": {"path": {"type": "string","""
    """
     "description": "Where to look"}, "limit": {"type": "integer", "minimum": 1}}}'"""
)
# A call's place in time: evenly over the days, but for the two quiet hours.
_TIME = """%(at)s - interval '1 second' * CASE
    WHEN age.seconds BETWEEN 79200 AND 86400 THEN age.seconds + 7200 ELSE age.seconds END"""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one table: SQL expressions by column, over the columns of `source`."""

    model: type[models.Model]
    source: str
    columns: dict[str, str]


def _series(count: str) -> str:
    return f"generate_series(1, %({count})s) AS i"


_REGISTRY = [
    Rows(
        Tenant,
        _series("tenants"),
        {"id": "bench.id('tenant', i)", "name": "'Tenant ' || i", "slug": "'tenant-' || i"},
    ),
    Rows(
        MCPServer,
        "bench.server AS s",
        {
            "id": "s.id",
            "tenant_id": "CASE WHEN s.tenant IS NOT NULL THEN s.tenant_id END",
            "name": "'Server ' || i",
            "slug": "s.slug",
            "description": "repeat('Finds things and reads them. ', 3)",
            "endpoint_url": "'https://host-' || i || '.example.org/mcp'",
            "transport_type": "s.transport",
            "health_status": "s.health",
            "last_health_check": "CASE WHEN i %% 20 > 0"
            " THEN %(at)s - interval '1 second' * 320 * bench.share(i) END",
            "avg_response_time": "s.latency * (1 + bench.share(i) / 10)",
            "success_rate": "CASE s.health WHEN 'unhealthy' THEN 0.4 ELSE 0.99 END",
            "is_enabled": "i %% 50 > 0",
        },
    ),
    Rows(
        ServerTool,
        "bench.server AS s CROSS JOIN LATERAL (SELECT place, s.i * 8 + place AS n,"
        " floor(exp(14 * bench.share(s.i * 16 + place)) - 20)::bigint AS calls"
        " FROM generate_series(1, 8) AS place) AS t",
        {
            "id": "bench.id('tool', t.n)",
            "server_id": "s.id",
            "name": "bench.tool(s.i, t.place, %(names)s)",
            "description": "repeat('Looks up what the caller names. ', 4)",
            "input_schema": _SCHEMA,
            "total_calls": "greatest(0, t.calls)",
            "success_count": "floor(greatest(0, t.calls) * 0.97)",
            "error_count": "ceil(greatest(0, t.calls) * 0.03)",
            "avg_execution_time": "CASE WHEN t.calls > 0 THEN s.latency END",
            "is_enabled": "t.n %% 40 > 0",
            "schema_hash": "md5(t.n::text)",
        },
    ),
    *(
        Rows(
            model,
            "bench.server AS s",
            {"id": "bench.id('thing', i)", "server_id": "s.id", name: "'thing-' || i"},
        )
        for model, name in ((ServerResource, "uri_template"), (ServerPrompt, "name"))
    ),
    Rows(
        SystemConfig,
        _series("users"),
        {
            "id": "bench.id('config', i)",
            "tenant_id": "bench.id('tenant', 1 + (i - 1) / 10)",
            "key": "'setting.' || i %% 10",
        },
    ),
]

_SECURITY = [
    Rows(
        User,
        _series("users"),
        {
            "id": "bench.id('user', i)",
            "tenant_id": "bench.id('tenant', 1 + (i - 1) %% %(tenants)s)",
            "username": "'user-' || i",
            "email": "'user-' || i || '@example.org'",
            "password": "'!' || md5(i::text)",
            "role": "(ARRAY['user', 'user', 'user', 'user', 'user', 'user', 'user', 'admin',"
            " 'service', 'readonly'])[1 + i %% 10]",
            "is_active": "i %% 11 > 0",
        },
    ),
    Rows(
        Session,
        "(SELECT i, bench.zipf(%(users)s) AS u"
        " FROM generate_series(1, %(sessions)s) AS i OFFSET 0) AS d",
        {
            "id": "bench.id('session', i)",
            "user_id": "bench.id('user', u)",
            # As the session store does it; the agent's name lets the benchmark know the cookie.
            "session_token": "encode(sha256(convert_to('session-' || i, 'UTF8')), 'hex')",
            "user_agent": "'session-' || i",
            "session_data": "repeat('x', 120)",
            "is_active": "i %% 10 < 3",
            "expires_at": "%(at)s + interval '1 second'"
            " * CASE WHEN i %% 10 < 3 THEN 86400 * (1 + 13 * bench.share(i))"
            " ELSE -86400 * 20 * bench.share(i) END",
            "last_activity": "%(at)s - interval '1 second'"
            " * CASE WHEN i %% 10 < 3 THEN 86400 * bench.share(i)"
            " ELSE 86400 * (1 + 20 * bench.share(i)) END",
        },
    ),
    Rows(
        APIKey,
        _series("users"),
        {
            "id": "bench.id('plain', i)",
            "tenant_id": "bench.id('tenant', 1 + (i - 1) %% %(tenants)s)",
            "user_id": "bench.id('user', i)",
            "key_hash": "encode(sha256(convert_to('mcpgw_plain_' || i, 'UTF8')), 'hex')",
            "key_prefix": "'plain-' || i",
            "scopes": "'{read,proxy}'",
            "is_active": "i %% 7 > 0",
        },
    ),
    Rows(
        EnhancedAPIKey,
        _series("keys"),
        {
            "id": "bench.id('key', i)",
            "tenant_id": "bench.id('tenant', 1 + (i - 1) %% %(tenants)s)",
            "user_id": "CASE WHEN i %% 3 = 0 THEN bench.id('user', 1 + (i - 1) %% %(tenants)s) END",
            "key_prefix": "'key-' || i",
            "scopes": "'{read,proxy}'",
            "is_active": "i %% 9 > 0",
        },
    ),
    Rows(
        ServerAccessControl,
        "bench.server AS s CROSS JOIN LATERAL (SELECT n, random() AS r"
        " FROM generate_series(0, 3) AS n OFFSET 0) AS d",
        {
            "id": "bench.id('rule', s.i * 4 + d.n)",
            "server_id": "s.id",
            "tenant_id": "CASE d.n WHEN 0 THEN"
            " coalesce(s.tenant_id, bench.id('tenant', 1 + s.i %% %(tenants)s)) END",
            "user_id": "CASE d.n WHEN 1 THEN bench.id('user', 1 + s.i %% %(users)s) END",
            "api_key_id": "CASE WHEN d.n >= 2 THEN"
            " bench.id('key', 1 + (s.i * 2 + d.n) %% %(keys)s) END",
            "can_proxy": "true",
            "is_active": "d.r < 0.5",
        },
    ),
]

# The server of a call by its popularity, its tenant (callers of shared servers are anybody's), and
# a second popularity: of the server's tools.
_CALLS = """(
    SELECT i, bench.zipf(%(servers)s) AS rank, bench.zipf(%(tenants)s) AS guest,
           bench.zipf(8) AS place, random() AS a, random() AS b,
           (%({count})s - i + random()) * %(seconds)s / %({count})s AS seconds
      FROM generate_series(1, %({count})s) AS i OFFSET 0) AS age
  JOIN bench.server AS s USING (rank)
 CROSS JOIN LATERAL (SELECT coalesce(s.tenant, age.guest) AS tenant) AS caller"""
_STATUS = """CASE WHEN age.a > CASE s.health WHEN 'unhealthy' THEN 0.5 ELSE 0.985 END
    THEN (ARRAY[502, 504, 429, 403])[1 + floor(4 * age.b)::int] ELSE 200 END"""

_LOGS = [
    Rows(
        RequestLog,
        _CALLS.replace("{count}", "requests"),
        {
            "id": "bench.uuid7((extract(epoch FROM {time}) * 1000)::bigint, 'r' || age.i)",
            "request_time": "{time}",
            "request_id": "bench.uuid7((extract(epoch FROM {time}) * 1000)::bigint, 'x' || age.i)",
            "tenant_id": "bench.id('tenant', caller.tenant)",
            "user_id": "CASE WHEN age.b < 0.3 THEN bench.id('user', caller.tenant) END",
            "api_key_id": "bench.id('key', caller.tenant + %(tenants)s * floor(5 * age.b)::int)",
            "ip_address": "('203.0.113.' || floor(250 * age.b))::inet",
            "method": "'POST'",
            "path": "'/mcp/' || s.slug",
            "rpc_method": "CASE WHEN age.b < 0.85 THEN 'tools/call' ELSE 'tools/list' END",
            "tool_name": "CASE WHEN age.b < 0.85"
            " THEN bench.tool(s.i, age.place, %(names)s) ELSE '' END",
            "target_server_id": "s.id",
            "status_code": _STATUS,
            "duration_ms": "s.latency * exp(age.a + age.b - 0.5)",
            "upstream_ms": "s.latency * exp(age.a + age.b - 0.6)",
            "request_size_bytes": "200 + floor(600 * age.b)",
            "response_size_bytes": "floor(exp(5 + 6 * age.a))",
            "protocol_version": "'2025-06-18'",
        },
    ),
    Rows(
        AuditLog,
        _CALLS.replace("{count}", "audit"),
        {
            "id": "bench.uuid7((extract(epoch FROM {time}) * 1000)::bigint, 'a' || age.i)",
            "timestamp": "{time}",
            "tenant_id": "bench.id('tenant', caller.tenant)",
            "user_id": "bench.id('user', caller.tenant)",
            "service_name": "'api'",
            "action": "(ARRAY['server.update', 'api_key.create', 'tool.update',"
            " 'call.denied'])[1 + floor(4 * age.b)::int]",
            "resource_type": "'mcp_servers'",
            "resource_id": "s.id::text",
            "ip_address": "('203.0.113.' || floor(250 * age.b))::inet",
            "success": "age.a < 0.9",
        },
    ),
    Rows(
        ServerMetric,
        _CALLS.replace("{count}", "metrics"),
        {
            "id": "bench.uuid7((extract(epoch FROM {time}) * 1000)::bigint, 'm' || age.i)",
            "timestamp": "{time}",
            "server_id": "s.id",
            "response_time_ms": "s.latency * exp(age.a - 0.5)",
        },
    ),
]

# What the worker writes about the database itself: some rows, whatever the size.
_WATCHED = [
    Rows(
        PerformanceAlert,
        "generate_series(1, 200) AS i",
        {"id": "bench.id('alert', i)", "name": "'alert ' || i"},
    ),
    Rows(
        AlertEvent,
        "generate_series(1, 20000) AS i",
        {
            "id": "bench.uuid7((extract(epoch FROM %(at)s) * 1000)::bigint - i * 1800000::bigint,"
            " 'event' || i)",
            "alert_id": "bench.id('alert', bench.zipf(200))",
            "occurred_at": "%(at)s - i * interval '30 minutes'",
        },
    ),
    Rows(
        DatabaseSizeSnapshot,
        "generate_series(1, 12000) AS i",
        {
            "id": "bench.id('size', i)",
            "table_name": "'table_' || i %% 30",
            "taken_on": "(%(at)s)::date - (i / 30)::int",
        },
    ),
    Rows(
        StatementSnapshot,
        "generate_series(1, 5000) AS i",
        {
            "id": "bench.id('statement', i)",
            "query_id": "i",
            # Nearly all of them were called just now.
            "taken_at": "%(at)s - CASE WHEN i %% 50 = 0 THEN i ELSE 0 END * interval '3 minutes'",
        },
    ),
    Rows(
        OptimizeRun,
        "generate_series(1, 3000) AS i",
        {
            "id": "bench.id('run', i)",
            "started_at": "%(at)s - i * interval '4 hours'",
            "outcome": "'done'",
            "statements": "'[]'",
        },
    ),
]


TABLES = (*_REGISTRY, *_SECURITY, *_LOGS, *_WATCHED)


# --------------------------------------------------------------------------- and written


def fill(
    connection: Connection, *, sizes: Sizes, at: datetime, told: Told, rollup_days: int
) -> None:
    """Fill the migrated tables; `at` is the end of the history."""
    parameters = {
        "at": at,
        "seconds": DAYS * 86_400 - 10_000,  # the quiet hours move rows back
        **{name: getattr(sizes, name) for name in _COUNTS},
    }
    connection.execute(_HELPERS)
    # No worker in parallel: each of them would have a sequence of random numbers of its own.
    connection.execute("SET max_parallel_workers_per_gather = 0")
    connection.execute("SET work_mem = '256MB'")
    connection.execute("SELECT setseed(%s)", [SEED])
    with _unguarded(connection, told):
        psycopg.ClientCursor(connection).execute(_SERVERS, parameters)
        for rows in TABLES:
            told(f"Filling {rows.model._meta.db_table}")
            _insert(connection, rows, parameters)
        connection.execute(_SERVER_DEFAULTS)
    told(f"Counting the rollups of {rollup_days} days")
    _count_rollups(connection, at, days=rollup_days)
    connection.execute("RESET work_mem")
    connection.execute("RESET max_parallel_workers_per_gather")


_COUNTS = (
    "requests",
    "servers",
    "tenants",
    "keys",
    "users",
    "sessions",
    "audit",
    "metrics",
    "names",
)


def _insert(connection: Connection, rows: Rows, parameters: dict[str, Any]) -> None:
    there = columns(rows.model)
    if unknown := rows.columns.keys() - there:
        raise LookupError(f"{rows.model.__name__} has no column {', '.join(unknown)}")
    values = {
        column: rows.columns.get(column) or _any_value(field) for column, field in there.items()
    }
    time = f"({_TIME})"
    statement = sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {}").format(
        sql.Identifier(rows.model._meta.db_table),
        sql.SQL(", ").join([sql.Identifier(column) for column in values]),
        sql.SQL(", ").join(sql.SQL(value.replace("{time}", time)) for value in values.values()),
        sql.SQL(rows.source),
    )
    psycopg.ClientCursor(connection).execute(statement, parameters)


def _any_value(field: models.Field[Any, Any]) -> str:
    if field.null:
        return "NULL"
    kind = field.db_type(django_connection) or ""
    if kind.endswith("[]"):
        return "'{}'"
    if field.choices:
        return sql.Literal(str(next(iter(field.flatchoices))[0])).as_string(None)
    return _FILL.get(kind, "''" if "char" in kind or kind == "text" else "1")


# --------------------------------------------------------------------------- without guards

_FOREIGN_KEYS = """
    SELECT t.relname, c.conname, pg_get_constraintdef(c.oid)
      FROM pg_constraint AS c JOIN pg_class AS t ON t.oid = c.conrelid
     WHERE c.contype = 'f' AND c.conparentid = 0 AND t.relnamespace = 'public'::regnamespace
       AND t.relname = ANY (%s)
     ORDER BY 1, 2
"""


@contextmanager
def _unguarded(connection: Connection, told: Told) -> Iterator[None]:
    """No foreign keys and no triggers inside; afterwards the keys are checked all at once."""
    keys = connection.execute(_FOREIGN_KEYS, [list(tables())]).fetchall()
    for table, name, _ in keys:
        _alter(connection, table, sql.SQL("DROP CONSTRAINT {}").format(sql.Identifier(name)))
    for table in tables():
        _alter(connection, table, sql.SQL("DISABLE TRIGGER USER"))
    yield
    told(f"Checking {len(keys)} foreign keys")
    for table in tables():
        _alter(connection, table, sql.SQL("ENABLE TRIGGER USER"))
    for table, name, definition in keys:
        added = sql.SQL("ADD CONSTRAINT {} ").format(sql.Identifier(name)) + sql.SQL(definition)
        _alter(connection, table, added)


def _alter(connection: Connection, table: str, change: sql.Composable) -> None:
    connection.execute(sql.SQL("ALTER TABLE {} ").format(sql.Identifier(table)) + change)


# What a trigger makes for each new server; one breaker in a hundred is open.
_SERVER_DEFAULTS = """
INSERT INTO circuit_breakers (id, server_id, state)
SELECT bench.id('breaker', i), id, CASE WHEN i % 100 = 0 THEN 'open' ELSE 'closed' END
  FROM bench.server;
INSERT INTO connection_pools (id, server_id, transport_type)
SELECT bench.id('pool', i), id, transport FROM bench.server;
INSERT INTO request_queues (id, server_id) SELECT bench.id('queue', i), id FROM bench.server;
"""

ROLLUP_DAYS = 3  # the last ones: no window of bench_db reaches further back
COMPACTED = 50_000  # deltas a step
UNCOMPACTED = 200  # what the worker has not moved yet
_DELTAS = ("request_rollup_deltas", "request_usage_deltas", "request_user_deltas")


def _count_rollups(connection: Connection, at: datetime, *, days: int) -> None:
    """As the worker leaves them: nearly all deltas are moved."""
    first = (at - timedelta(days=days - 1)).date()
    connection.execute("SELECT request_rollups_rebuild(%s, %s)", [first, at.date()])
    for table in _DELTAS:
        kept, names = sql.Identifier("bench", table), sql.Identifier(table)
        newest = sql.SQL(
            "CREATE TABLE {} AS SELECT * FROM {} ORDER BY bucket DESC, id DESC LIMIT {}"
        )
        connection.execute(newest.format(kept, names, UNCOMPACTED))
        away = sql.SQL("DELETE FROM {} AS d USING {} AS kept WHERE d.id = kept.id")
        connection.execute(away.format(names, kept))
    while _moved(connection):
        pass
    for table in _DELTAS:
        kept, back = sql.Identifier("bench", table), sql.Identifier(table)
        connection.execute(sql.SQL("INSERT INTO {} SELECT * FROM {}").format(back, kept))


def _moved(connection: Connection) -> int:
    found = connection.execute("SELECT request_rollups_compact(%s)", [COMPACTED]).fetchone()
    return int(found[0]) if found else 0


# --------------------------------------------------------------------------- and aged

# Tables whose rows live and change; logs are only ever written.
CHANGING = (MCPServer, ServerTool, Session, EnhancedAPIKey, APIKey, User, ServerAccessControl)


def age_rows(connection: Connection, schema: str) -> None:
    """Vacuum as autovacuum would, then leave 5 % dead rows behind in the tables that change."""
    for table in tables():
        connection.execute(sql.SQL("VACUUM (ANALYZE) {}").format(sql.Identifier(schema, table)))
    for model in CHANGING:
        connection.execute(
            sql.SQL(
                "UPDATE {} SET updated_at = updated_at WHERE hashtext(id::text) %% 20 = 0"
            ).format(sql.Identifier(schema, model._meta.db_table)),
            {},
        )


def analyse(connection: Connection, schema: str) -> None:
    for table in tables():
        connection.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(schema, table)))


def make_partitions(*, at: datetime) -> None:
    """A partition a day for the days before those that the migrations made."""
    partitions_make(at=at, back_to=at - timedelta(days=DAYS + 1))
