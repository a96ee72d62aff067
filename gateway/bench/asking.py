"""As whom the program asks: a tenant's questions walled in, all others across tenants.

Only arm C has walls, so it alone pays for them: A and B are what others have. Role and tenant
belong to a transaction, as `registry.db.tenancy` sets them; its cost is one a request of the
program, not one a statement, so statements are timed inside of it and it is timed apart.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql

from gateway.bench.arms import OPTIMISED, Arm
from gateway.bench.figures import quantile
from registry.db.roles import walls_raise
from registry.db.tenancy import APP_ROLE, OPERATOR_ROLE, enter_statement

__all__ = ["OWNER", "Asker", "Walls", "asking", "raise_walls", "walls_of"]

Connection = psycopg.Connection[Any]
TIMED = 200  # transactions of each kind


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks: a tenant, the operator, or (without a statement to enter) the tables' owner."""

    role: str = "the owner"
    entering: sql.Composed | None = None

    @classmethod
    def of(cls, tenant_id: UUID | None) -> Asker:
        role = OPERATOR_ROLE if tenant_id is None else APP_ROLE
        return cls(role, enter_statement(tenant_id=tenant_id))


OWNER = Asker()


@dataclass(frozen=True, slots=True)
class Walls:
    """Whether arm C's walls stand, and what a transaction behind them costs, in microseconds.

    A transaction is BEGIN, role and tenant, COMMIT: three round trips without a question inside.
    """

    standing: bool
    why_not: str = ""
    tenant_us: float | None = None
    operator_us: float | None = None
    plain_us: float | None = None  # BEGIN and COMMIT alone

    def asker(self, arm: Arm, tenant_id: UUID | None) -> Asker:
        return Asker.of(tenant_id) if self.standing and arm is OPTIMISED else OWNER

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@contextmanager
def asking(connection: Connection, asker: Asker) -> Iterator[None]:
    """Ask as somebody, in a transaction of theirs."""
    if asker.entering is None:
        yield
        return
    with connection.transaction():
        connection.execute(asker.entering)
        yield


def raise_walls() -> str:
    """Raise the walls of the default database; why they could not be raised, if so."""
    raised = walls_raise()
    if raised.walled:
        return ""
    needed = "; ".join(step.text() for step in raised.refused if not step.is_optional)
    return f"the benchmark's user may not make the roles that they need ({needed})"


def walls_of(connection: Connection, *, why_not: str) -> Walls:
    """Time the transactions; where the walls do not stand there are none."""
    if why_not:
        return Walls(standing=False, why_not=why_not)
    tenant = connection.execute("SELECT id FROM tenants ORDER BY id LIMIT 1").fetchone()
    askers = (Asker.of(tenant[0] if tenant else UUID(int=0)), Asker.of(None), OWNER)
    for asker in askers[:2]:
        _insist(connection, asker)
    rounds = [[_microseconds(connection, asker) for asker in askers] for _ in range(TIMED)]
    return Walls(True, "", *(quantile(taken, 0.5) for taken in zip(*rounds, strict=True)))


def _insist(connection: Connection, asker: Asker) -> None:
    """A role that was not taken would measure the wrong plans."""
    with asking(connection, asker):
        found = connection.execute(
            "SELECT current_user, row_security_active('request_logs')"
        ).fetchone()
    if found is None or found[0] != asker.role or (asker.role == APP_ROLE and not found[1]):
        raise LookupError(f"The walls do not hold for {asker.role}: {found}.")


def _microseconds(connection: Connection, asker: Asker) -> float:
    began = time.perf_counter_ns()
    with connection.transaction():
        if asker.entering is not None:
            connection.execute(asker.entering)
    return (time.perf_counter_ns() - began) / 1000
