"""Rows with realistic skew, made inside PostgreSQL: few giants, many small ones, correlated."""

from __future__ import annotations

from typing import Any

from django.db import connection, models
from psycopg import sql

from monitoring.models import (
    AlertEvent,
    AuditLog,
    DatabaseSizeSnapshot,
    MetricSnapshot,
    OptimizeRun,
    PerformanceAlert,
    RequestLog,
    StatementSnapshot,
)
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
from tests.partitions import daily_partitions

# What a NOT NULL column gets that nobody cares about.
_FILL = {
    "uuid": "gen_random_uuid()",
    "boolean": "false",
    "jsonb": "'{}'",
    "timestamp with time zone": "now()",
    "bytea": "decode(md5(random()::text), 'hex')",
}


def seed_everything() -> None:
    """A month of a busy gateway in small; deterministic but for ids."""
    _run("SET LOCAL statement_timeout = '5min'")  # the machine may be busy
    _run("SELECT setseed(0.42)")
    daily_partitions(days=31)
    _seed_registry()
    _seed_security()
    _seed_logs()
    _run("SET LOCAL lock_timeout = '60s'")  # autovacuum may be at one of the tables
    _run("ANALYZE")


def _seed_registry() -> None:
    rows(Tenant, 3000, slug="'tenant-' || i", status="'active'")
    more_servers(8000)
    rows(
        ServerTool,
        48_000,
        server_id="server.ids[1 + i / 6 % 8000]",
        # Six names a server without a repetition: some names on every tenth server.
        name="'tool_' || i % 6 || '_' || floor(80 * random() ^ 2)",
        total_calls="calls.made",
        success_count="floor(calls.made * 0.9)",
        avg_execution_time="exp(3 + 2 * random())",
        is_enabled="true",
        source=_ids(MCPServer, "server")
        + ", LATERAL (SELECT greatest(0, floor(exp(9 * random()) - 20 + 0 * i)) AS made) calls",
    )
    for model, name in ((ServerResource, "uri_template"), (ServerPrompt, "name")):
        of_server = {"server_id": "server.ids[1 + i / 2 % 8000]", name: "'thing-' || i % 2"}
        rows(model, 16_000, source=_ids(MCPServer, "server"), **of_server)
    rows(
        SystemConfig,
        6000,
        tenant_id="tenant.ids[1 + i / 20]",
        key="'setting.' || i % 20",
        source=_ids(Tenant, "tenant"),
    )
    rows(
        ServerMetric,
        40_000,
        server_id="server.ids[1 + floor(400 * random() ^ 2)]",
        timestamp="now() - random() * interval '30 days'",
        source=_ids(MCPServer, "server"),
    )
    _run("UPDATE circuit_breakers SET state = 'open' WHERE random() < 0.01")


def more_servers(count: int, *, since: int = 0) -> None:
    """Servers as the first ones are; `since`: how many there are."""
    rows(
        MCPServer,
        count,
        # The first tenant has a fifteenth of the servers; every tenth server is shared.
        tenant_id="CASE WHEN i % 10 > 0 THEN tenant.ids[1 + floor(3000 * random() ^ 3)] END",
        slug=f"'server-' || i + {since}",
        endpoint_url="'https://host-' || i || '.example.org/mcp'",
        transport_type="(ARRAY['http', 'http', 'http', 'http', 'sse', 'stdio'])[1 + i % 6]",
        health_status="(ARRAY['healthy', 'healthy', 'healthy', 'healthy', 'healthy', 'healthy',"
        " 'degraded', 'unhealthy', 'unknown', 'maintenance'])[1 + floor(10 * random())]",
        last_health_check="CASE WHEN i % 20 > 0 THEN now() - random() * interval '320 s' END",
        avg_response_time="exp(3 + 2 * random())",
        is_enabled="i % 50 > 0",
        source=_ids(Tenant, "tenant"),
    )
    if since:
        _run("ANALYZE mcp_servers")


def _seed_security() -> None:
    of_tenant = {
        "tenant_id": "tenant.ids[1 + floor(3000 * random() ^ 2)]",
        "source": _ids(Tenant, "tenant"),
    }
    rows(
        User,
        6000,
        username="'user' || i",
        email="'user' || i || '@example.org'",
        role="(ARRAY['admin', 'user', 'user', 'user', 'service', 'readonly'])[1 + i % 6]",
        is_active="i % 9 > 0",
        **of_tenant,
    )
    rows(
        Session,
        20_000,
        user_id="person.ids[1 + floor(6000 * random() ^ 2)]",
        session_token="md5(i::text) || md5(i::text)",
        expires_at="now() + (random() - 0.7) * interval '20 days'",
        is_active="random() < 0.3",
        last_activity="now() - random() * interval '20 days'",
        source=_ids(User, "person"),
    )
    live = {"is_active": "i % 5 > 0"}
    key = {
        "tenant_id": of_tenant["tenant_id"],
        "user_id": "CASE WHEN i % 3 = 0 THEN person.ids[1 + i % 6000] END",
        "source": f"{_ids(Tenant, 'tenant')}, {_ids(User, 'person')}",
        **live,
    }
    rows(APIKey, 6000, key_hash="md5(i::text) || md5(i::text)", **key)
    rows(
        EnhancedAPIKey,
        6000,
        key_prefix="'p' || i",
        # A third has an end; those that ended a month ago are mostly switched off already.
        expires_at="CASE WHEN i % 3 = 0 THEN now() + (i - 300) * interval '4 hours' END",
        is_locked="i % 200 = 0",
        **key,
    )
    rows(
        ServerAccessControl,
        10_000,
        server_id="server.ids[1 + i % 8000]",
        user_id="CASE WHEN i % 3 = 0 THEN person.ids[1 + i % 6000] END",
        tenant_id="CASE WHEN i % 3 = 1 THEN tenant.ids[1 + i % 3000] END",
        api_key_id="CASE WHEN i % 3 = 2 THEN key.ids[1 + i % 6000] END",
        is_active="true",
        source=", ".join(
            _ids(model, name)
            for model, name in (
                (MCPServer, "server"),
                (User, "person"),
                (Tenant, "tenant"),
                (EnhancedAPIKey, "key"),
            )
        ),
    )


