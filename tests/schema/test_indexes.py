"""Every declared index is the guide's, is nobody's duplicate, and earns its keep."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from django.apps import apps
from django.db import connection, transaction
from django.db.models import QuerySet
from django.utils.timezone import now
from psycopg import sql

from monitoring.models import DataRetentionPolicy
from monitoring.optimize.state import (
    State,
    declared_state,
    definition_from_using,
    our_labels,
)
from monitoring.retention.run import batch_statement
from monitoring.retention.tables import RETAINED
from monitoring.retention.target import target_of
from registry.db.catalogue import IndexEntry, catalogue, left_out
from registry.db.tenancy import operator_transaction, tenant_transaction
from registry.models import ServerTool
from tests.schema.seed import more_servers

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
EXPERTS_DO_WITHOUT = {
    "idx_mcp_servers_health_check_time",
    "idx_request_routing_composite",
    "idx_server_tools_usage_stats",
    "idx_servers_discovery_composite",
    "idx_sessions_user_active",
    "idx_tools_discovery_performance",
}
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


@dataclass(frozen=True, slots=True)
class Plan:
    """What EXPLAIN says: index names (of partitioned parents, not of leaves), kinds of nodes."""

    indexes: set[str]
    kinds: set[str]
    buffers: int = 0  # touched by ANALYZE


@contextmanager
def asking(entry: IndexEntry) -> Iterator[QuerySet[Any]]:
    """An entry's query, in the kind of transaction in which the program runs it."""
    with operator_transaction():
        query = entry.query()
        tenant_id = entry.tenant() if entry.tenant else None
    if entry.tenant is None:
        with operator_transaction():
            yield query
    else:
        assert tenant_id, "the sample finds no tenant: the plan would prove nothing"
        with tenant_transaction(tenant_id=tenant_id):
            yield query


def plan_of(entry: IndexEntry, *, analyze: bool = False) -> Plan:
    with asking(entry) as query:
        found = _explain(query, "ANALYZE, BUFFERS, TIMING off, " if analyze else "")
    return replace(found, indexes=_parents(found.indexes))


def _explain(rows: QuerySet[Any], options: str = "") -> Plan:
    query, parameters = rows.query.sql_with_params()
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN ({options}FORMAT JSON) {query}", parameters)
        root = cursor.fetchone()[0][0]["Plan"]
    nodes = list(_nodes(root))
    return Plan(
        indexes={node["Index Name"] for node in nodes if "Index Name" in node},
        kinds={node["Node Type"] for node in nodes},
        buffers=root.get("Shared Hit Blocks", 0) + root.get("Shared Read Blocks", 0),
    )


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", []):
        yield from _nodes(child)


