"""optimize_db --advise against a real PostgreSQL: each situation is made, and found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.backends.base.base import BaseDatabaseWrapper

from monitoring.optimize import advise as advising
from monitoring.optimize.advise import Advice, Limits, advise, is_suspicious
from monitoring.optimize.facts import Facts, read_facts
from registry.models import SystemConfig

pytestmark = pytest.mark.django_db(transaction=True)

# So that small tables and young statistics are enough.
LOW = Limits(
    unused_days=0,
    unused_bytes=0,
    bloat_bytes=100_000,
    foreign_key_rows=1_000,
    vacuum_rows=500,
    updates=1_000,
    held_seconds=0,
)
Execute = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def execute() -> Execute:
    def run(statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return cursor.fetchall() if cursor.description else []

    return run


@pytest.fixture
def as_declared() -> None:
    """Migrations leave one view in other words than its declaration's."""
    call_command("optimize_db", "--json", stdout=StringIO())


@pytest.fixture
def other() -> Iterator[BaseDatabaseWrapper]:
    own = connection.copy()
    yield own
    own.close()


@pytest.fixture
def spare(execute: Execute) -> Iterator[Callable[[str], None]]:
    """Makes indexes that go again."""
    made: list[str] = []

    def make(statement: str) -> None:
        execute(statement)
        made.append(statement.split(" INDEX ")[1].split()[0])

    yield make
    for name in made:
        execute(f"DROP INDEX IF EXISTS {name}")


def tenants(execute: Execute, rows: int) -> None:
    execute(
        "INSERT INTO tenants (id, name, slug, description, status, settings)"
        " SELECT gen_random_uuid(), 'a name of some length ' || i, 'tenant-' || i, '', 'active',"
        "        '{}' FROM generate_series(1, %s) AS i",
        rows,
    )


def read() -> Facts:
    own = connection.copy()
    try:
        return read_facts(own, is_suspicious=lambda index: is_suspicious(index, LOW))
    finally:
        own.close()


def found(kind: str, facts: Facts | None = None) -> dict[str, Advice]:
    told = advise(facts or read(), LOW)
    return {advice.subject: advice for advice in told if advice.kind == kind}


def counted(execute: Execute) -> None:
    execute("SELECT pg_stat_force_next_flush()")
    execute("SELECT 1")


# --------------------------------------------------------------------------- indexes


def test_an_index_is_unused_until_a_query_uses_it(
    execute: Execute, spare: Callable[[str], None]
) -> None:
    spare("CREATE INDEX by_name ON tenants (name)")
    advice = found("unused")["by_name"]
    assert "It is not declared" in advice.sentence
    tenants(execute, 2)
    execute("SET enable_seqscan = off")
    execute("SELECT id FROM tenants WHERE name = 'nobody'")
    execute("RESET enable_seqscan")
    counted(execute)
    later = found("unused")
    if "by_name" in later:  # 16 and newer know when; before, one scan is enough
        assert later["by_name"].evidence["scans"] == 1
        assert later["by_name"].evidence["last_scan"]
    # Never those with a duty of their own.
    assert not {"tenants_pkey", "uq_tenants_slug", "uq_users_email_lower"} & set(later)


def test_partitions_are_counted_as_their_table(execute: Execute) -> None:
    execute("SET enable_seqscan = off")
    execute("SELECT id FROM audit_logs WHERE tenant_id IS NULL AND timestamp > now()")
    execute("RESET enable_seqscan")
    counted(execute)
    facts = read()
    (by_tenant,) = [fact for fact in facts.indexes if fact.name == "idx_audit_logs_tenant_time"]
    ((scans, size),) = execute(
        "SELECT sum(s.idx_scan), sum(pg_relation_size(s.indexrelid))"
        " FROM pg_partition_tree('idx_audit_logs_tenant_time') AS t"
        " JOIN pg_stat_user_indexes AS s ON s.indexrelid = t.relid"
    )
    assert (by_tenant.scans, by_tenant.bytes) == (scans, size)
    assert scans > 0


