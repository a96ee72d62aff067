"""optimize_db against a real catalogue: what is broken by hand is found, repaired and undone."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from copy import deepcopy
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg.conninfo import make_conninfo

from monitoring.audit import Actor
from monitoring.management.commands import optimize_db
from monitoring.models import AuditLog, DeclaredIndex, OptimizeOutcome, OptimizeRun
from monitoring.optimize import run as running
from monitoring.optimize import space
from monitoring.optimize.plan import Change, Step, make_plan
from monitoring.optimize.state import (
    Index,
    MissingRightsError,
    State,
    actual_state,
    declared_state,
    definition_from_using,
)
from registry.db import direct
from registry.db.catalogue import left_out
from registry.db.tenancy import READER_ROLE
from tests.factories import RequestLogFactory, UserFactory

# CONCURRENTLY is refused in a transaction, and other sessions have to see the rows.
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("as_declared")]

Execute = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def execute() -> Execute:
    def run(statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return cursor.fetchall() if cursor.description else []

    return run


@pytest.fixture(scope="module")
def declared(django_db_setup: None, django_db_blocker: Any) -> State:
    """As the code has it; and nothing is left of what other modules' tests have changed."""
    with django_db_blocker.unblock():
        optimize()
        own = connection.copy()
        try:
            return declared_state(own)
        finally:
            own.close()


@pytest.fixture
def as_declared(transactional_db: None, declared: State) -> Iterator[None]:
    """Every test starts from a schema without differences and leaves one behind."""
    OptimizeRun.objects.all().delete()
    yield
    # To read it costs as much as all the rest, and each test has done so by itself.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimize_db, "declared_state", lambda _connection: deepcopy(declared))
        status, said = optimize()
    assert status == 0, said


@pytest.fixture
def other() -> Iterator[BaseDatabaseWrapper]:
    """Another session."""
    own = connection.copy()
    yield own
    own.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "BACK_OFF_SECONDS", (0.05, 0.05))
    monkeypatch.setattr(running, "PATIENCE_SECONDS", 0.1)


def optimize(*flags: str) -> tuple[int, str]:
    """Exit status and everything that the command says."""
    out = StringIO()
    try:
        call_command("optimize_db", *flags, stdout=out)
    except CommandError as error:
        return error.returncode, f"{out.getvalue()}\n{error}"
    return 0, out.getvalue()


def definition(execute: Execute, index: str) -> str | None:
    found = execute(
        "SELECT pg_get_indexdef(x.indexrelid) FROM pg_index x"
        " WHERE x.indexrelid = to_regclass(%s) AND x.indisvalid",
        index,
    )
    return found[0][0] if found else None


# --------------------------------------------------------------------------- indexes


def test_nothing_to_do() -> None:
    assert optimize("--check")[0] == 0
    assert "Nothing to do" in optimize("--phase", "1")[1]


def test_missing_index_is_named_and_built(execute: Execute) -> None:
    before = definition(execute, "idx_users_tenant_role")
    execute("DROP INDEX idx_users_tenant_role")
    status, said = optimize("--check")
    assert status == 1
    assert "idx_users_tenant_role (missing)" in said
    assert optimize()[0] == 0
    assert definition(execute, "idx_users_tenant_role") == before
    assert optimize("--check")[0] == 0


def test_partial_index_with_a_rewritten_predicate_is_not_different(execute: Execute) -> None:
    """IN (…) comes back as = ANY (ARRAY…); that is no difference."""
    assert "ANY" in (definition(execute, "idx_servers_discovery_composite") or "")
    assert optimize("--check", "--phase", "1")[0] == 0


def test_index_made_from_its_own_definition_is_not_different(execute: Execute) -> None:
    """The same predicate is written in another way then."""
    execute("DROP INDEX idx_mcp_servers_tenant_fastest")
    assert optimize()[0] == 0
    assert optimize("--check", "--phase", "1")[0] == 0


def test_invalid_index_of_a_failed_build_is_repaired(execute: Execute) -> None:
    UserFactory.create_batch(2)  # of one provider: a unique build must fail
    execute("DROP INDEX idx_users_tenant_role")
    with pytest.raises(Exception, match="could not create unique index"):
        execute("CREATE UNIQUE INDEX CONCURRENTLY idx_users_tenant_role ON users (auth_provider)")
    assert "idx_users_tenant_role (invalid)" in optimize("--check")[1]
    assert optimize()[0] == 0
    assert "(tenant_id, role, is_active)" in (definition(execute, "idx_users_tenant_role") or "")


def test_invalid_index_of_a_constraint_is_repaired(execute: Execute) -> None:
    execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'uq_tenants_slug'::regclass")
    assert "uq_tenants_slug (invalid)" in optimize("--check")[1]
    assert optimize()[0] == 0
    assert definition(execute, "uq_tenants_slug")


def test_different_index_is_replaced(execute: Execute) -> None:
    before = definition(execute, "idx_audit_logs_tenant_time")
    execute("DROP INDEX idx_audit_logs_tenant_time")
    execute("CREATE INDEX idx_audit_logs_tenant_time ON audit_logs (tenant_id, timestamp)")
    assert "idx_audit_logs_tenant_time (different)" in optimize("--check")[1]
    assert optimize()[0] == 0
    assert definition(execute, "idx_audit_logs_tenant_time") == before
    assert execute("SELECT count(*) FROM pg_class WHERE relname LIKE '%%_ccnew'") == [(0,)]


