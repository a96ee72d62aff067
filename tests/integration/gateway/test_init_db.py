"""How init_db migrates: on a connection of its own, without an end, and with words for locks."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from django.apps import apps
from django.contrib.postgres.signals import get_citext_oids, get_hstore_oids
from django.core.management import CommandError, call_command
from django.db import connection, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.recorder import MigrationRecorder
from django.db.models.signals import post_migrate
from psycopg import sql

from gateway import cli, schema
from gateway.management.commands import init_db
from registry.db import direct, roles
from registry.db.partitions import read_partitions
from registry.db.tenancy import APP_ROLE
from tests.integration.gateway.conftest import Scene, wait_until
from tests.walls import logged_in_as_app

pytestmark = pytest.mark.django_db(transaction=True)
Limits = dict[str, str]


@pytest.fixture
def migrating(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Stands in for `migrate`, and says that one migration is pending."""

    def install(work: Callable[[], None]) -> None:
        monkeypatch.setattr(schema, "migrations_pending", lambda: ["registry.0099_long"])
        monkeypatch.setattr(schema, "call_command", lambda *_, **__: work())

    return install


@pytest.fixture
def other() -> Iterator[BaseDatabaseWrapper]:
    own = connection.copy()
    yield own
    own.close()


def limits() -> Limits:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT name, setting FROM pg_settings WHERE name IN"
            " ('statement_timeout', 'lock_timeout', 'application_name')"
        )
        return dict(cursor.fetchall())


def test_a_migration_may_take_long_and_waits_for_locks_briefly(migrating: Any) -> None:
    seen: list[Limits] = []
    migrating(lambda: seen.append(limits()))
    assert schema.schema_create(told=lambda _: None) == 1
    assert seen == [
        {
            "statement_timeout": "0",
            "lock_timeout": str(direct.BRIEF_LOCK_MS),
            "application_name": "mcp-gateway init_db",
        }
    ]
    assert limits()["statement_timeout"] == "30000"


def test_it_goes_where_the_direct_address_says(migrating: Any, settings: Any) -> None:
    options = {**connections["default"].settings_dict["OPTIONS"], "options": "-c work_mem=5MB"}
    settings.DATABASE_DIRECT = {"OPTIONS": options}
    seen: list[str] = []

    def look() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SHOW work_mem")
            seen.extend(cursor.fetchone())

    migrating(look)
    schema.schema_create(told=lambda _: None)
    assert seen == ["5MB"]


def test_a_table_in_use_is_one_sentence(migrating: Any, other: BaseDatabaseWrapper) -> None:
    def lock() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = '50ms'")
            cursor.execute("ALTER TABLE tenants ADD COLUMN extra int")

    migrating(lock)
    other.set_autocommit(False)
    with other.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM tenants")
    with pytest.raises(CommandError, match=r"in use .*lock timeout.* try again"):
        call_command("init_db")
    other.rollback()
    assert limits()["application_name"] == "mcp-gateway", "the usual connection is back"


@pytest.mark.parametrize("command", ["init_db", "migrate"])
def test_one_process_migrates_at_a_time(
    command: str, other: BaseDatabaseWrapper, monkeypatch: Any, caplog: Any
) -> None:
    with other.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", [schema.LOCK])
    monkeypatch.setattr(schema, "WAIT_SECONDS", 0.1)
    with pytest.raises(CommandError, match="Another process is migrating this database; try"):
        call_command(command)
    assert caplog.text.count("another process is migrating this database: waiting") == 1


def test_a_transaction_pooler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "_backend", lambda _: 4711)
    with pytest.raises(CommandError, match="set DATABASE_DIRECT_URL"):
        call_command("init_db")


@pytest.fixture
def nobody_yet(settings: Any) -> Iterator[None]:
    """DATABASE_URL names a user who is not there; DATABASE_MAINTENANCE_URL the owner."""
    default = connections["default"]
    settings.DATABASE_MAINTENANCE = deepcopy(default.settings_dict)
    default.close()
    default.settings_dict["USER"] = "nobody_yet"
    for kept in (get_hstore_oids, get_citext_oids):  # a new process knows neither
        kept.cache_clear()
    yield
    default.settings_dict["USER"] = settings.DATABASE_MAINTENANCE["USER"]