def test_a_scan_on_the_replica_counts(
    execute: Execute, spare: Callable[[str], None], settings: Any
) -> None:
    """Stood in for by another database of the same names: indexes are told apart by name."""
    spare("CREATE INDEX by_name ON tenants (name)")
    name = connection.settings_dict["NAME"]
    execute("DROP DATABASE IF EXISTS advice_replica")
    execute("CREATE DATABASE advice_replica")
    settings.DATABASE_REPLICA = {"NAME": "advice_replica"}
    copy = connection.copy()
    copy.settings_dict = {**copy.settings_dict, "NAME": "advice_replica"}
    try:
        with copy.cursor() as cursor:
            cursor.execute("CREATE TABLE tenants (name text)")
            cursor.execute("CREATE INDEX by_name ON tenants (name)")
            cursor.execute("SET enable_seqscan = off")
            cursor.execute("SELECT FROM tenants WHERE name = 'x'")
            cursor.execute("SELECT pg_stat_force_next_flush()")
            cursor.execute("SELECT 1")
        (by_name,) = [fact for fact in read().indexes if fact.name == "by_name"]
        assert by_name.scans == 1
    finally:
        copy.close()
        execute("DROP DATABASE advice_replica WITH (FORCE)")
    assert name == connection.settings_dict["NAME"]
    facts = read()
    assert "advice_replica" in facts.replica
    assert found("unused", facts) == {}


def test_a_redundant_index_is_found_by_its_columns_classes_and_predicate(
    execute: Execute, spare: Callable[[str], None]
) -> None:
    spare("CREATE INDEX spare_prefix ON users (tenant_id)")
    spare("CREATE INDEX spare_twin ON users (tenant_id DESC, role DESC, is_active DESC)")
    spare("CREATE INDEX of_class ON users (username varchar_pattern_ops)")
    spare("CREATE INDEX of_some ON users (tenant_id) WHERE is_active")
    spare("CREATE INDEX with_more ON users (tenant_id) INCLUDE (email)")
    gone = found("redundant")
    assert set(gone) == {"spare_prefix", "spare_twin"}
    assert gone["spare_twin"].evidence["served_by"] == "idx_users_tenant_role"


def test_a_bloated_index_is_estimated_and_measured(execute: Execute) -> None:
    tenants(execute, 20_000)
    execute("DELETE FROM tenants WHERE slug NOT LIKE '%%00'")
    execute("VACUUM (ANALYZE) tenants")
    advice = found("bloat")["uq_tenants_slug"]
    assert "This is an estimate" in advice.sentence
    before = advice.evidence["bytes"]
    execute("CREATE EXTENSION pgstattuple")
    try:
        advice = found("bloat")["uq_tenants_slug"]
        assert "pgstattuple confirms it" in advice.sentence
    finally:
        execute("DROP EXTENSION pgstattuple")
    execute(advice.steps[0].sql)
    assert "uq_tenants_slug" not in found("bloat")
    assert execute("SELECT pg_relation_size('uq_tenants_slug') < %s", before / 2) == [(True,)]


def test_a_cascade_without_an_index_is_found_and_the_index_helps(execute: Execute) -> None:
    SystemConfig.objects.bulk_create(
        SystemConfig(key=f"key-{number}", value={}) for number in range(2_000)
    )
    execute("ANALYZE system_configs")
    execute("ALTER TABLE system_configs DROP CONSTRAINT uq_system_configs_tenant_key")
    try:
        advice = found("foreign_key")["system_configs.tenant_id"]
        assert "CASCADE" in advice.sentence
        execute(advice.steps[0].sql)
        assert "system_configs.tenant_id" not in found("foreign_key")
        execute(advice.steps[0].inverse[0].sql)
    finally:
        call_command("optimize_db", "--phase", "1", "--json", stdout=StringIO())


# --------------------------------------------------------------------------- tables


def test_dead_rows_and_updates_that_move_are_found(execute: Execute) -> None:
    execute("ALTER TABLE tenants SET (autovacuum_enabled = false)")
    try:
        tenants(execute, 2_000)
        execute("UPDATE tenants SET slug = slug || '-'")  # in an index, so never HOT
        counted(execute)
        slow = found("autovacuum")["tenants"]
        assert slow.evidence["dead_rows"] == 2_000
        assert "switched off" in slow.sentence
        cold = found("hot")["tenants"]
        assert cold.evidence["hot_share"] < 0.05  # other tests' updates are counted too
        for step in slow.steps:
            execute(step.sql)
        counted(execute)
        assert "tenants" not in found("autovacuum")
    finally:
        execute("ALTER TABLE tenants RESET (autovacuum_enabled)")