def test_constraint_that_became_an_index_is_a_constraint_again(execute: Execute) -> None:
    execute("ALTER TABLE tenants DROP CONSTRAINT uq_tenants_slug")
    execute("CREATE UNIQUE INDEX uq_tenants_slug ON tenants (slug, name)")
    assert optimize()[0] == 0
    assert execute(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'uq_tenants_slug'"
    ) == [("UNIQUE (slug)",)]


def test_missing_constraint_is_added(execute: Execute) -> None:
    execute("ALTER TABLE mcp_servers DROP CONSTRAINT uq_mcp_servers_tenant_slug")
    assert optimize()[0] == 0
    assert execute(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE conname = 'uq_mcp_servers_tenant_slug'"
    ) == [("UNIQUE NULLS NOT DISTINCT (tenant_id, slug)",)]


def test_renamed_index_is_renamed_back_without_a_build(execute: Execute) -> None:
    execute("ALTER INDEX idx_users_tenant_role RENAME TO by_hand")
    number = execute("SELECT 'by_hand'::regclass::oid")
    assert optimize()[0] == 0
    assert execute("SELECT 'idx_users_tenant_role'::regclass::oid") == number


def test_leftover_of_a_build_is_dropped(execute: Execute) -> None:
    execute("CREATE INDEX idx_users_tenant_role_ccnew ON users (tenant_id)")
    assert "idx_users_tenant_role_ccnew (leftover)" in optimize("--check")[1]
    assert optimize()[0] == 0
    assert definition(execute, "idx_users_tenant_role_ccnew") is None


def test_undeclared_index_is_a_notice_and_stays(execute: Execute) -> None:
    execute("CREATE INDEX of_somebody_else ON users (full_name)")
    try:
        status, said = optimize("--check")
        assert status == 0
        assert "of_somebody_else" in said
        assert "of_somebody_else" in optimize()[1]
        assert definition(execute, "of_somebody_else")
    finally:
        execute("DROP INDEX of_somebody_else")


def test_tables_of_others_are_none_of_our_business(execute: Execute) -> None:
    execute("CREATE INDEX of_django ON django_migrations (app)")
    try:
        assert "of_django" not in optimize("--check")[1]
    finally:
        execute("DROP INDEX of_django")


def test_build_that_cannot_succeed_is_named_and_leaves_nothing(execute: Execute) -> None:
    execute("ALTER TABLE users DROP CONSTRAINT uq_users_username")
    execute("DROP INDEX idx_users_tenant_role")
    first, second = UserFactory.create_batch(2)
    execute("UPDATE users SET username = %s WHERE id = %s", first.username, second.id)
    status, said = optimize()
    assert status == 1
    assert "uq_users_username: could not create unique index" in said
    assert execute("SELECT to_regclass('uq_users_username')") == [(None,)]
    # The others were built all the same.
    assert definition(execute, "idx_users_tenant_role")
    assert OptimizeRun.objects.get().outcome == OptimizeOutcome.FAILED
    second.delete()


def test_partitioned_table_is_served_leaf_by_leaf(
    execute: Execute, other: BaseDatabaseWrapper
) -> None:
    execute("CREATE TABLE parts (id int, at date) PARTITION BY RANGE (at)")
    for year in (2024, 2025, 2026):
        execute(
            f"CREATE TABLE parts_{year} PARTITION OF parts"
            f" FOR VALUES FROM ('{year}-01-01') TO ('{year + 1}-01-01')"
        )
    try:
        # One leaf has a fitting index already, one an index that was cut off.
        execute("CREATE INDEX parts_2024_by_hand ON parts_2024 (at, id)")
        want = Index(table="parts", name="idx_parts", form="btree (at, id)", using="btree (at, id)")
        declared = State(schema="", indexes={"idx_parts": want}, tables={})
        plan = make_plan(declared=declared, actual=actual_state(other), phases=[1])
        with running.open_session() as session:
            for step in plan[0].steps:
                running.Executor(session=session).execute(step)
        assert definition(execute, "idx_parts")
        assert execute(
            "SELECT count(*) FROM pg_inherits WHERE inhparent = 'idx_parts'::regclass"
        ) == [(3,)]
        again = make_plan(declared=declared, actual=actual_state(other), phases=[1])
        assert again == []
    finally:
        execute("DROP TABLE parts")


# --------------------------------------------------------------------------- profiles


def losers(execute: Execute) -> dict[str, str]:
    """How they are built, of those that there are."""
    found = {name: definition(execute, name) for name in left_out("expert")}
    return {name: definition_from_using(text) for name, text in found.items() if text}