def test_a_first_installation_needs_the_owner_alone(nobody_yet: None, capsys: Any) -> None:
    call_command("init_db", roles_sql=True)
    assert "-- Nothing is missing." in capsys.readouterr().out
    call_command("setup_enhanced", with_performance=True)
    assert "The database is ready." in capsys.readouterr().out


GRANT = sql.SQL("GRANT mcp_gateway_operator TO {}").format(sql.Identifier("owner"))
REFUSED = (roles.Step(GRANT),)


@pytest.mark.parametrize(
    ("raised", "lacks"),
    [
        (roles.Raised(0, REFUSED, walled=False), "not raised: roles or memberships"),
        (roles.Raised(0, REFUSED), "have gaps: grants or policies"),
    ],
)
@pytest.mark.parametrize("verbosity", [0, 1])
def test_walls_that_somebody_needs_and_that_are_missing_are_a_failure(
    nobody_yet: None,
    monkeypatch: Any,
    capsys: Any,
    raised: roles.Raised,
    lacks: str,
    verbosity: int,
) -> None:
    monkeypatch.setattr(init_db, "walls_create", lambda: raised)
    with pytest.raises(CommandError, match=f"not ready for nobody_yet .* {lacks} are missing"):
        call_command("init_db", verbosity=verbosity)
    said = capsys.readouterr()
    assert "is ready" not in said.out
    assert f"{REFUSED[0].text()}" in said.err


def test_one_user_who_does_everything_may_do_without_walls(monkeypatch: Any, capsys: Any) -> None:
    raised = roles.Raised(0, REFUSED, walled=False)
    monkeypatch.setattr(init_db, "walls_create", lambda: raised)
    call_command("init_db")
    assert "ready for its owner alone: the walls between tenants were not raised" in (
        capsys.readouterr().out
    )


def run(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


@pytest.fixture
def somebody() -> Iterator[str]:
    name = f"somebody_{uuid4().hex[:8]}"  # roles are the whole cluster's
    run(f"CREATE ROLE {name} LOGIN")
    yield name
    run(f"DROP ROLE {name}")


def test_tables_of_somebody_else_are_found_with_the_sql_that_gives_them(somebody: str) -> None:
    """By an owner who is no superuser: a superuser may do everything."""
    with transaction.atomic():
        run(f"GRANT {somebody} TO CURRENT_USER")
        for table in ("tenants", "users"):
            run(f"ALTER TABLE {table} OWNER TO {somebody}")
        run(f"SET LOCAL ROLE {somebody}")
        found = {step.text() for step in roles.tables_foreign()}
        transaction.set_rollback(True)
    assert f'ALTER TABLE "request_logs" OWNER TO "{somebody}";' in found
    assert [text for text in found if text.startswith('ALTER TABLE "request_logs_20')]
    assert f'ALTER TABLE "users" OWNER TO "{somebody}";' not in found
    assert roles.tables_foreign() == ()


def test_a_table_that_the_application_owns_is_a_failure(capsys: Any) -> None:
    """It could take the wall away, whoever does everything else."""
    run(f"ALTER TABLE users OWNER TO {APP_ROLE}")
    try:
        with pytest.raises(
            CommandError, match=r"not ready: 1 table\(s\) do not belong to the user"
        ):
            call_command("init_db")
    finally:
        run("ALTER TABLE users OWNER TO CURRENT_USER")
    said = capsys.readouterr()
    owner = connection.settings_dict["USER"]
    assert (
        f'Have a superuser run this, then init_db again:\n  ALTER TABLE "users" OWNER TO "{owner}";'
        in said.err
    )
    assert "ready" not in said.out
    call_command("init_db")
    assert "The database is ready." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("right", "reason"),
    [
        ("ALTER ROLE {} SUPERUSER", "is a superuser"),
        ("ALTER ROLE {} BYPASSRLS", "has BYPASSRLS"),
        ("GRANT mcp_gateway_operator TO {}", "has the rights of mcp_gateway_operator at any time"),
    ],
)
def test_a_login_that_no_wall_holds_is_a_failure(
    somebody: str, nobody_yet: None, settings: Any, right: str, reason: str, capsys: Any
) -> None:
    default = connections["default"]
    default.settings_dict["USER"] = settings.DATABASE_MAINTENANCE["USER"]
    run(right.format(somebody))
    default.close()
    default.settings_dict["USER"] = somebody
    with pytest.raises(CommandError, match=f"not ready for {somebody} .*{reason}: the walls .*app"):
        call_command("init_db")
    assert "is ready" not in capsys.readouterr().out


