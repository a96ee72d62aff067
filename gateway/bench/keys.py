"""What validating a key costs in CPU: the gateway's own share, and the server's.

The gateway's is from the statement's row to the verdict: hash, comparison, state and rules, by the
functions that the data plane calls. The server's is the look-up's execution, and beside it all
that the backend spends on one, parsing and planning included. Neither holds the time in between.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import class_row
from psycopg.types.json import JsonbLoader

from gateway.bench.arms import OPTIMISED, enter
from gateway.bench.asking import Walls, asking
from gateway.bench.figures import quantile
from gateway.bench.queries import QUERIES, draw
from gateway.bench.reads import explain
from registry.db.circumstances import backend_cpu_seconds
from security.access import Call, decide
from security.authentication import check_key
from security.keys import hash_secret
from security.lookup import FoundKey
from security.refusals import Refusal

__all__ = ["Validation", "validate"]

Connection = psycopg.Connection[Any]
QUERY = "api_key_validation"
KEYS = 50
GOAL_US = 100.0
VALIDATIONS, ROUNDS = 2_000, 5
EXECUTIONS = 4  # of each key; the best one counts
LOOKUPS = 1_000  # the backend's CPU is told in steps of 10 ms


@dataclass(frozen=True, slots=True)
class Validation:
    """Microseconds of CPU a validation; the backend's is None where it is not on this machine."""

    goal_us: float
    hashing_us: float
    deciding_us: float  # hashing included
    execution_us: float  # the server's, as EXPLAIN tells it
    backend_us: float | None  # all that the backend spends
    refused: int  # of the keys that were tried, each with its right secret

    @property
    def total_us(self) -> float:
        return self.deciding_us + self.execution_us

    @property
    def met(self) -> bool:
        return self.total_us <= self.goal_us

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "total_us": self.total_us, "met": self.met}


def validate(connection: Connection, *, at: datetime, walls: Walls) -> Validation:
    """Look keys up in arm C as the data plane does, then decide on what was found."""
    enter(connection, OPTIMISED)
    query = next(query for query in QUERIES if query.name == QUERY)
    drawn = draw(connection, query, count=KEYS, absent=0)
    statements = [query.statement(one.values, at=at) for one in drawn]
    secret = secrets.token_hex(32)
    found: list[FoundKey] = []
    with asking(connection, walls.asker(OPTIMISED, None)):
        cursor = connection.cursor(row_factory=class_row(FoundKey))
        cursor.adapters.register_loader("jsonb", JsonbLoader)  # as the data plane's connections
        for statement in statements:
            cursor.execute(statement.sql, statement.parameters)
            found += [_proved(key, secret) for key in cursor.fetchall()]
        execution = [
            min(explain(connection, each.sql, each.parameters).execution for _ in range(EXECUTIONS))
            for each in statements
        ]
        backend = _backend_us(connection, [(each.sql, each.parameters) for each in statements])
    return Validation(
        goal_us=GOAL_US,
        hashing_us=_cpu_us(lambda key: hash_secret(salt=key.salt, secret=secret), found),
        deciding_us=_cpu_us(lambda key: _verdict(key, secret, at), found),
        execution_us=quantile(execution, 0.5) * 1000,
        backend_us=backend,
        refused=sum(_verdict(key, secret, at) is not None for key in found),
    )


def _proved(key: FoundKey, secret: str) -> FoundKey:
    """The rows' own secrets are nobody's: give the key one that is known."""
    salt = secrets.token_bytes(32)
    return replace(key, salt=salt, key_hash=hash_secret(salt=salt, secret=secret))


def _verdict(key: FoundKey, secret: str, at: datetime) -> Refusal | None:
    refused = check_key(key, secret=secret, ip="203.0.113.9", at=at)
    if refused is not None:
        return refused
    call = Call("tools/call", "tool_1_1")
    return decide(key.caller, key.target, call, slug=key.server_slug or "", at=at)


def _cpu_us(work: Any, keys: Sequence[FoundKey]) -> float:
    """CPU of this thread for one of many; the median of some rounds."""
    rounds = []
    for _ in range(ROUNDS):
        began = time.thread_time_ns()
        for number in range(VALIDATIONS):
            work(keys[number % len(keys)])
        rounds.append((time.thread_time_ns() - began) / 1000 / VALIDATIONS)
    return quantile(rounds, 0.5)


def _backend_us(connection: Connection, statements: Sequence[tuple[str, Any]]) -> float | None:
    backend = connection.info.backend_pid
    before = backend_cpu_seconds(backend)
    for number in range(LOOKUPS):
        connection.execute(*statements[number % len(statements)]).fetchall()
    after = backend_cpu_seconds(backend)
    if before is None or after is None:
        return None
    return (after - before) / LOOKUPS * 1e6