def test_the_experts_profile_drops_the_losers_and_the_guides_builds_them_again(
    execute: Execute, settings: Any
) -> None:
    before = losers(execute)
    assert before.keys() == left_out("expert")
    settings.INDEX_PROFILE = "expert"
    status, said = optimize("--check")
    assert status == 0  # a notice: nothing is missing, invalid or different
    assert all(name in said for name in before)
    assert optimize()[0] == 0
    assert not losers(execute)
    assert "surplus" not in optimize("--check")[1]
    assert not DeclaredIndex.objects.filter(index_name__in=before).exists()
    settings.INDEX_PROFILE = "guide"
    status, said = optimize("--check")
    assert status == 1
    assert "idx_servers_discovery_composite (missing)" in said
    assert optimize()[0] == 0
    assert losers(execute) == before
    assert optimize("--check")[0] == 0


def test_the_experts_profile_can_be_undone(execute: Execute, settings: Any) -> None:
    before = losers(execute)
    settings.INDEX_PROFILE = "expert"
    optimize()
    assert optimize("--rollback")[0] == 0
    assert losers(execute) == before


def test_an_index_of_a_log_is_dropped_with_a_short_wait_for_its_lock(settings: Any) -> None:
    settings.INDEX_PROFILE = "expert"
    said = optimize("--dry-run", "--phase", "1")[1]
    drop = next(line for line in said.splitlines() if "idx_request_routing_composite" in line)
    assert "surplus" in drop
    assert 'DROP INDEX IF EXISTS "public"."idx_request_routing_composite"' in said
    assert 'DROP INDEX CONCURRENTLY IF EXISTS "public"."idx_servers_discovery_composite"' in said


# --------------------------------------------------------------------------- functions, views


def test_function_that_was_changed_by_hand_is_restored(execute: Execute) -> None:
    body = execute("SELECT prosrc FROM pg_proc WHERE proname = 'resolve_tenant'")
    execute(
        "CREATE OR REPLACE FUNCTION resolve_tenant(tenant text) RETURNS uuid"
        " LANGUAGE sql AS 'SELECT NULL::uuid'"
    )
    status, said = optimize("--check")
    assert status == 1
    assert "function resolve_tenant(tenant text) (different)" in said
    assert optimize()[0] == 0
    assert execute("SELECT prosrc FROM pg_proc WHERE proname = 'resolve_tenant'") == body


def test_function_with_other_columns_is_made_anew_with_its_grants(execute: Execute) -> None:
    execute("CREATE ROLE optimize_reader")
    try:
        execute("DROP FUNCTION get_server_health_summary()")
        execute(
            "CREATE FUNCTION get_server_health_summary() RETURNS integer LANGUAGE sql AS 'SELECT 1'"
        )
        execute("GRANT EXECUTE ON FUNCTION get_server_health_summary() TO optimize_reader")
        assert optimize()[0] == 0
        assert execute("SELECT health_status FROM get_server_health_summary()") == [("all",)]
        assert execute(
            "SELECT proacl::text LIKE '%%optimize_reader=X%%' FROM pg_proc"
            " WHERE proname = 'get_server_health_summary'"
        ) == [(True,)]
    finally:
        execute("DROP OWNED BY optimize_reader")
        execute("DROP ROLE optimize_reader")


def test_missing_view_and_lost_comment_are_restored(execute: Execute) -> None:
    execute("DROP VIEW performance_monitoring")
    execute("COMMENT ON VIEW database_size_summary IS NULL")
    said = optimize("--check")[1]
    assert "view performance_monitoring (missing)" in said
    assert "view database_size_summary (different)" in said
    assert optimize()[0] == 0
    assert execute("SELECT count(*) > 0 FROM performance_monitoring") == [(True,)]


def test_a_view_made_anew_is_read_by_those_who_read_the_old_one(execute: Execute) -> None:
    execute("DROP VIEW performance_monitoring")
    grant = 'GRANT SELECT ON "performance_monitoring" TO'
    assert grant in optimize("--dry-run")[1]
    assert grant in optimize("--sql")[1]
    assert "change(s) to grants and policies" in optimize()[1]
    execute("BEGIN")
    execute(f"SET LOCAL ROLE {READER_ROLE}")
    assert execute("SELECT count(*) > 0 FROM performance_monitoring") == [(True,)]
    execute("ROLLBACK")
    assert "grants and policies" not in optimize()[1]


def test_a_wall_that_was_taken_down_by_hand_is_a_notice_and_is_put_up(execute: Execute) -> None:
    execute("ALTER TABLE tenants DISABLE ROW LEVEL SECURITY")
    status, said = optimize("--check")
    assert status == 0
    assert "1 statement(s) put them right" in said
    assert json.loads(optimize("--json")[1])["walls"]["changed"] == 1
    assert execute("SELECT relrowsecurity FROM pg_class WHERE relname = 'tenants'") == [(True,)]


@pytest.mark.usefixtures("impatient")
def test_a_table_in_use_keeps_its_wall_down_and_the_run_says_so(
    execute: Execute, other: BaseDatabaseWrapper
) -> None:
    execute("ALTER TABLE tenants DISABLE ROW LEVEL SECURITY")
    other.set_autocommit(False)
    with other.cursor() as cursor:
        cursor.execute("LOCK TABLE tenants IN ROW EXCLUSIVE MODE")
    status, said = optimize("--lock-timeout", "200")
    other.rollback()
    assert status == 1
    assert "Grants and policies are not all restored" in said