# --------------------------------------------------------------------------- old snapshots


def test_an_open_transaction_is_named(other: BaseDatabaseWrapper) -> None:
    other.set_autocommit(False)
    with other.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        cursor.execute("SET LOCAL application_name = 'a long report'")
        cursor.execute("SELECT pg_backend_pid()")
        ((pid,),) = cursor.fetchall()
    advice = found("holder")[f"session {pid}"]
    assert "as a long report (idle in transaction), keeps dead rows" in advice.sentence
    other.rollback()
    assert f"session {pid}" not in found("holder")


def test_a_prepared_transaction_and_a_slot_are_named(execute: Execute) -> None:
    # The slot first: making it waits for every transaction that is open.
    execute("SELECT pg_create_logical_replication_slot('advice', 'pgoutput')")
    execute("BEGIN")
    execute("SELECT pg_current_xact_id()")
    execute("PREPARE TRANSACTION 'advice'")
    try:
        facts = read()
        assert "prepared transaction advice" in found("holder", facts)
        (slot,) = [holder for holder in facts.holders if holder.kind == "replication slot"]
        assert (slot.name, slot.is_active) == ("advice", False)
    finally:
        execute("ROLLBACK PREPARED 'advice'")
        execute("SELECT pg_drop_replication_slot('advice')")


# --------------------------------------------------------------------------- the command


def report(*flags: str) -> str:
    out = StringIO()
    call_command("optimize_db", "--advise", *flags, stdout=out)
    return out.getvalue()


@pytest.mark.usefixtures("as_declared")
def test_the_report_says_what_to_do_and_does_nothing(
    execute: Execute, spare: Callable[[str], None]
) -> None:
    spare("CREATE INDEX spare_prefix ON users (tenant_id)")
    said = report()
    assert "idx_users_tenant_role begins with the same columns as spare_prefix" in said
    assert 'DROP INDEX CONCURRENTLY IF EXISTS "public"."spare_prefix";' in said
    assert 'undo: CREATE INDEX CONCURRENTLY "spare_prefix"' in said
    assert "no index is called unused before 30" in said
    document = json.loads(report("--json"))
    # Of what other tests left in the same database nothing is known: their updates may be told.
    (told,) = [advice for advice in document["advice"] if advice["kind"] == "redundant"]
    assert told["subject"] == "spare_prefix"
    assert set(told) == {
        "kind",
        "subject",
        "sentence",
        "evidence",
        "sql",
        "inverse",
        "locks",
        "caution",
    }
    assert execute("SELECT to_regclass('spare_prefix') IS NOT NULL") == [(True,)]
    checked = StringIO()
    call_command("optimize_db", "--check", stdout=checked)
    assert "redundant  spare_prefix" in checked.getvalue()
    assert "and idx_users_tenant_role begins with its columns" in checked.getvalue()


@pytest.mark.usefixtures("as_declared")
def test_a_declared_index_that_is_idle_is_a_notice_of_the_plan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(advising, "Limits", lambda: LOW)
    said = StringIO()
    call_command("optimize_db", "--check", stdout=said)
    assert "idx_users_tenant_role on users is declared; no scan since" in said.getvalue()


@pytest.mark.parametrize("flag", ["--check", "--dry-run", "--sql", "--rollback", "--phase=1"])
def test_advice_goes_with_no_other_mode(flag: str) -> None:
    with pytest.raises(CommandError) as refused:
        call_command("optimize_db", "--advise", flag, stdout=StringIO())
    assert refused.value.returncode == 2


def test_statistics_say_since_when_they_count(execute: Execute) -> None:
    facts = read()
    assert facts.since <= facts.at
    assert facts.at - facts.since < timedelta(days=3650)
    built = {fact.name: fact.made for fact in facts.indexes}
    assert built["idx_users_tenant_role"] is not None
    ((applied,),) = execute("SELECT max(applied) FROM django_migrations")
    assert built["idx_users_tenant_role"] <= applied