def _seed_logs() -> None:
    rows(
        RequestLog,
        100_000,
        # A month in the order of time, the more the nearer: 18,000 of them within the last day.
        request_time="now() - ((100000.0 - i) / 100000) ^ 2 * interval '30 days'",
        tenant_id="tenant.ids[1 + floor(3000 * random() ^ 3)]",
        target_server_id="server.ids[route.n]",
        user_id="md5((i % 700)::text)::uuid",
        method="CASE WHEN i % 30 > 0 THEN 'POST' ELSE 'GET' END",
        path="'/mcp/server-' || route.n",
        status_code="CASE WHEN random() < 0.93 THEN 200 ELSE 502 END",
        duration_ms="exp(2 + 4 * random())",
        source=f"{_ids(Tenant, 'tenant')}, {_ids(MCPServer, 'server')},"
        " LATERAL (SELECT 1 + floor(800 * random() ^ 3 + 0 * i)::int AS n) route",
    )
    rows(
        AuditLog,
        40_000,
        timestamp="now() - (40000 - i) * interval '65 s'",
        tenant_id="tenant.ids[1 + floor(3000 * random() ^ 3)]",
        user_id="person.ids[1 + floor(6000 * random() ^ 2)]",
        resource_type="(ARRAY['mcp_servers', 'enhanced_api_keys'])[1 + i % 2]",
        resource_id="server.ids[1 + floor(8000 * random() ^ 2)]::text",
        source=f"{_ids(Tenant, 'tenant')}, {_ids(User, 'person')}, {_ids(MCPServer, 'server')}",
    )
    rows(
        PerformanceAlert,
        2000,
        name="'alert ' || i",
        comparison_operator="'>'",
        # Most watch one server.
        server_id="CASE WHEN i % 10 > 0 THEN server.ids[1 + i] END",
        source=_ids(MCPServer, "server"),
    )
    rows(
        AlertEvent,
        20_000,
        alert_id="alert.ids[1 + floor(2000 * random() ^ 2)]",
        occurred_at="now() - i * interval '30 minutes'",
        source=_ids(PerformanceAlert, "alert"),
    )
    rows(
        DatabaseSizeSnapshot,
        12_000,
        table_name="'table_' || i % 30",
        taken_on="current_date - i / 30",
    )
    rows(
        StatementSnapshot,
        5000,
        query_id="i",
        # Nearly all of them were called just now.
        taken_at="CASE WHEN i % 50 > 0 THEN now() ELSE now() - i * interval '3 min' END",
    )
    rows(
        MetricSnapshot,
        60_000,
        metric="'metric_' || i % 7",
        subject="''",
        bucket="date_trunc('hour', now()) - i / 7 * interval '5 minutes'",
    )
    rows(OptimizeRun, 3000, started_at="now() - i * interval '4 hours'", outcome="'done'")


def rows(model: type[models.Model], count: int, *, source: str = "", **columns: str) -> None:
    """Insert `count` rows; each column is an SQL expression over i, 1 to count."""
    values = {
        field.column: columns.pop(field.column, None) or _fill(field)
        for field in model._meta.concrete_fields
    }
    assert not columns, f"{model.__name__} has no {', '.join(columns)}"
    statement = sql.SQL("INSERT INTO {} ({}) SELECT {} FROM generate_series(1, {}) i{}").format(
        sql.Identifier(model._meta.db_table),
        sql.SQL(", ").join(map(sql.Identifier, values)),
        sql.SQL(", ").join(map(sql.SQL, values.values())),
        count,
        sql.SQL(f", {source}" if source else ""),
    )
    _run(statement)


def _fill(field: Any) -> str:
    if field.null:
        return "NULL"
    kind = field.db_type(connection)
    if kind.endswith("[]"):
        return "'{}'"
    if field.choices:
        return f"'{field.choices[0][0]}'"
    return _FILL.get(kind, "''" if "char" in kind or kind == "text" else "1")


def _ids(model: type[models.Model], name: str) -> str:
    table = model._meta.db_table
    return f"(SELECT array_agg(id ORDER BY id) AS ids FROM {table}) {name}"  # noqa: S608


def _run(statement: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)
