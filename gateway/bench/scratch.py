"""A database of the benchmark's own, on the server that the settings name."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
from django.conf import settings
from django.db import connections
from psycopg import sql

__all__ = ["ScratchError", "connect", "scratch_database"]

PREFIX = "mcp_gateway_bench_"
STAMP = "%Y%m%d%H%M%S"
OLDEST_SERVER = 150_000
ABANDONED = timedelta(minutes=10)  # nobody connected for so long after its making: a killed run's
# A run's own statements: filling a large table takes minutes, a lock held by nobody takes none.
LIMITS = (
    "-c statement_timeout=3600000 -c lock_timeout=60000"
    " -c idle_in_transaction_session_timeout=600000 -c timezone=UTC -c jit=off"
)
ALSO_NAMED = ("DATABASE_DIRECT", "DATABASE_MAINTENANCE")  # settings that hold the same database


class ScratchError(Exception):
    """The benchmark cannot have its database; the message says what to do."""


@contextmanager
def scratch_database(*, bytes_needed: int) -> Iterator[str]:
    """Make a database, let Django's default connection mean it, and drop it whatever happens.

    Yields its name. Other threads must open connections of their own, with `connect`.
    """
    with _server() as server:
        _check(server, bytes_needed)
        _drop_abandoned(server)
        name = f"{PREFIX}{datetime.now(UTC):{STAMP}}_{uuid4().hex[:6]}"
        identifier = sql.Identifier(name)
        try:
            server.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'").format(identifier)
            )
            with _as_default(name):
                yield name
        finally:
            server.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(identifier))


def connect(application_name: str = "mcp-gateway bench_db") -> psycopg.Connection[Any]:
    """A session of its own on the database that is the default one now, in autocommit.

    Nothing is prepared on the server, as in the program itself.
    """
    parameters = connections["default"].get_connection_params()
    parameters |= {"application_name": application_name, "prepare_threshold": None}
    return psycopg.connect(**parameters, autocommit=True)


@contextmanager
def _server() -> Iterator[psycopg.Connection[Any]]:
    """The settings' own database, past a pooler: CREATE DATABASE belongs to a real session."""
    with _replaced(_direct_settings()), connect() as server:
        yield server


def _direct_settings() -> dict[str, Any]:
    usual = deepcopy(connections["default"].settings_dict)
    found = usual | deepcopy(settings.DATABASE_DIRECT or {})
    found["OPTIONS"] = {**found["OPTIONS"], "options": LIMITS}
    return found


@contextmanager
def _replaced(wanted: dict[str, Any]) -> Iterator[None]:
    default = connections["default"]
    usual = default.settings_dict
    default.close()
    default.settings_dict = wanted
    try:
        yield
    finally:
        default.close()
        default.settings_dict = usual


@contextmanager
def _as_default(name: str) -> Iterator[None]:
    """Let the ORM, migrations and `optimize_db` use the database, whatever way they take."""
    kept = {also: getattr(settings, also, None) for also in ALSO_NAMED}
    for also, found in kept.items():
        if found:
            setattr(settings, also, {**found, "NAME": name})
    try:
        with _replaced({**_direct_settings(), "NAME": name}):
            yield
    finally:
        for also, found in kept.items():
            if found:
                setattr(settings, also, found)


def _check(server: psycopg.Connection[Any], bytes_needed: int) -> None:
    """Refuse at once what would fail in the middle."""
    if server.info.server_version < OLDEST_SERVER:
        raise ScratchError(
            f"PostgreSQL {server.info.server_version // 10_000} is too old: the gateway needs 15 "
            "to 18. Name another server in DATABASE_URL, or unset it to use the embedded one."
        )
    row = server.execute(
        "SELECT rolname, rolsuper OR rolcreatedb FROM pg_roles WHERE rolname = current_user"
    ).fetchone()
    if row and not row[1]:
        raise ScratchError(
            f'The role "{row[0]}" may not make databases, and the benchmark works in one of its '
            f'own: run ALTER ROLE "{row[0]}" CREATEDB as a superuser, or name another role in '
            "DATABASE_URL."
        )
    _check_disk(server, bytes_needed)


def _check_disk(server: psycopg.Connection[Any], bytes_needed: int) -> None:
    """Where the server's files lie on this machine; elsewhere it is the operator's to know."""
    host = server.info.host
    is_here = host.startswith("/") or host in {"localhost", "127.0.0.1", "::1"}
    row = server.execute(
        "SELECT setting FROM pg_settings WHERE name = 'data_directory'"  # NULL: no right to see it
    ).fetchone()
    if not (is_here and row and row[0] and Path(row[0]).exists()):
        return
    free = shutil.disk_usage(row[0]).free
    if free < bytes_needed:
        raise ScratchError(
            f"The benchmark needs about {bytes_needed / 2**30:.1f} GB of disk for this size and "
            f"{free / 2**30:.1f} GB are free: choose smaller --requests and --servers."
        )


def _drop_abandoned(server: psycopg.Connection[Any]) -> None:
    """Databases of runs that were killed: nobody is connected, and they are not just being made."""
    rows = server.execute(
        "SELECT datname FROM pg_database d WHERE starts_with(datname, %s)"
        " AND pg_has_role(datdba, 'MEMBER')"
        " AND NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.datid = d.oid)",
        [PREFIX],
    ).fetchall()
    for (name,) in rows:
        if _made_at(name) < datetime.now(UTC) - ABANDONED:
            server.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(name)))


def _made_at(name: str) -> datetime:
    """When a scratch database was made; long ahead for a name that is not ours."""
    try:
        stamp = name.removeprefix(PREFIX)[:14]
        return datetime.strptime(stamp, STAMP).replace(tzinfo=UTC)
    except ValueError:
        return datetime.max.replace(tzinfo=UTC)