def test_missing_materialized_view_is_made_with_its_index(execute: Execute) -> None:
    execute("DROP MATERIALIZED VIEW tool_leaderboard")
    status, output = optimize("--check")
    assert status == 1
    assert "tool_leaderboard" in output
    optimize()
    assert execute("SELECT indexname FROM pg_indexes WHERE tablename = 'tool_leaderboard'") == [
        ("uq_tool_leaderboard_tool",)
    ]
    assert execute("SELECT obj_description('tool_leaderboard'::regclass) IS NOT NULL") == [(True,)]
    assert optimize("--check")[0] == 0


def test_different_materialized_view_is_made_anew_with_its_grants(execute: Execute) -> None:
    execute("DROP MATERIALIZED VIEW tenant_daily_usage")
    execute("CREATE MATERIALIZED VIEW tenant_daily_usage AS SELECT 1 AS day")
    execute("CREATE INDEX by_day ON tenant_daily_usage (day)")
    execute("CREATE ROLE usage_reader")
    try:
        execute("GRANT SELECT ON tenant_daily_usage TO usage_reader")
        assert optimize("--check")[0] == 1
        optimize()
        assert execute("SELECT has_table_privilege('usage_reader', 'tenant_daily_usage', 'SELECT')")
        columns = "SELECT count(*) FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0"
        assert execute(columns, "tenant_daily_usage") == [(10,)]
        optimize("--rollback")
        assert execute(
            "SELECT indexname FROM pg_indexes WHERE tablename = 'tenant_daily_usage'"
        ) == [("by_day",)]
        optimize()
    finally:
        execute("DROP OWNED BY usage_reader")
        execute("DROP ROLE usage_reader")


def test_missing_index_of_a_materialized_view_is_built_and_its_rows_stay(execute: Execute) -> None:
    execute("REFRESH MATERIALIZED VIEW tool_leaderboard")
    execute("DROP INDEX uq_tool_leaderboard_tool")
    execute("CREATE INDEX stray ON tool_leaderboard (place)")
    status, output = optimize("--check")
    assert status == 1
    assert "uq_tool_leaderboard_tool" in output
    assert "stray" in optimize()[1]  # a notice
    assert execute("SELECT relispopulated FROM pg_class WHERE relname = 'tool_leaderboard'") == [
        (True,)
    ]
    assert optimize("--check")[0] == 0
    execute("DROP INDEX stray")


def test_lost_comment_of_a_materialized_view_is_restored_and_its_rows_stay(
    execute: Execute,
) -> None:
    execute("REFRESH MATERIALIZED VIEW tool_leaderboard")
    execute("COMMENT ON COLUMN tool_leaderboard.place IS NULL")
    assert optimize("--check")[0] == 1
    optimize()
    assert optimize("--check")[0] == 0
    assert execute("SELECT count(*) FROM tool_leaderboard") == [(0,)]


def test_missing_trigger_is_restored(execute: Execute) -> None:
    execute("DROP TRIGGER gateway_server_defaults ON mcp_servers")
    assert "gateway_server_defaults" in optimize("--check", "--phase", "3")[1]
    assert optimize("--phase", "3")[0] == 0
    assert execute("SELECT count(*) FROM pg_trigger WHERE tgname = 'gateway_server_defaults'") == [
        (1,)
    ]


def test_unapplied_migration_is_reported_and_not_anticipated(execute: Execute) -> None:
    """Its objects are not asked for: the migration would trip over them."""
    execute("DROP VIEW performance_monitoring")
    execute("DELETE FROM django_migrations WHERE app = 'gateway' AND name = '0003_monitoring'")
    try:
        status, said = optimize()
        assert status == 1
        assert "gateway.0003_monitoring" in said
        assert execute("SELECT to_regclass('performance_monitoring')") == [(None,)]
    finally:
        execute(
            "INSERT INTO django_migrations (app, name, applied)"
            " VALUES ('gateway', '0003_monitoring', now())"
        )


# --------------------------------------------------------------------------- storage parameters


def test_storage_parameters_that_were_lost_are_set_again(execute: Execute) -> None:
    """What nobody declares is the operator's own, and stays."""

    def parameters() -> list[str]:
        [(found,)] = execute("SELECT reloptions FROM pg_class WHERE relname = 'request_rollups'")
        return sorted(found)

    declared = parameters()
    execute("ALTER TABLE request_rollups SET (fillfactor = 90, autovacuum_vacuum_threshold = 77)")
    by_hand = parameters()
    try:
        said = optimize("--dry-run", "--phase", "2")[1]
        assert "is to have fillfactor = 70, not 90" in said
        assert "SHARE UPDATE EXCLUSIVE on request_rollups" in said
        assert optimize("--phase", "2")[0] == 0
        assert parameters() == sorted([*declared, "autovacuum_vacuum_threshold=77"])
        assert optimize("--rollback")[0] == 0
        assert parameters() == by_hand
    finally:
        execute("ALTER TABLE request_rollups RESET (autovacuum_vacuum_threshold)")
        optimize("--phase", "2")


# --------------------------------------------------------------------------- statistics


