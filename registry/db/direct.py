"""Connections for work on the schema: past a transaction pooler, and with no end to a statement."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

from django.conf import settings
from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg import errors

from registry.db.crossing import without_role

__all__ = [
    "BRIEF_LOCK_MS",
    "PoolerError",
    "as_default",
    "direct_connections",
    "is_about_locks",
    "set_lock_timeout",
]

# While a statement waits for a lock that conflicts with reads, every later query queues behind
# it: so it gives up soon.
BRIEF_LOCK_MS = 2_000


class PoolerError(Exception):
    """The connection goes through a transaction pooler, which has no session to hold a lock in."""


@contextmanager
def direct_connections(
    *, application_name: str, lock_timeout_ms: int = BRIEF_LOCK_MS
) -> Iterator[tuple[BaseDatabaseWrapper, BaseDatabaseWrapper]]:
    """Two connections of their own in autocommit, which any thread may use.

    They are the owner's (DATABASE_MAINTENANCE_URL; without it DATABASE_DIRECT_URL, without that
    one DATABASE_URL). PoolerError when a transaction pooler stands between nevertheless.
    """
    pair = _copy(application_name), _copy(application_name)
    try:
        for connection in pair:
            connection.ensure_connection()
        _refuse_pooler(*pair)  # before anything is set, or others would get what is set here
        for connection in pair:
            _set_limits(connection, lock_timeout_ms)
        yield pair
    finally:
        for connection in pair:
            connection.close()


@contextmanager
def as_default(own: BaseDatabaseWrapper) -> Iterator[None]:
    """Let this thread's ORM, and so every migration, use the given connection."""
    usual = connections[own.alias]
    connections[own.alias] = own
    try:
        yield
    finally:
        connections[own.alias] = usual


def set_lock_timeout(connection: BaseDatabaseWrapper, milliseconds: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('lock_timeout', %s, false)", [f"{milliseconds}ms"])


def is_about_locks(error: Error) -> bool:
    """Whether a statement gave up because others were in its way: it may be tried again."""
    return isinstance(error.__cause__, errors.LockNotAvailable | errors.DeadlockDetected)


def _copy(application_name: str) -> BaseDatabaseWrapper:
    default = connections["default"]
    connection = default.copy()
    # The same database, as its tables' owner and without a pooler in between, if told apart.
    direct = settings.DATABASE_MAINTENANCE or settings.DATABASE_DIRECT or {}
    connection.settings_dict = deepcopy(default.settings_dict) | deepcopy(direct)
    options = {**connection.settings_dict["OPTIONS"], "application_name": application_name}
    connection.settings_dict["OPTIONS"] = without_role(options)
    connection.inc_thread_sharing()
    return connection


def _set_limits(connection: BaseDatabaseWrapper, lock_timeout_ms: int) -> None:
    with connection.cursor() as cursor:
        # A build takes as long as it takes; waits for locks are bounded.
        cursor.execute("SET statement_timeout = 0")
        cursor.execute("SET idle_in_transaction_session_timeout = 0")
    set_lock_timeout(connection, lock_timeout_ms)


def _refuse_pooler(work: BaseDatabaseWrapper, other: BaseDatabaseWrapper) -> None:
    """PoolerError where statements of one connection reach several backends.

    A pooler hands the backend that was used last to whoever asks next: the transaction of the
    second connection takes it away from the first one.
    """
    before = _backend(work)
    other.set_autocommit(False)
    try:
        taken = _backend(other)
        after = _backend(work)
    finally:
        other.rollback()
        other.set_autocommit(True)
    if taken == before or after != before:
        raise PoolerError(
            "The database is reached through a transaction pooler, where neither time-outs nor "
            "locks of a session last: set DATABASE_DIRECT_URL to the server itself, "
            "and DATABASE_MAINTENANCE_URL too where there is one."
        )


def _backend(connection: BaseDatabaseWrapper) -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])
