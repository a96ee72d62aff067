"""Bringing the database to the schema of this program."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.core.management import call_command
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

__all__ = ["SchemaBusyError", "migrations_pending", "schema_create"]

# Any number that no other program on the database uses; the same for every gateway process.
LOCK = 6_022_140_761
WAIT_SECONDS = 120.0


class SchemaBusyError(Exception):
    """Another process has been migrating this database for longer than one waits."""


def migrations_pending() -> list[str]:
    """`app.name` of each migration that is still to run, in order."""
    executor = MigrationExecutor(connection)
    plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    return [f"{migration.app_label}.{migration.name}" for migration, _ in plan]


def schema_create(*, told: Callable[[str], None]) -> int:
    """Run the pending migrations, one process at a time; returns how many. `told` hears each."""
    with _alone():
        pending = migrations_pending()
        if pending:
            call_command("migrate", interactive=False, verbosity=0)
        for name in pending:
            told(name)
        return len(pending)


@contextmanager
def _alone(wait_seconds: float = WAIT_SECONDS) -> Iterator[None]:
    """Hold an advisory lock of this session.

    Asked for again and again, not waited for: a waiting statement has a snapshot, and a
    concurrent index build of the holder would wait for that for ever.
    """
    until = time.monotonic() + wait_seconds
    while not _ask("SELECT pg_try_advisory_lock(%s)"):
        if time.monotonic() > until:
            raise SchemaBusyError(
                "Another process is migrating this database; try again when it is done."
            )
        time.sleep(0.2)
    try:
        yield
    finally:
        _ask("SELECT pg_advisory_unlock(%s)")


def _ask(statement: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(statement, [LOCK])
        return cursor.fetchone()[0]
