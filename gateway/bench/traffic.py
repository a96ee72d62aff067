"""Traffic while the schema changes: does anybody wait for `optimize_db` or a dropped partition?"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import cycle
from threading import Event, Thread
from typing import Any

import psycopg
from django.core.management import call_command
from psycopg import sql

from gateway.bench.arms import OPTIMISED, columns, enter, tables
from gateway.bench.figures import quantile
from gateway.bench.queries import QUERIES, Statement, draw
from gateway.bench.scratch import connect

__all__ = ["During", "TrafficError", "run_traffic"]

Connection = psycopg.Connection[Any]
ASKED = ("server_discovery", "audit_page", "request_page", "api_key_validation")
READERS, WRITERS = 2, 1
ROWS_A_WRITE = 50
QUIET_SECONDS = 3.0
PAUSE_SECONDS = 0.005  # between two statements of a session: a load, not a stress test
# The request log's dearest index, and none that the readers need: they shall wait for locks and
# for the disk, not for an index that is missing.
INDEX = "idx_request_routing_composite"
# A partition is dropped under the same wait as elsewhere: reads queue up behind the one who waits.
DETACH_LOCK_MS = 2_000


class TrafficError(Exception):
    """A session of the traffic failed; its figures would be too good to be true."""


@dataclass(slots=True)
class During:
    """Milliseconds of each statement while something went on."""

    what: str
    seconds: float = 0.0
    reads: list[float] = field(default_factory=list)
    writes: list[float] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "seconds": self.seconds,
            "reads": _summary(self.reads),
            "writes": _summary(self.writes),
        }


def _summary(times: Sequence[float]) -> dict[str, float] | None:
    if not times:
        return None
    return {
        "statements": len(times),
        "median_ms": quantile(times, 0.5),
        "p99_ms": quantile(times, 0.99),
        "max_ms": max(times),
    }


def run_traffic(connection: Connection, *, at: datetime) -> list[During]:
    """Read and write in arm C: in quiet, while `optimize_db` builds, while a partition goes."""
    enter(connection, OPTIMISED)
    statements = [
        query.statement(one.values, at=at)
        for query in QUERIES
        if query.name in ASKED
        for one in draw(connection, query, count=50, absent=5)
    ]
    with _load(statements) as load:
        found = [load.during("in quiet", lambda: time.sleep(QUIET_SECONDS))]
        connection.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(INDEX)))
        found.append(load.during(f"optimize_db builds {INDEX}", _optimize))
        if oldest := _oldest_partition(connection):
            found.append(load.during(f"{oldest} is dropped", lambda: _drop(connection, oldest)))
    return found


def _optimize() -> None:
    """The command itself, as an operator runs it; what it prints is not wanted here."""
    call_command("optimize_db", "--phase", "1", "--json", stdout=io.StringIO())


# --------------------------------------------------------------------------- a partition


def _oldest_partition(connection: Connection) -> str | None:
    """The request log's oldest partition that holds rows; None while it has no partitions."""
    found = connection.execute(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        " WHERE i.inhparent = to_regclass('request_logs') AND c.reltuples > 0"
        " ORDER BY (regexp_match(pg_get_expr(c.relpartbound, c.oid),"
        "           'FROM \\(''([^'']+)''\\)'))[1]::timestamptz LIMIT 1"
    ).fetchone()
    return str(found[0]) if found else None


def _drop(connection: Connection, partition: str) -> None:
    """As retention does it: detach beside the traffic, then drop what nobody sees any more."""
    name = sql.Identifier(partition)
    connection.execute(sql.SQL("SET lock_timeout = {}").format(DETACH_LOCK_MS))
    connection.execute(
        sql.SQL("ALTER TABLE request_logs DETACH PARTITION {} CONCURRENTLY").format(name)
    )
    connection.execute(sql.SQL("DROP TABLE {}").format(name))


# --------------------------------------------------------------------------- the load


class _Load:
    """Sessions in threads; what they measure goes to whatever is being done meanwhile."""

    def __init__(self) -> None:
        self.stop = Event()
        self.failed: list[BaseException] = []
        self._now = During("starting")

    def during(self, what: str, act: Callable[[], None]) -> During:
        self._now = During(what)
        began = time.perf_counter()
        act()
        ended, self._now = self._now, During("between")
        ended.seconds = time.perf_counter() - began
        if self.failed:
            raise TrafficError(f"A session failed while {what}: {self.failed[0]}")
        return ended

    def read(self, connection: Connection, statements: Sequence[Statement]) -> None:
        def one(connection: Connection, statement: Statement) -> None:
            cursor = psycopg.ClientCursor(connection)
            cursor.execute(statement.sql, statement.parameters)
            cursor.fetchall()

        self._repeat(connection, cycle(statements), one, lambda now: now.reads)

    def write(self, connection: Connection) -> None:
        self._repeat(connection, cycle([_write_statement()]), _write, lambda now: now.writes)

    def _repeat(
        self,
        connection: Connection,
        work: Iterator[Any],
        act: Callable[[Connection, Any], None],
        times: Callable[[During], list[float]],
    ) -> None:
        try:
            with connection:
                while not self.stop.wait(PAUSE_SECONDS):
                    now = self._now  # whatever goes on when the statement starts
                    began = time.perf_counter_ns()
                    act(connection, next(work))
                    times(now).append((time.perf_counter_ns() - began) / 1e6)
        except BaseException as error:  # noqa: BLE001  (raised again by whoever started the thread)
            self.failed.append(error)


@contextmanager
def _load(statements: Sequence[Statement]) -> Iterator[_Load]:
    load = _Load()
    # Connected here: in a thread, Django's default connection still means the usual database.
    sessions = [connect("mcp-gateway bench_db traffic") for _ in range(READERS + WRITERS)]
    threads = [
        *(
            Thread(target=load.read, args=(session, statements[i::READERS]))
            for i, session in enumerate(sessions[:READERS])
        ),
        *(Thread(target=load.write, args=(session,)) for session in sessions[READERS:]),
    ]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        load.stop.set()
        for thread in threads:
            thread.join()


def _write_statement() -> sql.Composed:
    """Rows that were staged for COPY, with ids of their own."""
    kept = [name for name in columns(tables()["request_logs"]) if name != "id"]
    return sql.SQL(
        "INSERT INTO request_logs (id, {names}) SELECT gen_random_uuid(), {names}"
        " FROM bench.staged LIMIT {rows}"
    ).format(names=sql.SQL(", ").join([sql.Identifier(name) for name in kept]), rows=ROWS_A_WRITE)


def _write(connection: Connection, statement: sql.Composed) -> None:
    with connection.transaction():
        connection.execute("SET LOCAL synchronous_commit = off")  # as the log writer has it
        connection.execute(statement)
