"""Traffic while the schema changes: does anybody wait for `optimize_db` or a dropped partition?"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import cycle
from threading import Event, Thread
from typing import Any

import psycopg
from django.conf import settings
from django.db import connection as django_connection
from psycopg import sql

from gateway.bench.arms import OPTIMISED, columns, enter, tables
from gateway.bench.asking import Asker, Walls, asking
from gateway.bench.figures import quantile
from gateway.bench.queries import QUERIES, Statement, draw
from monitoring.bench.lockwait import LockWatch, watching
from registry.db.direct import BRIEF_LOCK_MS
from registry.db.partitions import Partition, Place, partitions_drop, read_partitions
from registry.db.scratch import connect, environment
from registry.db.tenancy import OPERATOR_ROLE

__all__ = ["During", "Traffic", "TrafficError", "run_traffic"]

Connection = psycopg.Connection[Any]
Question = tuple[Asker, Statement]
ASKED = ("server_discovery", "audit_page", "request_page", "api_key_validation")
READERS, WRITERS = 2, 1
ROWS_A_WRITE = 50
PAUSE_SECONDS = 0.005  # between two statements of a session: a load, not a stress test
DROP_PAUSE_SECONDS = 0.2  # between two partitions
LOG = "request_logs"
# The request log's dearest index, and none that the readers need: they shall wait for locks and
# for the disk, not for an index that is missing.
INDEX = "idx_request_routing_composite"
APPLICATION = "mcp-gateway bench_db traffic"


class TrafficError(Exception):
    """A session of the traffic failed; its figures would be too good to be true."""


@dataclass(slots=True)
class During:
    """Milliseconds of each statement while something went on."""

    what: str
    seconds: float = 0.0
    reads: list[float] = field(default_factory=list)
    writes: list[float] = field(default_factory=list)
    longest_lock_wait_ms: float = 0.0

    def add(self, other: During) -> None:
        self.seconds += other.seconds
        self.reads += other.reads
        self.writes += other.writes
        self.longest_lock_wait_ms = max(self.longest_lock_wait_ms, other.longest_lock_wait_ms)

    def as_dict(self, quiet: During) -> dict[str, Any]:
        return {
            "what": self.what,
            "seconds": self.seconds,
            "reads": _summary(self.reads, quiet.reads),
            "writes": _summary(self.writes, quiet.writes),
            "longest_lock_wait_ms": self.longest_lock_wait_ms,
        }


@dataclass(frozen=True, slots=True)
class Traffic:
    """In quiet for as long as the build took, half of it before and half after, and meanwhile."""

    quiet: During
    busy: list[During]
    lock_timeout_ms: int = BRIEF_LOCK_MS

    def as_dicts(self) -> list[dict[str, Any]]:
        return [during.as_dict(self.quiet) for during in (self.quiet, *self.busy)]


def _summary(times: Sequence[float], quiet: Sequence[float]) -> dict[str, float] | None:
    if not times or not quiet:
        return None
    p99 = quantile(times, 0.99)
    return {
        "statements": len(times),
        "median_ms": quantile(times, 0.5),
        "p99_ms": p99,
        "max_ms": max(times),
        "p99_to_quiet": p99 / quantile(quiet, 0.99),
    }


def run_traffic(connection: Connection, *, at: datetime, walls: Walls, seconds: float) -> Traffic:
    """Read and write in arm C: in quiet, while `optimize_db` builds, while partitions go.

    Each takes that many seconds at least: the index is built again until it does, and gets as much
    quiet, half of it before.
    """
    enter(connection, OPTIMISED)
    if walls.standing:
        _let_operator_write(connection)
    questions = [
        (walls.asker(OPTIMISED, query.tenant_of(one.values)), query.statement(one.values, at=at))
        for query in QUERIES
        if query.name in ASKED
        for one in draw(connection, query, count=50, absent=5)
    ]
    writer = walls.asker(OPTIMISED, None)
    with (
        watching(connect("mcp-gateway bench_db watch"), application=APPLICATION) as watch,
        _load(questions, writer, watch) as load,
    ):
        quiet = load.during("in quiet", lambda: time.sleep(seconds / 2))
        built = During(f"optimize_db builds {INDEX}")
        while built.seconds < seconds:
            connection.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(INDEX)))
            built.add(load.during(built.what, _optimize))
        rest = built.seconds - quiet.seconds
        quiet.add(load.during("in quiet", lambda: time.sleep(rest)))
        found = [built, load.during("partitions are dropped", lambda: _drop(at, seconds))]
    return Traffic(quiet, found)


def _let_operator_write(connection: Connection) -> None:
    """The staged rows are the benchmark's own table; the log's writer is the operator."""
    role = sql.Identifier(OPERATOR_ROLE)
    connection.execute(sql.SQL("GRANT USAGE ON SCHEMA bench TO {}").format(role))
    connection.execute(sql.SQL("GRANT SELECT ON bench.staged TO {}").format(role))


def _optimize() -> None:
    """The command itself, in a process of its own, as an operator runs it.

    In this one it would take the interpreter from the sessions whose time is measured.
    """
    command = [sys.executable, "manage.py", "optimize_db", "--phase", "1", "--json"]
    done = subprocess.run(
        command,
        env=environment(),
        cwd=settings.BASE_DIR,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise TrafficError(f"optimize_db failed: {done.stderr.strip()[-1000:]}")


# --------------------------------------------------------------------------- partitions


def _drop(at: datetime, seconds: float) -> None:
    """The oldest one after another, as retention does it, as long as there is time."""
    until = time.monotonic() + seconds
    for partition in _older(at):
        if time.monotonic() > until:
            return
        partitions_drop(at=at, keep={LOG: at - partition.span.until})
        time.sleep(DROP_PAUSE_SECONDS)
    time.sleep(max(0.0, until - time.monotonic()))


def _older(at: datetime) -> list[Partition]:
    """The log's partitions that end before the days into which the readers look."""
    return [
        partition
        for partition in read_partitions(django_connection, LOG)
        if partition.place is Place.ATTACHED and partition.span.until < at - timedelta(days=2)
    ]


