"""A database of a benchmark's own, on the server that the settings name.

Every benchmark of the project works in one. It is dropped at the end, after Ctrl-C and SIGTERM
too; what a killed run left behind, the next one removes.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any
from urllib.parse import quote, urlencode
from uuid import uuid4

import psycopg
from django.conf import settings
from django.core.management import call_command
from django.db import connections
from psycopg import sql

from registry.db.embedded import local_cluster

__all__ = [
    "PREFIX",
    "ScratchError",
    "connect",
    "environment",
    "migrated_database",
    "scratch_database",
]

PREFIX = "mcp_gateway_bench_"
STAMP = "%Y%m%d%H%M%S"
OLDEST_SERVER = 150_000
ABANDONED = timedelta(minutes=10)  # nobody connected for so long after its making: a killed run's
# A run's own statements: filling a large table takes minutes, a lock held by nobody takes none.
LIMITS = (
    "-c statement_timeout=3600000 -c lock_timeout=60000"
    " -c idle_in_transaction_session_timeout=600000 -c timezone=UTC -c jit=off"
)
IN_ADDRESS = ("host", "port", "sslmode", "sslrootcert", "sslcert", "sslkey")  # libpq's parameters
ALSO_NAMED = ("DATABASE_DIRECT", "DATABASE_MAINTENANCE")  # settings that hold the same database


class ScratchError(Exception):
    """The benchmark cannot have its database; the message says what to do."""


@contextmanager
def migrated_database(*, bytes_needed: int = 0) -> Iterator[str]:
    """A scratch database with the schema, roles and walls that the migrations make; its name."""
    with scratch_database(bytes_needed=bytes_needed) as name:
        call_command("migrate", interactive=False, verbosity=0)
        yield name


@contextmanager
def scratch_database(*, bytes_needed: int = 0) -> Iterator[str]:
    """Make a database, let Django's default connection mean it, and drop it whatever happens.

    Yields its name. It is the default one for every thread of this process, which work in it as
    its owner.
    """
    with _stoppable(), _running(), _server() as server:
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


def connect(application_name: str = "mcp-gateway benchmark") -> psycopg.Connection[Any]:
    """A session of its own on the database that is the default one now, in autocommit.

    Nothing is prepared on the server, as in the program itself.
    """
    parameters = connections["default"].get_connection_params()
    parameters |= {"application_name": application_name, "prepare_threshold": None}
    return psycopg.connect(**parameters, autocommit=True)


def environment() -> dict[str, str]:
    """Of a process of its own, whose database is the one that is the default here now."""
    # Empty, not left out: a .env file would give them again, and with them another database.
    others = ("DATABASE_DIRECT_URL", "DATABASE_MAINTENANCE_URL", "DATABASE_REPLICA_URL")
    return {
        **os.environ,
        **dict.fromkeys(others, ""),
        "DATABASE_URL": _address(),
        "SECRET_KEY": settings.SECRET_KEY,
        "ENCRYPTION_KEYS": ",".join(settings.ENCRYPTION_KEYS),
    }


def _address() -> str:
    found = connections["default"].get_connection_params()
    who = ":".join(quote(str(found.get(name) or ""), safe="") for name in ("user", "password"))
    where = urlencode({name: found[name] for name in IN_ADDRESS if found.get(name)})
    return f"postgresql://{who}@/{quote(found['dbname'], safe='')}?{where}"


def _running() -> AbstractContextManager[object]:
    """The embedded server where it is the one that the settings name."""
    embedded = getattr(settings, "DATABASE_IS_EMBEDDED", False)
    return local_cluster(settings.LOCAL_DIR).running() if embedded else nullcontext()


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM as Ctrl-C, so that the database is dropped either way."""
    if current_thread() is not main_thread():
        yield
        return
    usual = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, usual)


@contextmanager
def _server() -> Iterator[psycopg.Connection[Any]]:
    """The settings' own database, past a pooler: CREATE DATABASE belongs to a real session."""
    with _replaced(_direct_settings()), connect() as server:
        yield server


def _direct_settings() -> dict[str, Any]:
    """The owner's, who may make databases, past a pooler."""
    usual = deepcopy(dict(connections["default"].settings_dict))
    owners = settings.DATABASE_MAINTENANCE or settings.DATABASE_DIRECT or {}
    found = usual | deepcopy(owners)
    found["OPTIONS"] = {**found["OPTIONS"], "options": LIMITS}
    return found


@contextmanager
def _replaced(wanted: dict[str, Any]) -> Iterator[None]:
    """Change the settings themselves, which the connections of all threads are opened by."""
    default = connections["default"]
    usual = dict(default.settings_dict)
    default.close()
    _set(default.settings_dict, wanted)
    try:
        yield
    finally:
        default.close()
        _set(default.settings_dict, usual)


def _set(kept: dict[str, Any], wanted: dict[str, Any]) -> None:
    kept.clear()
    kept.update(wanted)


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
            f"{free / 2**30:.1f} GB are free: choose a smaller size."
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