def _parents(names: set[str]) -> set[str]:
    """A partition's index counts as the one of the parent that it belongs to."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT coalesce(pg_partition_root(oid), oid)::regclass::text FROM pg_class"
            " WHERE relkind IN ('i', 'I') AND relname = ANY(%s)",
            [list(names)],
        )
        return {name for (name,) in cursor.fetchall()}


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


WINNERS = [entry for entry in ENTRIES if not entry.loses]
LOSERS = [entry for entry in ENTRIES if entry.loses]


@pytest.mark.parametrize("entry", LOSERS, ids=lambda entry: entry.index)
def test_an_index_that_loses_is_the_guides_and_says_what_it_costs(entry: IndexEntry) -> None:
    assert entry.index in GUIDE_INDEXES, "nothing obliges us to keep it: remove it"
    assert entry.index not in {winner.index for winner in WINNERS}
    assert entry.costs
    served_by_another = entry.sibling in {winner.index for winner in WINNERS}
    assert served_by_another or (not entry.sibling and entry.rate == "never")


def test_profiles_are_all_indexes_and_those_without_losers() -> None:
    assert left_out("guide") == frozenset()
    assert left_out("expert") == {entry.index for entry in LOSERS} == EXPERTS_DO_WITHOUT


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize("entry", WINNERS, ids=lambda entry: entry.index)
def test_planner_chooses_the_index(entry: IndexEntry) -> None:
    with asking(entry) as query:
        assert query.exists(), "the sample finds no row: the plan would prove nothing"
    assert entry.index in plan_of(entry).indexes


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize("entry", LOSERS, ids=lambda entry: entry.index)
def test_index_that_loses_is_usable(entry: IndexEntry, declared: State) -> None:
    with without_others(entry.index, declared):
        assert entry.index in plan_of(entry).indexes


@pytest.mark.usefixtures("seeded")
def test_without_the_losers_every_other_index_is_chosen() -> None:
    """The profile "expert"."""
    with transaction.atomic(), connection.cursor() as cursor:
        for name in left_out("expert"):
            cursor.execute(f'DROP INDEX "{name}"')
        unused = [entry.index for entry in WINNERS if entry.index not in plan_of(entry).indexes]
        transaction.set_rollback(True)
    assert not unused


@contextmanager
def without_others(name: str, declared: State) -> Iterator[None]:
    """Inside, the index is alone on its table but for the primary key."""
    table = declared.indexes[name].table
    others = [
        index
        for index in declared.indexes.values()
        if index.table == table and index.name != name and index.constraint != "p"
    ]
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        for other in others:
            if other.constraint:
                cursor.execute(f'ALTER TABLE "{table}" DROP CONSTRAINT "{other.name}"')
            else:
                cursor.execute(f'DROP INDEX "{other.name}"')
        yield
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
    assert index.using == definition_from_using(definition)
    assert not index.is_unique


def test_the_guide_is_complete(declared: State) -> None:
    assert set(GUIDE_INDEXES) <= set(declared.indexes)
    assert len(GUIDE_INDEXES) == 14


# Pairs of indexes of one table of which the first can do all that the second one does: the same
# columns at the beginning, classes, collations, directions (or all of them the other way round),
# predicate, and what the second one includes. A unique one does more than any other.
COVERED = """
WITH known AS (
    SELECT x.*, i.relname, i.relam, coalesce(pg_get_expr(x.indpred, x.indrelid), '') AS predicate,
           coalesce(pg_get_expr(x.indexprs, x.indrelid), '') AS expressions,
           string_to_array(x.indkey::text, ' ')::int[] AS columns,
           string_to_array(x.indclass::text, ' ') AS classes,
           string_to_array(x.indcollation::text, ' ') AS collations,
           string_to_array(x.indoption::text, ' ')::int[] AS options
      FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
      JOIN pg_class t ON t.oid = x.indrelid
     WHERE t.relnamespace = current_schema()::regnamespace AND t.relname = ANY(%s)
)
SELECT wide.relname || ' covers ' || narrow.relname
  FROM known AS narrow JOIN known AS wide USING (indrelid, relam, predicate, expressions)
 CROSS JOIN LATERAL (SELECT narrow.indnkeyatts::int AS keys) AS n
 WHERE narrow.indexrelid <> wide.indexrelid AND NOT narrow.indisunique
   AND wide.indnkeyatts >= n.keys
   AND wide.columns[1:n.keys] = narrow.columns[1:n.keys]
   AND wide.classes[1:n.keys] = narrow.classes[1:n.keys]
   AND wide.collations[1:n.keys] = narrow.collations[1:n.keys]
   AND (wide.options[1:n.keys] = narrow.options[1:n.keys]
        OR ARRAY(SELECT o # 3 FROM unnest(wide.options[1:n.keys]) o) = narrow.options[1:n.keys])
   AND wide.columns @> narrow.columns
"""


def _covered() -> list[str]:
    tables = [
        model._meta.db_table
        for label in our_labels()
        for model in apps.get_app_config(label).get_models()
    ]
    with connection.cursor() as cursor:
        cursor.execute(COVERED, [tables])
        return [pair for (pair,) in cursor.fetchall()]


def test_no_index_is_another_one_or_its_beginning() -> None:
    assert _covered() == []


@pytest.mark.parametrize(
    ("definition", "is_covered"),
    [
        ("mcp_servers (tenant_id)", True),
        ("mcp_servers (tenant_id DESC)", True),
        ("mcp_servers (tenant_id, slug)", True),
        ("mcp_servers (slug)", False),
        ("mcp_servers (tenant_id) WHERE is_enabled", False),
        ("mcp_servers (tenant_id) INCLUDE (slug)", True),
        ("mcp_servers (tenant_id) INCLUDE (name)", False),
        ("mcp_servers (endpoint_url varchar_pattern_ops)", False),
        ("mcp_servers (endpoint_url)", True),
        ("request_logs (tenant_id, request_time DESC, id)", False),
        ("request_logs (tenant_id DESC, request_time)", True),
        ("request_logs (tenant_id, request_time)", False),
        ("request_logs (request_time)", False),
    ],
)
def test_the_query_for_covered_indexes_sees_them(definition: str, is_covered: bool) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE INDEX one_more ON {definition}")
    assert any(pair.endswith(" covers one_more") for pair in _covered()) == is_covered


def test_there_are_thirty_indexes_at_least(declared: State) -> None:
    """Beside primary keys and unique constraints."""
    assert sum(not index.is_unique for index in declared.indexes.values()) >= 30


DISCOVERY = {"idx_mcp_servers_tenant_fastest", "idx_mcp_servers_shared_fastest"}


@pytest.mark.usefixtures("seeded")
def test_discovery_merges_two_ordered_scans_however_many_servers_there_are() -> None:
    small = _discoveries()
    with tenfold_servers():
        large = _discoveries()
    for plan in small + large:
        assert plan.indexes == DISCOVERY
        assert "Merge Append" in plan.kinds
        assert not [kind for kind in plan.kinds if "Sort" in kind]
        assert plan.buffers <= 60
    # The trees are a page higher at most.
    assert max(plan.buffers for plan in large) <= max(plan.buffers for plan in small) + 10


@contextmanager
def tenfold_servers() -> Iterator[None]:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL session_replication_role = replica")  # breakers, pools, queues
        more_servers(72_000, since=8000)
        yield
        transaction.set_rollback(True)


def _discoveries() -> list[Plan]:
    """Behind the walls and without them."""
    entry = next(entry for entry in ENTRIES if entry.index in DISCOVERY and not entry.loses)
    return [plan_of(each, analyze=True) for each in (entry, replace(entry, tenant=None))]


@pytest.mark.usefixtures("seeded")
def test_tool_discovery_is_a_nested_loop_over_indexes() -> None:
    """For a name that few servers have; where many do, reading all servers is less."""
    with tenfold_servers(), operator_transaction():
        plan = _explain(ServerTool.objects.named("tool_1_79").select_related("server")[:20])
    assert plan.indexes == {"idx_server_tools_name_server", "mcp_servers_pkey"}
    assert "Nested Loop" in plan.kinds
    assert not {"Seq Scan", "Hash Join"} & plan.kinds


# By table: the days that a retention policy keeps, and the index that finds what is older.
BATCHED = {
    "alert_events": (365, "idx_alert_events_occurred_at"),
    "sessions": (7, "idx_sessions_expires_at"),
    "database_size_snapshots": (390, "idx_database_size_snapshots_taken_on"),
    "statement_snapshots": (7, "idx_statement_snapshots_taken_at"),
    "optimize_runs": (365, "idx_optimize_runs_started_at"),
}


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize("table", BATCHED)
def test_a_batch_of_a_retention_policy_reads_by_its_index(table: str) -> None:
    """And what it found, it deletes by its place."""
    days, index = BATCHED[table]
    policy = DataRetentionPolicy(
        table_name=table, date_column=RETAINED[table], retention_days=days, batch_size=1000
    )
    statement = sql.SQL("EXPLAIN (ANALYZE, FORMAT JSON) ") + batch_statement(target_of(policy))
    with transaction.atomic(), connection.cursor() as cursor:
        old = now() - timedelta(days=days)
        cursor.execute(statement, ["-infinity", old, 1000])
        (plan,) = cursor.fetchone()
        transaction.set_rollback(True)
    nodes = list(_nodes(plan[0]["Plan"]))
    assert index in {node.get("Index Name") for node in nodes}
    assert "Tid Scan" in {node["Node Type"] for node in nodes}
    assert "Seq Scan" not in {node["Node Type"] for node in nodes}
    gone = next(node for node in nodes if node["Node Type"] == "ModifyTable")
    assert gone["Actual Rows"] > 0
