"""One tenant tries to reach another one's rows: in SQL on every table, and on every API path.

Everything here is logged in as the application's role, on connections of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg
import pytest
from django.db import connection, transaction
from drf_spectacular.generators import SchemaGenerator
from psycopg import errors, sql

from registry.api.base import ScopedViewSet
from registry.db.ids import uuid7
from registry.db.tenancy import (
    narrow_to_tenant,
    operator_transaction,
    tenant_transaction,
    transaction_left,
)
from registry.models import MCPServer, Tenant
from tests.api import API, api_patterns, client_of
from tests.factories import AlertEventFactory
from tests.integration.gateway.test_api_every_address import MAKE, OPERATORS, path_of
from tests.walls import logged_in_as_app, make_tenant, raw_connection, walled_tables

pytestmark = pytest.mark.django_db(transaction=True)
BY_TENANT = {"request_rollups", "request_usage", "request_users"}  # tables without an id


@dataclass
class Two:
    """Two tenants; of each walled table the ids of the second one's rows, and one of its rows."""

    mine: Tenant
    my_server: MCPServer
    other: Tenant
    other_server: MCPServer
    foreign: dict[str, list[UUID]] = field(default_factory=dict)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)


@pytest.fixture
def two() -> Two:
    mine, my_server = make_tenant()
    before = {table: set(_ids(table)) for table in walled_tables()}
    other, other_server = make_tenant()
    found = Two(mine, my_server, other, other_server)
    for table in walled_tables():
        found.foreign[table] = [pk for pk in _ids(table) if pk not in before[table]]
        assert before[table], f"make_tenant() makes no row in {table}"
        assert found.foreign[table], f"make_tenant() makes no row in {table}"
        found.rows[table] = _row(table, found.foreign[table][0])
    return found


def _id(table: str) -> sql.Identifier:
    """What tells a table's rows apart, or at least those of one tenant from the others'."""
    return sql.Identifier("tenant_id" if table in BY_TENANT else "id")


def _ids(table: str) -> list[UUID]:
    with connection.cursor() as cursor:
        query = sql.SQL("SELECT DISTINCT {} FROM {}")
        cursor.execute(query.format(_id(table), sql.Identifier(table)))
        return [row[0] for row in cursor.fetchall()]


def _row(table: str, pk: UUID) -> dict[str, Any]:
    query = sql.SQL("SELECT to_jsonb(t)::text FROM {} AS t WHERE {} = %s LIMIT 1")
    with connection.cursor() as cursor:
        cursor.execute(query.format(sql.Identifier(table), _id(table)), [pk])
        return json.loads(cursor.fetchone()[0])


@contextmanager
def walled_as(tenant: Tenant) -> Iterator[psycopg.Connection[Any]]:
    """A session of the application's role with a tenant set, and its transaction open."""
    with raw_connection() as own, own.transaction(force_rollback=True):
        own.execute("SELECT set_config('gateway.tenant_id', %s, true)", [str(tenant.pk)])
        yield own


def touched(own: psycopg.Connection[Any], statement: str, table: str, *values: Any) -> int:
    """How many rows a statement saw or changed; 0 as well where it is refused."""
    query = sql.SQL(statement).format(table=sql.Identifier(table), id=_id(table))
    try:
        with own.transaction():
            return own.execute(query, values).rowcount
    except (errors.InsufficientPrivilege, errors.IntegrityError):
        return 0


# ---------------------------------------------------------------- every table, in SQL


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT {id} FROM {table} WHERE {id} = ANY(%s)",
        "SELECT {id} FROM {table} WHERE {id} = ANY(%s) FOR UPDATE",
        "UPDATE {table} SET {id} = {id} WHERE {id} = ANY(%s)",
        "DELETE FROM {table} WHERE {id} = ANY(%s)",
        "SELECT t.{id} FROM tenants AS me CROSS JOIN {table} AS t WHERE t.{id} = ANY(%s)",
        "SELECT FROM mcp_servers AS s WHERE EXISTS (SELECT FROM {table} WHERE {id} = ANY(%s))",
        "WITH t AS MATERIALIZED (SELECT * FROM {table}) SELECT FROM t WHERE {id} = ANY(%s)",
        "SELECT FROM {table} GROUP BY {id} HAVING {id} = ANY(%s)",
    ],
)
def test_no_statement_reaches_another_tenants_row(two: Two, statement: str) -> None:
    with walled_as(two.mine) as own:
        reached = {table: touched(own, statement, table, ids) for table, ids in two.foreign.items()}
    assert reached == dict.fromkeys(two.foreign, 0)