def test_extended_statistics_are_made_again_on_parent_and_partitions(execute: Execute) -> None:
    def names() -> set[str]:
        return {name for (name,) in execute("SELECT stxname FROM pg_statistic_ext")}

    declared = names()
    partition = min(declared - {"st_request_logs_tenant_server"})
    execute(f'DROP STATISTICS st_request_logs_tenant_server, "{partition}"')
    execute(
        "CREATE STATISTICS st_request_logs_tenant_server (mcv)"
        " ON tenant_id, target_server_id FROM request_logs"
    )
    said = optimize("--dry-run", "--phase", "5")[1]
    assert "different" in said
    assert "is not (dependencies) ON tenant_id, target_server_id" in said
    assert f"SHARE UPDATE EXCLUSIVE on {partition.partition('_tenant_id')[0]}" in said
    assert optimize("--phase", "5")[0] == 0
    assert names() == declared
    assert execute("SELECT DISTINCT stxkind::text FROM pg_statistic_ext") == [("{f}",)]
    assert optimize("--rollback")[0] == 0
    assert names() == declared - {partition}
    assert optimize("--phase", "5")[0] == 0


def test_statistics_are_refreshed_after_many_changes(execute: Execute) -> None:
    execute("ANALYZE tenants")
    execute(
        "INSERT INTO tenants (id, name, slug, description, status, settings)"
        " SELECT gen_random_uuid(), '', 'tenant-' || i, '', 'active', '{}'"
        " FROM generate_series(1, 2000) i"
    )
    execute("SELECT pg_stat_force_next_flush()")
    status, said = optimize("--check")
    assert status == 0, "stale statistics are no fault"
    assert "tenants changed in" in said
    assert optimize("--phase", "5")[0] == 0
    assert execute("SELECT reltuples FROM pg_class WHERE relname = 'tenants'") == [(2000.0,)]


def test_an_empty_table_needs_no_statistics(execute: Execute) -> None:
    execute("TRUNCATE sessions, request_logs")
    # Which leaves a partitioned table the estimate that another test's ANALYZE has given it.
    execute("UPDATE pg_class SET reltuples = -1 WHERE oid = 'request_logs'::regclass")
    for table in ("sessions", "request_logs"):
        execute("SELECT pg_stat_reset_single_table_counters(%s::regclass)", table)
    said = optimize("--check", "--phase", "5")[1]
    assert "sessions was never" not in said
    assert "request_logs was never" not in said
    RequestLogFactory()  # in a partition
    assert "request_logs was never analysed" in optimize("--check", "--phase", "5")[1]


# --------------------------------------------------------------------------- shown or run


def test_dry_run_shows_what_runs_and_changes_nothing(execute: Execute) -> None:
    execute("DROP INDEX idx_users_tenant_role")
    said = optimize("--dry-run")[1]
    assert definition(execute, "idx_users_tenant_role") is None
    assert "lock: SHARE UPDATE EXCLUSIVE on users" in said
    assert 'undo: DROP INDEX CONCURRENTLY IF EXISTS "public"."idx_users_tenant_role"' in said
    assert re.search(r"about \d", said), "the size is estimated"
    assert not OptimizeRun.objects.exists()

    planned = json.loads(optimize("--dry-run", "--json")[1])
    optimize()
    shown = [
        statement["sql"]
        for phase in planned["phases"]
        for change in phase["changes"]
        for statement in change["statements"]
    ]
    ran = [statement["sql"] for statement in OptimizeRun.objects.get().statements]
    # Which tables want an ANALYZE is for autovacuum to change, at any moment in between.
    assert [one for one in shown if not one.startswith("ANALYZE")] == [
        one for one in ran if not one.startswith("ANALYZE")
    ]
    assert any("CREATE INDEX" in one for one in ran)


def test_estimate_is_close_to_the_index(execute: Execute, other: BaseDatabaseWrapper) -> None:
    from monitoring.optimize.estimate import index_bytes

    execute(
        "INSERT INTO tenants (id, name, slug, description, status, settings)"
        " SELECT gen_random_uuid(), '', 'a-longer-tenant-' || i, '', 'active', '{}'"
        " FROM generate_series(1, 20000) i"
    )
    execute("ANALYZE tenants")
    execute("REINDEX INDEX uq_tenants_slug")
    ((size,),) = execute("SELECT pg_relation_size('uq_tenants_slug')")
    estimate = index_bytes(other, actual_state(other).indexes["uq_tenants_slug"])
    assert 0.7 < estimate / size < 1.4


def test_script_runs_as_it_is(execute: Execute) -> None:
    execute("DROP INDEX idx_users_tenant_role")
    execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'uq_tenants_slug'::regclass")
    execute("DROP VIEW performance_monitoring")
    script = optimize("--sql")[1]
    assert script.index(r"\set ON_ERROR_STOP on") < script.index("CREATE INDEX CONCURRENTLY")
    assert "SET lock_timeout" in script
    assert "SET max_parallel_maintenance_workers = 0;" in script
    _run_script(script, execute)
    assert optimize("--check")[0] == 0


