"""Every declared index is the guide's, is nobody's duplicate, and earns its keep."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.apps import apps
from django.db import connection, transaction

from monitoring.optimize.state import State, declared_state, our_labels
from registry.db.catalogue import IndexEntry, catalogue
from registry.db.tenancy import operator_transaction

# pytest-django makes the test database only where a test is marked: without the mark the module's
# fixtures would run on the development database.
pytestmark = [pytest.mark.django_db, pytest.mark.xdist_group("plans")]

ENTRIES = list(catalogue())

# The performance guide's statements, word by word.
GUIDE = """
CREATE INDEX idx_mcp_servers_tenant_status ON mcp_servers (tenant_id, health_status);
CREATE INDEX idx_mcp_servers_endpoint_transport ON mcp_servers (endpoint_url, transport_type);
CREATE INDEX idx_server_tools_name_server ON server_tools (name, server_id);
CREATE INDEX idx_users_tenant_role ON users (tenant_id, role, is_active);
CREATE INDEX idx_sessions_user_active ON sessions (user_id, is_active, expires_at);
CREATE INDEX idx_api_keys_tenant_active ON api_keys (tenant_id, is_active);
CREATE INDEX idx_audit_logs_tenant_time ON audit_logs (tenant_id, timestamp DESC);
CREATE INDEX idx_request_logs_tenant_time ON request_logs (tenant_id, request_time DESC);
CREATE INDEX idx_mcp_servers_health_check_time ON mcp_servers (last_health_check)
WHERE last_health_check IS NOT NULL;
CREATE INDEX idx_server_tools_usage_stats ON server_tools (total_calls, success_count)
WHERE total_calls > 0;
CREATE INDEX idx_sessions_activity_time ON sessions (last_activity DESC)
WHERE is_active = true;
CREATE INDEX idx_servers_discovery_composite ON mcp_servers
(health_status, transport_type, avg_response_time)
WHERE health_status IN ('healthy', 'degraded');
CREATE INDEX idx_tools_discovery_performance ON server_tools
(name, success_count, avg_execution_time, server_id)
WHERE total_calls > 0;
CREATE INDEX idx_request_routing_composite ON request_logs
(path, method, target_server_id, duration_ms, request_time DESC)
WHERE status_code < 400;
"""
GUIDE_INDEXES = {
    statement.split()[2]: statement.strip() for statement in GUIDE.split(";") if statement.strip()
}


@pytest.fixture(scope="module")
def declared(django_db_setup: None, django_db_blocker: Any) -> Iterator[State]:
    with django_db_blocker.unblock():
        own = connection.copy()
        try:
            yield declared_state(own)
        finally:
            own.close()


def explained(entry: IndexEntry) -> set[str]:
    """The indexes that the planner uses for an entry's query."""
    return _plan(entry)[0]


def _plan(entry: IndexEntry) -> tuple[set[str], set[str]]:
    """The names of the indexes and the kinds of the nodes in the plan of an entry's query.

    A partition's index counts as the one of the parent that it belongs to.
    """
    used: set[str] = set()
    kinds: set[str] = set()

    def walk(node: dict[str, Any]) -> None:
        used.add(node.get("Index Name", ""))
        kinds.add(node["Node Type"])
        for child in node.get("Plans", []):
            walk(child)

    with operator_transaction(), connection.cursor() as cursor:  # as the gateway runs them
        query, parameters = entry.query().query.sql_with_params()
        cursor.execute(f"EXPLAIN (FORMAT JSON) {query}", parameters)
        walk(cursor.fetchone()[0][0]["Plan"])
        cursor.execute(
            "SELECT coalesce(pg_partition_root(oid), oid)::regclass::text FROM pg_class"
            " WHERE relkind IN ('i', 'I') AND relname = ANY(%s)",
            [list(used)],
        )
        return {name for (name,) in cursor.fetchall()}, kinds


def test_every_index_has_an_entry() -> None:
    indexes = {
        index.name
        for label in our_labels()
        for model in apps.get_app_config(label).get_models()
        for index in model._meta.indexes
    }
    assert indexes <= {entry.index for entry in ENTRIES}


def test_entries_name_declared_indexes(declared: State) -> None:
    assert {entry.index for entry in ENTRIES} <= set(declared.indexes)


def test_every_entry_says_who_and_how_often() -> None:
    assert all(entry.caller and entry.rate for entry in ENTRIES)


def test_an_index_that_loses_one_query_wins_another() -> None:
    winners = {entry.index for entry in ENTRIES if not entry.loses}
    assert {entry.index for entry in ENTRIES} == winners


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize(
    "entry", [entry for entry in ENTRIES if not entry.loses], ids=lambda entry: entry.index
)
def test_planner_chooses_the_index(entry: IndexEntry) -> None:
    assert entry.query().exists(), "the sample finds no row: the plan would prove nothing"
    assert entry.index in explained(entry)


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize(
    "entry", [entry for entry in ENTRIES if entry.loses], ids=lambda entry: entry.index
)
def test_index_that_loses_is_usable(entry: IndexEntry, declared: State) -> None:
    used, kinds = _plan(entry)
    # PostgreSQL 18 may filter by it where 15 does not; neither gets the order from it.
    assert entry.index not in used or "Sort" in kinds, "it wins now: take `loses` away"
    table = declared.indexes[entry.index].table
    siblings = [
        index.name
        for index in declared.indexes.values()
        if index.table == table and index.name != entry.index and not index.constraint
    ]
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        for name in siblings:
            cursor.execute(f'DROP INDEX "{name}"')
        assert entry.index in explained(entry)
        transaction.set_rollback(True)


@pytest.mark.parametrize("name", GUIDE_INDEXES)
def test_index_is_the_guides(name: str, declared: State) -> None:
    index = declared.indexes[name]
    with connection.cursor() as cursor:
        # A temporary twin of the table stands before it on the path.
        cursor.execute(f'CREATE TEMP TABLE "{index.table}" (LIKE "{index.table}")')
        cursor.execute(GUIDE_INDEXES[name])
        cursor.execute("SELECT pg_get_indexdef(%s::regclass)", [f"pg_temp.{name}"])
        (definition,) = cursor.fetchone()
    # Django writes a true flag as itself.
    definition = definition.replace("(is_active = true)", "is_active")
    assert index.using == definition.partition(" USING ")[2]
    assert not index.is_unique


def test_the_guide_is_complete(declared: State) -> None:
    assert set(GUIDE_INDEXES) <= set(declared.indexes)
    assert len(GUIDE_INDEXES) == 14


def test_no_index_repeats_another(declared: State) -> None:
    """Same table, same keys, same predicate: unique or not, the second one only costs."""
    seen: dict[tuple[str, str], str] = {}
    for index in declared.indexes.values():
        twin = seen.setdefault((index.table, index.using), index.name)
        assert twin == index.name, f"{index.name} repeats {twin}"