def test_the_same_statements_reach_a_tenants_own_rows(two: Two) -> None:
    """So that what is refused above is refused for its tenant, and for nothing else."""
    with walled_as(two.other) as own:
        for table, ids in two.foreign.items():
            seen = touched(own, "SELECT FROM {table} WHERE {id} = ANY(%s)", table, ids)
            # Of a call one row is the tenant's, one is of all tenants together.
            assert seen >= (1 if table == "request_rollup_deltas" else len(ids)), table
        assert touched(own, "UPDATE {table} SET name = 'mine'", "mcp_servers") == 1


def test_no_row_is_added_for_another_tenant(two: Two) -> None:
    statement = "INSERT INTO {} SELECT (jsonb_populate_record(NULL::{}, %s::jsonb)).*"
    with walled_as(two.mine) as own:
        for table, row in two.rows.items():
            copy = json.dumps(row | {"id": str(uuid7())})
            query = sql.SQL(statement).format(sql.Identifier(table), sql.Identifier(table))
            with pytest.raises(errors.InsufficientPrivilege), own.transaction():
                own.execute(query, [copy])


GIVEN_TO = {
    "tenant_id": "UPDATE {table} SET tenant_id = %s",
    "server_id": "UPDATE {table} SET server_id = %s",
}


def test_no_row_is_given_to_another_tenant(two: Two) -> None:
    owners = {"tenant_id": two.other.pk, "server_id": two.other_server.pk}
    with walled_as(two.mine) as own:
        tried = 0
        for table, row in two.rows.items():
            for column in owners.keys() & row.keys():
                tried += 1
                moved = touched(own, GIVEN_TO[column], table, owners[column])
                assert moved == 0, (table, column)
    assert tried > 10


def test_a_row_that_is_walled_off_is_not_betrayed_by_an_error(two: Two) -> None:
    """The condition would divide by zero on the other tenant's rows, and on them alone."""
    trap = "SELECT FROM {table} WHERE 1 / (CASE WHEN {id} = ANY(%s) THEN 0 ELSE 1 END) = 1"
    with walled_as(two.mine) as own:
        for table, ids in two.foreign.items():
            assert touched(own, trap, table, ids) > 0 or table == "sessions"


def test_without_a_tenant_there_is_nothing(two: Two) -> None:
    with raw_connection() as own:
        for table in two.foreign:
            seen = touched(own, "SELECT FROM {table} WHERE tableoid IS NOT NULL", table)
            shared = 0  # nobody made a shared row
            assert seen == shared, table


def test_shared_servers_are_read_and_not_changed(two: Two) -> None:
    MCPServer.objects.filter(pk=two.other_server.pk).update(tenant=None)
    ids = [two.other_server.pk]
    with walled_as(two.mine) as own:
        assert touched(own, "SELECT FROM {table} WHERE id = ANY(%s)", "mcp_servers", ids) == 1
        assert (
            touched(own, "UPDATE {table} SET name = '' WHERE id = ANY(%s)", "mcp_servers", ids) == 0
        )
        tools = "SELECT FROM {table} WHERE server_id = ANY(%s)"
        assert touched(own, tools, "server_tools", ids) == 1
        assert (
            touched(own, "DELETE FROM {table} WHERE server_id = ANY(%s)", "server_tools", ids) == 0
        )


# ---------------------------------------------------------------- transactions


def test_a_tenant_does_not_outlive_its_transaction(two: Two) -> None:
    with logged_in_as_app():
        with tenant_transaction(tenant_id=two.mine.pk):
            assert list(MCPServer.objects.all()) == [two.my_server]
        assert not MCPServer.objects.exists()
        with operator_transaction():
            assert MCPServer.objects.count() == 2
        assert not MCPServer.objects.exists()


def _fail_as_operator() -> None:
    with operator_transaction():
        assert MCPServer.objects.count() == 2
        raise ZeroDivisionError


def test_neither_does_it_outlive_one_that_failed(two: Two) -> None:
    with logged_in_as_app():
        with pytest.raises(ZeroDivisionError):
            _fail_as_operator()
        assert not MCPServer.objects.exists()