def _run_script(script: str, execute: Execute) -> None:
    if psql := shutil.which("psql"):
        connection.ensure_connection()
        info = connection.connection.info
        # Not info.dsn: psql may be older than the driver and know fewer parameters.
        dsn = make_conninfo(host=info.host, port=info.port, user=info.user, dbname=info.dbname)
        command = [psql, "-X", "-q", "-v", "VERBOSITY=terse", dsn]
        environment = {**os.environ, "PGPASSWORD": connection.settings_dict["PASSWORD"]}
        subprocess.run(
            command, input=script, text=True, check=True, capture_output=True, env=environment
        )
        return
    lines = [line for line in script.splitlines() if not line.startswith(("\\", "--"))]
    blocks = re.findall(r"BEGIN;\n.*?\nCOMMIT;|[^\n]+", "\n".join(lines), flags=re.DOTALL)
    for block in blocks:
        execute(block)


def test_too_little_disk_is_said_before_anything_is_done(
    execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute("DROP INDEX idx_users_tenant_role")
    execute("DROP VIEW performance_monitoring")
    assert re.search(r"Disk: the builds need about .* free in /", optimize("--dry-run")[1])
    monkeypatch.setattr(space, "MARGIN", 10**18)
    status, said = optimize()
    assert status == 1
    assert re.search(
        r"Nothing was done: the builds need about [\d.]+ EB, [\d.]+ \wB are free", said
    )
    assert execute("SELECT to_regclass('performance_monitoring')") == [(None,)]
    assert not OptimizeRun.objects.exists()
    document = json.loads(optimize("--dry-run", "--json")[1])
    assert document["disk"]["needed_bytes"] > document["disk"]["free_bytes"]
    # Where the folder is not ours to see, nothing is held against the run.
    monkeypatch.setattr(space, "_is_here", lambda _: False)
    assert "was not checked: the server is on another machine" in optimize("--dry-run")[1]
    assert optimize()[0] == 0


def test_json_is_one_document(execute: Execute) -> None:
    execute("DROP INDEX idx_users_tenant_role")
    checked = StringIO()
    with pytest.raises(CommandError):
        call_command("optimize_db", "--check", "--json", stdout=checked)
    assert json.loads(checked.getvalue())["faults"] == 1
    ran = json.loads(optimize("--json", "--phase", "1")[1])  # statistics may be due at any time
    assert [statement["object"] for statement in ran["ran"]] == ["idx_users_tenant_role"]


@pytest.mark.parametrize(
    "flags",
    [
        ("--check", "--dry-run"),
        ("--sql", "--json"),
        ("--rollback", "--phase", "1"),
        ("--lock-timeout", "0"),
        ("--parallel", "-1"),
    ],
)
def test_contradictions_are_wrong_usage(flags: tuple[str, ...]) -> None:
    assert optimize(*flags)[0] == 2


# --------------------------------------------------------------------------- records


def test_run_is_recorded_and_audited(execute: Execute) -> None:
    execute("DROP INDEX idx_users_tenant_role")
    optimize()
    run = OptimizeRun.objects.get()
    assert run.outcome == OptimizeOutcome.DONE
    assert run.finished_at
    assert AuditLog.objects.filter(action="database.optimize", resource_id=str(run.id)).exists()
    assert DeclaredIndex.objects.filter(index_name="idx_users_tenant_role").exists()
    assert execute(
        "SELECT is_declared FROM index_usage_summary WHERE index_name = 'idx_users_tenant_role'"
    ) == [(True,)]


def test_what_is_declared_is_written_where_it_changed(execute: Execute) -> None:
    optimize()
    changed = DeclaredIndex.objects.get(index_name="idx_users_tenant_role")
    DeclaredIndex.objects.filter(pk=changed.pk).update(table_name="tenants")
    DeclaredIndex.objects.create(index_name="idx_gone", table_name="users", definition="btree (id)")
    before = dict(DeclaredIndex.objects.values_list("index_name", "updated_at"))
    optimize()
    after = dict(DeclaredIndex.objects.values_list("index_name", "updated_at"))
    assert {name for name, at in after.items() if at != before[name]} == {changed.index_name}
    assert before.keys() - after.keys() == {"idx_gone"}
    changed.refresh_from_db()
    assert changed.table_name == "users"


def test_rollback_undoes_the_last_run(execute: Execute) -> None:
    execute("DROP INDEX idx_users_tenant_role")
    execute("DROP INDEX idx_audit_logs_tenant_time")
    execute("CREATE INDEX idx_audit_logs_tenant_time ON audit_logs (timestamp)")
    execute("COMMENT ON VIEW database_size_summary IS 'by hand'")
    execute("DROP VIEW performance_monitoring")
    optimize()
    optimize("--phase", "5")  # leaves nothing to undo, so it does not hide the run before
    assert optimize("--rollback")[0] == 0
    assert definition(execute, "idx_users_tenant_role") is None
    assert '("timestamp")' in (definition(execute, "idx_audit_logs_tenant_time") or "")
    assert execute("SELECT to_regclass('performance_monitoring')") == [(None,)]
    assert execute("SELECT obj_description('database_size_summary'::regclass)") == [("by hand",)]
    assert OptimizeRun.objects.exclude(rolled_back_at=None).count() == 1
    assert "No recorded run is left" in optimize("--rollback")[1]


@pytest.mark.parametrize("shows", [(), ("--dry-run",)])
def test_rollback_names_a_later_run_that_was_cut_off(execute: Execute, shows: tuple[str]) -> None:
    execute("DROP INDEX idx_users_tenant_role")
    optimize()
    assert "cut off" not in optimize("--rollback", "--dry-run")[1]
    OptimizeRun.objects.create()  # killed before its first statement
    assert "was later; it was cut off" in " ".join(optimize("--rollback", *shows)[1].split())


def test_rollback_shows_first_and_changes_nothing(execute: Execute) -> None:
    execute("DROP INDEX idx_users_tenant_role")
    optimize()
    drop = 'DROP INDEX CONCURRENTLY IF EXISTS "public"."idx_users_tenant_role";'
    assert drop in optimize("--rollback", "--dry-run")[1]
    assert drop in optimize("--rollback", "--sql")[1]
    assert definition(execute, "idx_users_tenant_role")


# --------------------------------------------------------------------------- locks


class Releasing(running.Reporter):
    """Lets go of another session's lock after the first attempt."""

    def __init__(self, holder: BaseDatabaseWrapper) -> None:
        self.holder = holder
        self.reasons: list[str] = []

    def step_retried(self, *, attempt: int, seconds: float, reason: str) -> None:
        self.reasons.append(reason)
        self.holder.rollback()


def _lock(holder: BaseDatabaseWrapper, table: str) -> None:
    holder.set_autocommit(False)
    with holder.cursor() as cursor:
        cursor.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")


@pytest.mark.usefixtures("impatient")
def test_locked_table_is_tried_again(execute: Execute, other: BaseDatabaseWrapper) -> None:
    execute("DROP INDEX idx_users_tenant_role")
    reporter = Releasing(other)
    with running.open_session() as session:
        declared = declared_state(session.work)
        plan = make_plan(declared=declared, actual=actual_state(session.work), phases=[1])
        _lock(other, "users")
        executor = running.Executor(session=session, reporter=reporter, lock_timeout_ms=500)
        actor = Actor(service_name="cli")
        run, failures = running.run_plan(
            plan=plan, declared=declared, executor=executor, actor=actor
        )
    assert failures == []
    assert run
    assert "lock timeout" in reporter.reasons[0]
    assert re.search(r"waited for session \d+", reporter.reasons[0]), "says who was in the way"
    assert definition(execute, "idx_users_tenant_role")


def test_a_build_leaves_the_processors_to_traffic_unless_told() -> None:
    def helpers(**options: int) -> str:
        with running.open_session(**options) as session, session.work.cursor() as cursor:
            cursor.execute("SHOW max_parallel_maintenance_workers")
            return str(cursor.fetchone()[0])

    assert helpers() == "0"
    assert helpers(parallel=3) == "3"
    assert "SET max_parallel_maintenance_workers = 3;" in optimize("--sql", "--parallel", "3")[1]


@pytest.mark.usefixtures("impatient")
def test_reading_a_locked_table_is_tried_again(other: BaseDatabaseWrapper) -> None:
    reporter = Releasing(other)
    with running.open_session() as session:
        _lock(other, "users")
        assert "uq_users_email_lower" in running.read_actual(session, reporter).indexes
    assert "locked against reading" in reporter.reasons[0]


@pytest.mark.usefixtures("impatient")
def test_table_that_stays_locked_fails_with_a_sentence(
    other: BaseDatabaseWrapper,
) -> None:
    _lock(other, "users")
    status, said = optimize("--lock-timeout", "200")
    other.rollback()
    assert status == 1
    assert "Try again when the lock is gone" in said


@pytest.mark.usefixtures("impatient")
def test_old_transaction_that_stays_is_named_and_no_invalid_index_is_left(
    execute: Execute, other: BaseDatabaseWrapper
) -> None:
    """A concurrent build waits for whoever wrote to the table before it began."""
    execute("DROP INDEX idx_users_tenant_role")
    other.set_autocommit(False)
    with other.cursor() as cursor:
        cursor.execute("LOCK TABLE users IN ROW EXCLUSIVE MODE")  # as any open UPDATE does
    status, said = optimize("--lock-timeout", "400")
    other.rollback()
    assert status == 1
    assert "idx_users_tenant_role: canceling statement due to lock timeout" in said
    left = execute("SELECT count(*) FROM pg_class WHERE relname = 'idx_users_tenant_role'")
    invalid = execute("SELECT count(*) FROM pg_index WHERE NOT indisvalid")
    # What could not be dropped under the same lock is repaired by the next run.
    assert left == invalid
    assert optimize()[0] == 0
    assert definition(execute, "idx_users_tenant_role")


@pytest.mark.usefixtures("impatient")
def test_second_run_is_refused_by_name(execute: Execute) -> None:
    with running.open_session() as session, running.session_lock(session):
        pid = running._backend(session.work)
        status, said = optimize()
        assert status == 1
        assert f"runs already: session {pid} " in said
        assert optimize("--check")[0] == 0, "looking needs no lock"
    assert optimize()[0] == 0


def test_transaction_pooler_is_refused(other: BaseDatabaseWrapper) -> None:
    """Both connections reach one backend, as they do behind a transaction pooler."""
    with pytest.raises(direct.PoolerError, match="DATABASE_DIRECT_URL"):
        direct._refuse_pooler(other, other)


def test_role_without_rights_is_told_what_it_lacks(
    execute: Execute, other: BaseDatabaseWrapper
) -> None:
    execute("CREATE ROLE optimize_nobody")
    execute("GRANT SELECT ON django_migrations TO optimize_nobody")
    try:
        with other.cursor() as cursor:
            cursor.execute("SET ROLE optimize_nobody")
        with pytest.raises(MissingRightsError, match="GRANT CREATE ON DATABASE"):
            declared_state(other)
    finally:
        execute("DROP OWNED BY optimize_nobody")
        execute("DROP ROLE optimize_nobody")


def test_an_index_that_another_session_drops_midway_stops_its_own_change_only(
    execute: Execute, other: BaseDatabaseWrapper
) -> None:
    class Meddling(running.Reporter):
        def step_started(self, step: Step) -> None:
            if "RENAME" in step.sql:
                with other.cursor() as cursor:
                    cursor.execute("DROP INDEX idx_server_tools_name_server_ccnew")

    execute("DROP INDEX idx_server_tools_name_server")
    execute("CREATE INDEX idx_server_tools_name_server ON server_tools (name)")
    execute("DROP INDEX idx_users_tenant_role")
    with running.open_session() as session:
        declared = declared_state(session.work)
        plan = make_plan(declared=declared, actual=actual_state(session.work), phases=[1])
        executor = running.Executor(session=session, reporter=Meddling())
        run, failures = running.run_plan(
            plan=plan, declared=declared, executor=executor, actor=Actor(service_name="cli")
        )
    assert failures == [
        "idx_server_tools_name_server: "
        'relation "public.idx_server_tools_name_server_ccnew" does not exist'
    ]
    assert run
    assert run.outcome == OptimizeOutcome.FAILED
    assert definition(execute, "idx_users_tenant_role")


@pytest.fixture
def half_owner(as_declared: None, execute: Execute, settings: Any) -> Iterator[str]:
    """Owns one table; the rest, the schema included, belongs to somebody else."""
    ((owner, database),) = execute("SELECT current_user, current_database()")
    execute("CREATE ROLE half_owner LOGIN")
    execute(f'GRANT CREATE ON DATABASE "{database}" TO half_owner')
    execute("GRANT USAGE, CREATE ON SCHEMA public TO half_owner")
    execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO half_owner")
    execute("GRANT mcp_gateway_operator, mcp_gateway_app TO half_owner")
    execute("ALTER TABLE server_tools OWNER TO half_owner")
    settings.DATABASE_MAINTENANCE = {"USER": "half_owner"}
    yield "half_owner"
    settings.DATABASE_MAINTENANCE = None
    execute(f'REASSIGN OWNED BY half_owner TO "{owner}"')
    execute("DROP OWNED BY half_owner")
    execute("DROP ROLE half_owner")


@pytest.mark.usefixtures("half_owner")
def test_who_owns_only_some_tables_repairs_those(execute: Execute) -> None:
    execute("DROP INDEX idx_users_tenant_role")
    execute("DROP INDEX idx_server_tools_name_server")
    execute("REVOKE SELECT ON server_tools FROM mcp_gateway_operator")
    execute("REVOKE SELECT ON users FROM mcp_gateway_operator")
    status, said = optimize()
    assert status == 1
    assert "idx_users_tenant_role: must be owner of table users" in said
    assert definition(execute, "idx_server_tools_name_server")
    granted = "SELECT has_table_privilege('mcp_gateway_operator', %s, 'SELECT')"
    assert execute(granted, "server_tools") == [(True,)]
    assert execute(granted, "users") == [(False,)]
    assert "need more rights than this role has" in said


def test_scratch_schema_is_gone(execute: Execute) -> None:
    optimize("--check")
    assert execute("SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'optimize%%'") == [(0,)]


def test_progress_reaches_the_reporter(execute: Execute, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second connection sees what the first one builds."""
    monkeypatch.setattr(running, "POLL_SECONDS", 0.01)
    execute(
        "INSERT INTO tenants (id, name, slug, description, status, settings)"
        " SELECT gen_random_uuid(), md5(i::text), 'tenant-' || i, '', 'active', '{}'"
        " FROM generate_series(1, 60000) i"
    )
    seen: list[str] = []

    class Listening(running.Reporter):
        def step_progress(self, share: float | None, doing: str) -> None:
            seen.append(doing)

        def change_started(self, change: Change) -> None:
            seen.append(change.name)

    execute("ALTER TABLE tenants DROP CONSTRAINT uq_tenants_slug")
    with running.open_session() as session:
        declared = declared_state(session.work)
        plan = make_plan(declared=declared, actual=actual_state(session.work), phases=[1])
        executor = running.Executor(session=session, reporter=Listening())
        actor = Actor(service_name="cli")
        running.run_plan(plan=plan, declared=declared, executor=executor, actor=actor)
    assert seen[0] == "uq_tenants_slug"
    assert any("building index" in doing for doing in seen)
