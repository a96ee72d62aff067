"""Bringing the database to the schema of this program."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from django.apps import apps
from django.core.management import call_command
from django.core.management.commands.migrate import Command as MigrateCommand
from django.db import Error, connection
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.executor import MigrationExecutor
from django.db.models.signals import post_migrate
from psycopg import sql

from gateway.apps import raise_walls
from registry.db.direct import as_default, direct_connections, is_about_locks
from registry.db.partitions import partitioned_tables
from registry.db.roles import Raised, tables_foreign, walls_raise
from registry.db.tenancy import operator_transaction

__all__ = [
    "SchemaBusyError",
    "SchemaMissingError",
    "migrating_alone",
    "migrations_pending",
    "owners_connection",
    "partitions_count",
    "schema_check",
    "schema_create",
    "statistics_begin",
    "walls_create",
]

logger = logging.getLogger(__name__)

APPLICATION_NAME = "mcp-gateway init_db"
# Any number that no other program on the database uses; the same for every gateway process.
LOCK = 6_022_140_761
WAIT_SECONDS = 120.0


class SchemaBusyError(Exception):
    """Others have been in the way for longer than one waits; the message says what to do."""


class SchemaMissingError(Exception):
    """Tables that this program needs are not there; the message says what to do."""


def schema_check() -> None:
    """SchemaMissingError without the tables of this program; the log hears of less.

    For a process that serves or works, as whoever it acts for. Leaves no connection open.
    """
    try:
        with operator_transaction():
            _check_tables()
            pending = migrations_pending()
    finally:
        if not connection.in_atomic_block:
            connection.close()
    if pending:
        logger.warning(
            "%d migration(s) of this program have not run, the first is %s: run init_db",
            len(pending),
            pending[0],
        )


def _check_tables() -> None:
    models = apps.get_models(include_auto_created=True)
    wanted = {model._meta.db_table for model in models if model._meta.managed}
    with connection.cursor() as cursor:
        cursor.execute(_TABLES, [sorted(wanted)])
        missing = [name for (name,) in cursor.fetchall()]
    if missing:
        raise SchemaMissingError(
            f"The database {connection.settings_dict['NAME']} lacks {len(missing)} of "
            f"{len(wanted)} tables, such as {missing[0]}: run init_db, then start this again."
        )


_TABLES = """
SELECT name FROM unnest(%s::text[]) AS name
 WHERE NOT EXISTS (SELECT FROM pg_class WHERE relname = name AND relkind IN ('r', 'p')
                      AND relnamespace = current_schema()::regnamespace)
 ORDER BY name
"""


def migrations_pending() -> list[str]:
    """`app.name` of each migration that is still to run, in order."""
    executor = MigrationExecutor(connection)
    plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    return [f"{migration.app_label}.{migration.name}" for migration, _ in plan]


def schema_create(*, told: Callable[[str], None]) -> int:
    """Run the pending migrations, one process at a time; returns how many. `told` hears each.

    The walls of what they make are the caller's to raise.
    A migration may take as long as it takes, but waits for locks only briefly, because all later
    queries on the table would wait with it: SchemaBusyError then, and nothing is half done.
    """
    with owners_connection() as work, _alone(work):
        pending = migrations_pending()
        if pending:
            with _locks_in_words(), _walls_left_alone():
                # Django's own: ours would wait for the lock that is held here.
                call_command(MigrateCommand(), interactive=False, verbosity=0)
        for name in pending:
            told(name)
        return len(pending)


@contextmanager
def migrating_alone() -> Iterator[None]:
    """Inside, no other process migrates this database. SchemaBusyError: one does for too long."""
    with direct_connections(application_name=APPLICATION_NAME) as (work, _), _alone(work):
        yield


def walls_create() -> Raised:
    """Make roles, grants and row-level security what the code declares; SchemaBusyError as above.

    What needs more rights than the owner has is left out, and is in the result.
    """
    with owners_connection() as work, _alone(work), _locks_in_words():
        return replace(walls_raise(), foreign=tables_foreign())


def partitions_count() -> int:
    """How many partitions the logs have, as this thread's connection sees them."""
    with connection.cursor() as cursor:
        cursor.execute(_PARTITIONS, [partitioned_tables()])
        return int(cursor.fetchone()[0])


def statistics_begin() -> int:
    """ANALYZE the owner's tables that nobody ever did: until then the planner guesses. How many."""
    with connection.cursor() as cursor:
        cursor.execute(_NEVER_ANALYSED)
        tables = [name for (name,) in cursor.fetchall()]
        for table in tables:
            cursor.execute(sql.SQL("ANALYZE (SKIP_LOCKED) {}").format(sql.Identifier(table)))
    return len(tables)


_PARTITIONS = """
SELECT count(*) FROM pg_inherits
 WHERE inhparent IN (SELECT oid FROM pg_class WHERE relkind = 'p' AND relname = ANY(%s)
                        AND relnamespace = current_schema()::regnamespace)
"""
_NEVER_ANALYSED = """
SELECT t.relname FROM pg_class AS t
  LEFT JOIN pg_stat_all_tables AS s ON s.relid = t.oid
 WHERE t.relnamespace = current_schema()::regnamespace AND t.relkind IN ('r', 'p', 'm')
   AND NOT t.relispartition AND pg_has_role(t.relowner, 'USAGE')
   AND s.last_analyze IS NULL AND s.last_autoanalyze IS NULL
 ORDER BY t.relname
"""


@contextmanager
def owners_connection() -> Iterator[BaseDatabaseWrapper]:
    """Let the ORM of this thread work as the tables' owner, on a connection of its own."""
    with direct_connections(application_name=APPLICATION_NAME) as (work, _), as_default(work):
        yield work


@contextmanager
def _walls_left_alone() -> Iterator[None]:
    """`migrate` raises the walls too, but nobody hears how many and what was refused."""
    sender = apps.get_app_config("gateway")
    post_migrate.disconnect(raise_walls, sender=sender)
    try:
        yield
    finally:
        post_migrate.connect(raise_walls, sender=sender)


@contextmanager
def _locks_in_words() -> Iterator[None]:
    try:
        yield
    except Error as error:
        if not is_about_locks(error):
            raise
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise SchemaBusyError(
            f"A table that a migration changes is in use ({reason}). What was migrated so far "
            "stays; try again when long transactions on it have ended."
        ) from error


@contextmanager
def _alone(own: BaseDatabaseWrapper) -> Iterator[None]:
    """Hold an advisory lock of this session.

    Asked for again and again, not waited for: a waiting statement has a snapshot, and a
    concurrent index build of the holder would wait for that for ever.
    """
    until, told = time.monotonic() + WAIT_SECONDS, False
    while not _ask(own, "SELECT pg_try_advisory_lock(%s)"):
        if time.monotonic() > until:
            raise SchemaBusyError(
                "Another process is migrating this database; try again when it is done."
            )
        if not told:
            logger.warning(
                "another process is migrating this database: waiting for it, %d s at most",
                WAIT_SECONDS,
            )
            told = True
        time.sleep(0.2)
    try:
        yield
    finally:
        _ask(own, "SELECT pg_advisory_unlock(%s)")


def _ask(own: BaseDatabaseWrapper, statement: str) -> Any:
    with own.cursor() as cursor:
        cursor.execute(statement, [LOCK])
        return cursor.fetchone()[0]