def test_nested_transactions_give_back_what_was_set_before(two: Two) -> None:
    with logged_in_as_app(), operator_transaction():
        with tenant_transaction(tenant_id=two.mine.pk):
            with pytest.raises(ZeroDivisionError):
                _fail_as_operator()
            assert list(MCPServer.objects.all()) == [two.my_server]
            with operator_transaction():
                assert MCPServer.objects.count() == 2
            assert list(MCPServer.objects.all()) == [two.my_server]
        assert MCPServer.objects.count() == 2


def test_a_transaction_is_left_and_goes_on_as_the_same_tenant(two: Two) -> None:
    with logged_in_as_app(), operator_transaction():
        narrow_to_tenant(two.mine.pk)
        MCPServer.objects.update(name="kept")
        with transaction_left():
            assert not connection.in_atomic_block
            with raw_connection(user="postgres") as other:
                [name] = other.execute(
                    "SELECT name FROM mcp_servers WHERE id = %s", [two.my_server.pk]
                ).fetchone()
            assert name == "kept", "it was committed"
        assert list(MCPServer.objects.all()) == [two.my_server]
        with transaction.atomic(), transaction_left():
            assert connection.in_atomic_block, "somebody else's transaction cannot be left"


def test_a_role_is_not_changed_outside_of_a_transaction() -> None:
    with pytest.raises(transaction.TransactionManagementError, match="operator_transaction"):
        narrow_to_tenant(uuid7())


# ---------------------------------------------------------------- the role's rights


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE intruder (id int)",
        "ALTER TABLE tenants ADD COLUMN intruder int",
        "DROP TABLE tenants",
        "TRUNCATE tenants",
        "CREATE INDEX intruder ON tenants (name)",
        "ALTER TABLE tenants DISABLE ROW LEVEL SECURITY",
        "DROP POLICY tenant_reads ON tenants",
        "CREATE FUNCTION intruder() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE ROLE intruder",
        "SELECT * FROM performance_monitoring",
        "SELECT * FROM django_migrations",
        "SELECT * FROM users_groups",
        "DELETE FROM audit_logs",
        "UPDATE audit_logs SET action = ''",
        "SET ROLE mcp_gateway_operator; DELETE FROM audit_logs",
        "SET ROLE mcp_gateway_operator; UPDATE audit_logs SET action = ''",
        "SET ROLE mcp_gateway_operator; CREATE TABLE intruder (id int)",
    ],
)
def test_the_application_has_no_right_to(statement: str) -> None:
    with raw_connection() as own, pytest.raises(errors.InsufficientPrivilege):
        own.execute(statement)


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("SELECT name, slug FROM mcp_servers", True),
        ("SELECT * FROM get_server_health_summary()", True),
        ("SELECT * FROM get_request_performance_summary(24)", True),
        ("SELECT * FROM performance_monitoring", True),
        ("SELECT * FROM database_size_summary", True),
        ("SELECT * FROM index_usage_summary", True),
        ("SELECT credentials FROM mcp_servers", False),
        ("SELECT key_hash FROM enhanced_api_keys", False),
        ("SELECT password FROM users", False),
        ("SELECT session_data FROM sessions", False),
        ("SELECT value FROM system_configs", False),
        ("SELECT notification_channels FROM performance_alerts", False),
        ("UPDATE mcp_servers SET name = ''", False),
        ("SELECT * FROM procrastinate_jobs", False),
    ],
)
def test_the_reader_reads_every_tenant_but_no_secret(
    two: Two, statement: str, allowed: bool
) -> None:
    with raw_connection(user="postgres") as own:
        own.execute("SET ROLE mcp_gateway_reader")
        if allowed:
            assert own.execute(statement).fetchall()
            assert own.execute("SELECT count(*) FROM mcp_servers").fetchone() == (2,)
        else:
            with pytest.raises(errors.InsufficientPrivilege):
                own.execute(statement)


# ---------------------------------------------------------------- every API path


@pytest.fixture
def without_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    """The application forgets to filter by tenant, on every view: the walls stand alone."""
    for base in {ScopedViewSet, *(view for _, view in api_patterns())}:
        if "get_queryset" in vars(base) and issubclass(base, ScopedViewSet):
            monkeypatch.setattr(base, "get_queryset", lambda view: view.rows())


WITH_ID = [(path, view) for path, view in api_patterns() if "(?P<pk>" in path]


def _name(pattern: str) -> str:
    return pattern.removeprefix("api/v1/").partition("/")[0].removesuffix("?$").rstrip("/")


