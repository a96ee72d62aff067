"""For processes that act for every tenant: the worker, and commands that somebody types.

They work outside of long transactions, so their connections take the operator's role when they
are opened and keep it. A transaction pooler drops what a connection asks for at its start; such
a process then goes around it with DATABASE_DIRECT_URL, or says that it has to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from django.conf import settings
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from registry.db.tenancy import OPERATOR_ROLE

__all__ = [
    "CrossingError",
    "acting_as_owner",
    "cross_tenants",
    "crossing_check",
    "crossing_tenants",
    "without_role",
]

_OPTION = f" -c role={OPERATOR_ROLE}"
# May take the role, has its rights already, is walled in.
_STANDING = """
SELECT EXISTS (SELECT FROM pg_roles
                WHERE rolname = %(role)s
                  AND pg_has_role(session_user, oid, CASE
                          WHEN current_setting('server_version_num')::integer < 160000
                          THEN 'MEMBER' ELSE 'SET' END)),
       EXISTS (SELECT FROM pg_roles
                WHERE rolname = %(role)s AND pg_has_role(session_user, oid, 'USAGE')),
       coalesce(row_security_active(to_regclass('tenants')::oid), false),
       session_user
"""


class CrossingError(Exception):
    """This process would see no tenant's rows; the message says what to do."""


@contextmanager
def crossing_tenants(*, using: str = "default") -> Iterator[None]:
    """Inside, new connections of this process act for every tenant. CrossingError: they cannot."""
    before = deepcopy(dict(connections[using].settings_dict))
    try:
        cross_tenants(using=using)
        yield
    finally:
        if connections[using].settings_dict != before:
            connections[using].close()
            connections[using].settings_dict.update(before)


@contextmanager
def acting_as_owner(*, using: str = "default") -> Iterator[None]:
    """Inside, new connections of this process are the tables' owner's."""
    connection = connections[using]
    owner = settings.DATABASE_MAINTENANCE or settings.DATABASE_DIRECT
    if not owner or connection.in_atomic_block:
        yield
        return
    before = deepcopy(dict(connection.settings_dict))
    connection.close()
    connection.settings_dict.update(deepcopy(owner))
    try:
        yield
    finally:
        connection.close()
        connection.settings_dict.update(before)


def cross_tenants(*, using: str = "default") -> None:
    """From now on, new connections of this process act for every tenant.

    Nothing is done where the walls are down, or where the session's user is the owner or a
    superuser, who passes them anyway. Leaves no connection open.
    """
    connection = connections[using]
    if connection.in_atomic_block:
        return  # the transaction says for whom it works
    if settings.DATABASE_DIRECT:
        connection.close()
        connection.settings_dict.update(deepcopy(settings.DATABASE_DIRECT))
    try:
        _take_role(connection)
    finally:
        connection.close()


def without_role(options: Mapping[str, Any]) -> dict[str, Any]:
    """Connection options as they were before `cross_tenants`."""
    return {**options, "options": options.get("options", "").replace(_OPTION, "")}


def crossing_check(*, using: str = "default") -> None:
    """CrossingError where transactions could not act for every tenant. Leaves nothing open."""
    try:
        _needs_role(connections[using])
    finally:
        connections[using].close()


def _needs_role(connection: BaseDatabaseWrapper) -> bool:
    """Whether rows of every tenant are seen with the role, and not without it."""
    with connection.cursor() as cursor:
        cursor.execute(_STANDING, {"role": OPERATOR_ROLE})
        may_take, passes, walled, user = cursor.fetchone()
    if walled and not may_take and not passes:
        raise CrossingError(
            f"The database role {user} is walled in and would see no tenant's rows: have a "
            f'superuser run GRANT {OPERATOR_ROLE} TO "{user}", or use the roles of init_db.'
        )
    return bool(may_take and not passes)


def _take_role(connection: BaseDatabaseWrapper) -> None:
    if not _needs_role(connection):
        return
    connection.close()
    options = connection.settings_dict["OPTIONS"]
    options["options"] = without_role(options)["options"] + _OPTION
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_user = %s", [OPERATOR_ROLE])
        (taken,) = cursor.fetchone()
    if not taken:
        options["options"] = without_role(options)["options"]
        raise CrossingError(
            "The database is reached through a transaction pooler, which drops the role that this "
            "process asks for: set DATABASE_DIRECT_URL to the server itself."
        )