# --------------------------------------------------------------------------- the load


class _Load:
    """Sessions in threads; what they measure goes to whatever is being done meanwhile."""

    def __init__(self, watch: LockWatch) -> None:
        self.stop = Event()
        self.failed: list[BaseException] = []
        self._watch = watch
        self._now = During("starting")

    def during(self, what: str, act: Callable[[], None]) -> During:
        self._watch.reset()
        self._now = During(what)
        began = time.perf_counter()
        act()
        ended, self._now = self._now, During("between")
        ended.seconds = time.perf_counter() - began
        ended.longest_lock_wait_ms = self._watch.longest_ms
        if self.failed:
            raise TrafficError(f"A session failed while {what}: {self.failed[0]}")
        return ended

    def read(self, connection: Connection, questions: Sequence[Question]) -> None:
        def one(connection: Connection, question: Question) -> None:
            asker, statement = question
            with asking(connection, asker):
                cursor = psycopg.ClientCursor(connection)
                cursor.execute(statement.sql, statement.parameters)
                cursor.fetchall()

        self._repeat(connection, cycle(questions), one, lambda now: now.reads)

    def write(self, connection: Connection, writer: Asker) -> None:
        def one(connection: Connection, statement: sql.Composed) -> None:
            with asking(connection, writer), connection.transaction():
                connection.execute("SET LOCAL synchronous_commit = off")  # as the log writer has it
                connection.execute(statement)

        self._repeat(connection, cycle([_write_statement()]), one, lambda now: now.writes)

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
def _load(questions: Sequence[Question], writer: Asker, watch: LockWatch) -> Iterator[_Load]:
    load = _Load(watch)
    sessions = [connect(APPLICATION) for _ in range(READERS + WRITERS)]
    threads = [
        *(
            Thread(target=load.read, args=(session, questions[i::READERS]))
            for i, session in enumerate(sessions[:READERS])
        ),
        *(Thread(target=load.write, args=(session, writer)) for session in sessions[READERS:]),
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
    """Rows that were staged for COPY, as calls of this moment: of the time of others the readers'
    pages would sort more and more."""
    made = {
        "id": "bench.uuid7((extract(epoch FROM clock_timestamp()) * 1000)::bigint, random()::text)",
        "request_time": "clock_timestamp()",
    }
    kept = [name for name in columns(tables()[LOG]) if name not in made]
    return sql.SQL("INSERT INTO {} ({}) SELECT {} FROM bench.staged LIMIT {}").format(
        sql.Identifier(LOG),
        sql.SQL(", ").join([sql.Identifier(name) for name in (*made, *kept)]),
        sql.SQL(", ").join([*map(sql.SQL, made.values()), *map(sql.Identifier, kept)]),
        ROWS_A_WRITE,
    )