@pytest.mark.usefixtures("without_filters")
def test_walls_alone_keep_a_tenant_from_every_path_with_an_id(two: Two) -> None:
    foreign = {name: make(two.other_server) for name, make in _makers().items()}
    client = client_of(two.mine)
    before = {name: _row(row._meta.db_table, row.pk) for name, row in foreign.items()}
    with logged_in_as_app():
        for pattern, _ in WITH_ID:
            name = _name(pattern)
            if name in OPERATORS:
                continue
            for method in ("get", "post", "patch", "delete"):
                path = path_of(pattern, foreign[name].pk)
                answer = getattr(client, method)(path, {}, format="json")
                assert answer.status_code in {404, 405}, (method, path, answer.content)
    assert {name: _row(row._meta.db_table, row.pk) for name, row in foreign.items()} == before


@pytest.mark.usefixtures("without_filters")
def test_walls_alone_keep_every_list_to_a_tenants_rows(two: Two) -> None:
    own = {name: make(two.my_server) for name, make in _makers().items()}
    foreign = {str(pk) for ids in two.foreign.values() for pk in ids if isinstance(pk, UUID)}
    client = client_of(two.mine)
    with logged_in_as_app():
        for name, row in own.items():
            text = client.get(API + name).content.decode()
            assert str(row.pk) in text, name
            assert not [pk for pk in foreign if pk in text], name


def _makers() -> dict[str, Any]:
    return {name: make for name, make in MAKE.items() if name not in OPERATORS}


def _bodies() -> Iterator[tuple[str, str, list[str]]]:
    """Path, method and the body's properties of each operation that takes one."""
    schema = SchemaGenerator().get_schema(request=None, public=True)
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            content = operation.get("requestBody", {}).get("content", {})
            reference = content.get("application/json", {}).get("schema", {}).get("$ref", "")
            if path.startswith(API) and reference:
                body = schema["components"]["schemas"][reference.rpartition("/")[2]]
                yield path, method, list(body["properties"])


def test_naming_another_tenants_things_in_a_body_makes_nothing_theirs(two: Two) -> None:
    theirs = {
        "tenant": two.other.slug,
        "server": str(two.other_server.pk),
        "user": str(two.foreign["users"][0]),
        "api_key": str(two.foreign["enhanced_api_keys"][0]),
        "acknowledged_by": str(two.foreign["users"][0]),
    }
    fine = {
        "name": "x",
        "slug": "x",
        "endpoint_url": "https://x.example.org/",
        "threshold_value": 1,
        "metric_name": "open_breakers",
    }
    own = {name: make(two.my_server) for name, make in _makers().items()}
    client = client_of(two.mine)
    before = {table: len(_ids(table)) for table in two.foreign}
    named = 0
    with logged_in_as_app():
        for path, method, properties in _bodies():
            for name in theirs.keys() & set(properties):
                named += 1
                target = path.replace("{id}", str(getattr(own.get(_name(path[1:])), "pk", "")))
                body = {key: fine[key] for key in fine.keys() & set(properties)}
                answer = getattr(client, method)(target, body | {name: theirs[name]}, format="json")
                assert answer.status_code in {400, 403, 404}, (method, target, answer.content)
    assert named >= 5
    assert {table: len(_ids(table)) for table in two.foreign} == before


def test_summaries_count_a_tenants_rows_only(two: Two) -> None:
    client = client_of(two.mine)
    with logged_in_as_app():
        health = client.get(f"{API}summaries/server-health").json()["results"]
        calls = client.get(f"{API}summaries/request-performance").json()
        usage = client.get(f"{API}summaries/tenant-usage").json()["results"]
    assert health[-1]["servers"] == 1
    assert calls["total_requests"] == 1
    assert [row["tenant"] for row in usage] == [two.mine.slug]


def test_a_tenant_that_runs_the_gateway_sees_its_figures_and_no_other_tenants_rows(
    two: Two,
) -> None:
    Tenant.objects.filter(pk=two.mine.pk).update(settings={"runs_gateway": True})
    everyones = AlertEventFactory(alert__server=None)
    client = client_of(two.mine)
    with logged_in_as_app():
        for name in ("database/size", "database/performance", "retention-policies"):
            assert client.get(API + name).status_code == 200, name
        servers = client.get(f"{API}servers").json()["results"]
        events = client.get(f"{API}alert-events").json()["results"]
    assert [row["id"] for row in servers] == [str(two.my_server.pk)]
    assert str(everyones.pk) in {row["id"] for row in events}
    assert not {row["id"] for row in events} & set(map(str, two.foreign["alert_events"]))