def test_a_superuser_who_does_everything_is_told_what_that_means(capsys: Any) -> None:
    call_command("init_db")
    said = capsys.readouterr()
    assert "is a superuser: the walls between tenants hold only what" in said.err
    assert "The database is ready." in said.out


def test_the_embedded_database_has_its_superuser_by_design(settings: Any, capsys: Any) -> None:
    settings.DATABASE_IS_EMBEDDED = True
    call_command("init_db")
    assert capsys.readouterr().err == ""


@contextmanager
def missing(table: str) -> Iterator[None]:
    def rename(old: str, new: str) -> None:
        with connection.cursor() as cursor:
            names = map(sql.Identifier, (old, new))
            cursor.execute(sql.SQL("ALTER TABLE {} RENAME TO {}").format(*names))

    rename(table, "elsewhere")
    try:
        yield
    finally:
        rename("elsewhere", table)


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_nothing_starts_without_the_schema(
    command: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.SECRETS_ARE_OWN = True
    monkeypatch.setattr("gateway.management.commands.serve.serve", pytest.fail)
    monkeypatch.setattr("gateway.worker.partitions_check", pytest.fail)
    options = {"port": 0} if command == "serve" else {}
    with missing("server_prompts"), pytest.raises(CommandError, match="run init_db, then start"):
        call_command(command, **options)


def test_a_migration_that_did_not_run_is_told_and_no_more(caplog: Any) -> None:
    with transaction.atomic():
        MigrationRecorder.Migration.objects.filter(app="security").order_by("-id")[0].delete()
        schema.schema_check()
        transaction.set_rollback(True)
    assert re.search(r"1 migration\(s\) .* the first is security\.0.*: run init_db", caplog.text)


def test_calls_and_the_probe_say_so_when_tables_are_gone(scene: Scene, caplog: Any) -> None:
    def ready() -> httpx2.Response:
        return httpx2.get(f"{scene.url}/health/ready", trust_env=False)

    with missing("connection_pools"):
        answer = wait_until(lambda: (a := ready()).status_code == 503 and a)
        assert answer.json()["reason"] == "schema"
        assert "Run init_db." in answer.json()["message"]
    wait_until(lambda: ready().status_code == 200)
    with missing("enhanced_api_keys"):
        refused = [scene.send() for _ in range(3)]
    assert {r.json()["error"]["data"]["reason"] for r in refused} == {"database_unavailable"}
    assert caplog.text.count("calls are refused: ") == 1
    assert caplog.text.count("figures wait for the database") <= 1
    assert "Traceback" not in caplog.text


def test_sql_for_a_dba_wants_to_know_whose_server(settings: Any) -> None:
    settings.DATABASE_IS_EMBEDDED = True
    with pytest.raises(CommandError, match="Set DATABASE_URL, or DATABASE_MAINTENANCE_URL"):
        call_command("init_db", roles_sql=True)


def test_who_may_not_migrate_is_told_what_to_set(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["mcp-gateway", "init-db"])
    with logged_in_as_app(), pytest.raises(SystemExit, match="1"):
        cli.main()
    said = capsys.readouterr().err
    assert "permission denied for table django_migrations. Set DATABASE_MAINTENANCE_URL" in said


def test_walls_and_statistics_of_a_migration_are_counted(migrating: Any, capsys: Any) -> None:
    def migrate() -> None:
        with connection.cursor() as cursor:
            cursor.execute("DROP POLICY tenant_reads ON mcp_servers")
            cursor.execute("CREATE TABLE never_analysed ()")
        config = apps.get_app_config("gateway")
        post_migrate.send(sender=config, app_config=config, using="default", plan=[])

    migrating(migrate)
    try:
        call_command("init_db")
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TABLE never_analysed")
    said = capsys.readouterr().out
    assert "Walls: 1 change(s)" in said
    assert re.search(r"Statistics: [1-9]\d* table", said)


def test_partitions_of_the_logs_are_made(capsys: Any) -> None:
    *_, last = read_partitions(connection, "audit_logs")
    with connection.cursor() as cursor:
        cursor.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(last.name)))
    call_command("init_db")
    assert "Partitions of the logs: 1 made." in capsys.readouterr().out
    assert last in read_partitions(connection, "audit_logs")
