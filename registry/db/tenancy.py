"""The one place that says for whom a transaction works: for one tenant, or across all of them.

Note [Tenant of a transaction]
Role and tenant are settings of the transaction (`SET LOCAL`), so a connection that a pooler hands
on carries nothing over. Row-level security reads the tenant with
`current_setting('gateway.tenant_id', true)`; what a tenant sees then is declared in each app's
`walls.py`. Outside of such a transaction the application's role sees no row at all.

A role is taken only where it exists and the session's user may take it. Without roles (a database
that one user owns, see `init_db`) the same code runs, and the walls are down.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg import AsyncConnection, sql

__all__ = [
    "APP_ROLE",
    "OPERATOR_ROLE",
    "READER_ROLE",
    "begin_as_operator",
    "enter_statement",
    "narrow_to_tenant",
    "operator_transaction",
    "tenant_transaction",
    "transaction_left",
    "widen_to_operator",
]

APP_ROLE: Final = "mcp_gateway_app"  # who the gateway logs in as: walled, without DDL
OPERATOR_ROLE: Final = "mcp_gateway_operator"  # nobody logs in as it: it crosses tenants
READER_ROLE: Final = "mcp_gateway_reader"  # dashboards and psql: reads, never writes

# What was set before, then what is set now: a list of columns is evaluated from left to right.
_ENTER = """
SELECT current_setting('role'), coalesce(current_setting('gateway.tenant_id', true), ''),
       set_config('gateway.tenant_id', {tenant}, true),
       set_config('role', coalesce((
           SELECT rolname FROM pg_roles
            WHERE rolname = {role}
              AND pg_has_role(session_user, oid, CASE
                      WHEN current_setting('server_version_num')::integer < 160000
                      THEN 'MEMBER' ELSE 'SET' END)), 'none'), true)
"""
_ENTER_DJANGO = _ENTER.format(tenant="%s", role="%s")
_BEGIN_AS_OPERATOR = sql.SQL("BEGIN; " + _ENTER).format(
    tenant=sql.Literal(""), role=sql.Literal(OPERATOR_ROLE)
)


@dataclass(slots=True)
class _Scope:
    """A transaction of ours that is open on a connection."""

    role: str
    tenant: str
    block: transaction.Atomic
    is_nested: bool
    depth: int = 0  # savepoints that are open where nobody opened one inside
    before: tuple[str, str] = ("", "")

    def set(self, connection: BaseDatabaseWrapper) -> None:
        self.depth = len(connection.savepoint_ids)
        self.before = _enter(connection, self.role, self.tenant)

    def reset(self, connection: BaseDatabaseWrapper) -> None:
        # The end of a transaction does it by itself, and so does a rollback to a savepoint.
        if self.is_nested and not connection.needs_rollback:
            _enter(connection, *self.before)


@contextmanager
def tenant_transaction(*, tenant_id: UUID, using: str = "default") -> Iterator[None]:
    """Open a transaction that sees and changes one tenant's rows, and nothing else.

    Inside of another transaction it is a savepoint, after which everything is as before.
    """
    with _scope(APP_ROLE, str(tenant_id), using):
        yield


@contextmanager
def operator_transaction(*, using: str = "default") -> Iterator[None]:
    """Open a transaction that sees every tenant. Nested like `tenant_transaction`."""
    with _scope(OPERATOR_ROLE, "", using):
        yield


async def begin_as_operator(connection: AsyncConnection[Any]) -> None:
    """The same for psycopg's connections in autocommit, in one round trip.

    The connection's own context, or the pool's, commits or rolls back.
    """
    await connection.execute(_BEGIN_AS_OPERATOR)


def enter_statement(*, tenant_id: UUID | None) -> sql.Composed:
    """What a transaction of ours runs first, for a connection that is not Django's.

    Its row ends with the role that was taken, `none` where there is none to take.
    """
    role, tenant = (OPERATOR_ROLE, "") if tenant_id is None else (APP_ROLE, str(tenant_id))
    return sql.SQL(_ENTER).format(tenant=sql.Literal(tenant), role=sql.Literal(role))


def narrow_to_tenant(tenant_id: UUID, *, using: str = "default") -> None:
    """Go on as one tenant until the end of the open transaction, which is one of ours."""
    _change(APP_ROLE, str(tenant_id), using)


def widen_to_operator(*, using: str = "default") -> None:
    """Go on across tenants until the end of the open transaction, which is one of ours."""
    _change(OPERATOR_ROLE, "", using)


@contextmanager
def transaction_left(*, using: str = "default") -> Iterator[None]:
    """Wait for the network inside without a transaction; afterwards go on in a new one.

    What was done so far is committed. The new transaction has the same role and tenant. Where
    somebody opened a transaction inside of ours, nothing changes: theirs cannot be left.
    """
    connection = connections[using]
    scope = next(iter(_scopes(connection)[-1:]), None)
    if scope is None or len(connection.savepoint_ids) != scope.depth:
        yield
        return
    scope.reset(connection)
    scope.block.__exit__(None, None, None)
    try:
        yield
    finally:
        scope.block.__enter__()
        scope.set(connection)


@contextmanager
def _scope(role: str, tenant: str, using: str) -> Iterator[None]:
    connection = connections[using]
    scope = _Scope(role, tenant, transaction.atomic(using=using), connection.in_atomic_block)
    with scope.block:
        scope.set(connection)
        _scopes(connection).append(scope)
        try:
            yield
        finally:
            _scopes(connection).pop()
        scope.reset(connection)


def _change(role: str, tenant: str, using: str) -> None:
    connection = connections[using]
    scopes = _scopes(connection)
    if not scopes:
        raise transaction.TransactionManagementError(
            "Open operator_transaction() first: a role lasts as long as its transaction."
        )
    _enter(connection, role, tenant)
    scopes[-1].role, scopes[-1].tenant = role, tenant


def _enter(connection: BaseDatabaseWrapper, role: str, tenant: str) -> tuple[str, str]:
    """Set both until the transaction's end; returns what they were."""
    with connection.cursor() as cursor:
        cursor.execute(_ENTER_DJANGO, [tenant, role])
        before_role, before_tenant, *_ = cursor.fetchone()
    return before_role, before_tenant


def _scopes(connection: BaseDatabaseWrapper) -> list[_Scope]:
    """Ours that are open on this connection, the innermost last."""
    scopes: list[_Scope] = connection.__dict__.setdefault("gateway_scopes", [])
    return scopes
