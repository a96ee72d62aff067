"""Frozen SQL files: in pairs, each used once, reversible, and what they make is described."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.apps import apps
from django.core.management import call_command
from django.db import connection
from django.db.migrations.loader import MigrationLoader

from monitoring.optimize.state import declared_state, our_labels
from registry.db.sql import RunSQLFile


def files(ending: str) -> set[tuple[str, str]]:
    return {
        (label, path.name.removesuffix(ending))
        for label in our_labels()
        for path in Path(apps.get_app_config(label).path, "migrations/sql").glob(f"*{ending}")
    }


def operations() -> list[tuple[str, str, str]]:
    """(app, migration, file) of every use of a file."""
    loader = MigrationLoader(None)
    return [
        (label, name, operation.name)
        for (label, name), migration in loader.disk_migrations.items()
        for operation in migration.operations
        if isinstance(operation, RunSQLFile)
    ]


def test_files_come_in_pairs() -> None:
    assert files(".up.sql") == files(".down.sql")


def test_each_file_is_used_exactly_once() -> None:
    used = [(label, file) for label, _, file in operations()]
    assert sorted(used) == sorted(files(".up.sql"))


def test_a_file_has_the_number_of_its_migration() -> None:
    assert all(file[:4] == migration[:4] for _, migration, file in operations())


def test_files_create_and_never_replace() -> None:
    """A clash should fail: a new body is a new file."""
    for label in our_labels():
        folder = Path(apps.get_app_config(label).path, "migrations/sql")
        for path in folder.glob("*.up.sql"):
            assert "OR REPLACE" not in path.read_text(encoding="utf-8").upper(), path.name


@pytest.mark.django_db(transaction=True)
def test_what_the_files_make_is_verifiable_and_described() -> None:
    own = connection.copy()
    try:
        state = declared_state(own)
    finally:
        own.close()
    assert state.unverifiable == {}
    bare = [
        comment
        for routine in state.routines.values()
        if routine.kind != "TRIGGER"
        for comment in routine.comments
        if comment.endswith("IS NULL;")
    ]
    assert bare == []


PUBLIC = {
    "get_server_health_summary",
    "get_request_performance_summary",
    "get_tenant_usage_summary",
}


@pytest.mark.django_db
def test_summaries_are_inlinable_sql_of_the_invoker() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT p.proname, l.lanname, p.provolatile, p.proparallel, p.prosecdef,"
            " p.proconfig IS NULL"
            " FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang"
            " WHERE p.proname = ANY(%s)",
            [sorted(PUBLIC)],
        )
        found = {row[0]: row[1:] for row in cursor.fetchall()}
    assert found == dict.fromkeys(PUBLIC, ("sql", "s", "s", False, True))


@pytest.mark.django_db(transaction=True)
def test_files_can_be_undone_and_done_again() -> None:
    """Backwards and forwards over every migration that runs a file."""
    before = {
        "gateway": "0001",
        "security": "0001",
        "monitoring": "0002",
        "registry": "0001",
    }
    try:
        for label, number in before.items():
            call_command("migrate", label, number, verbosity=0)
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_proc WHERE proname = ANY(%s)", [sorted(PUBLIC)])
            assert cursor.fetchone() == (0,)
    finally:
        call_command("migrate", verbosity=0)
    with connection.cursor() as cursor:
        cursor.execute("SELECT total_requests FROM get_request_performance_summary()")
        assert cursor.fetchone() == (0,)
