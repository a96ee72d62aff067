"""Would extended statistics pay? `python -m gateway.bench.estimates`.

In a scratch database with the benchmark's rows: for columns whose values go together, each kind
of CREATE STATISTICS by itself (together they can be worse than none: a list of common values that
lacks a combination goes before its dependencies), on a table, or on a partitioned one's parent
and on each of its partitions. Of each query that asks for such columns it prints how far a scan's
expected rows were off at worst, how many plans changed, and what executions took.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, LiteralString

import django
import psycopg
from psycopg import sql

from registry.db.storage import Statistics, create_statistics

if TYPE_CHECKING:
    from gateway.bench.asking import Walls
    from gateway.bench.reads import Run

__all__ = ["CANDIDATES", "Candidate", "Trial", "main", "trials"]

Connection = psycopg.Connection[Any]
KINDS: tuple[LiteralString, ...] = ("dependencies", "mcv", "ndistinct")
REPEATS = 3  # the best counts
SLOW_MS = 2_000  # what takes longer is not repeated


@dataclass(frozen=True, slots=True)
class Candidate:
    """Columns that go together, and the queries that ask for them."""

    table: str
    columns: tuple[str, ...]
    queries: tuple[str, ...]


CANDIDATES = (
    Candidate("request_logs", ("tenant_id", "target_server_id"), ("requests_of_server",)),
    Candidate("request_logs", ("path", "target_server_id"), ("fastest_of_route",)),
    Candidate("request_logs", ("tenant_id", "status_code"), ("failed_requests",)),
    Candidate("audit_logs", ("resource_type", "resource_id"), ("audit_of_resource",)),
    Candidate("audit_logs", ("tenant_id", "user_id"), ("audit_of_user", "audit_page")),
    Candidate(
        "mcp_servers",
        ("tenant_id", "transport_type", "health_status"),
        ("server_discovery", "unhealthy_servers", "tenant_usage"),
    ),
    Candidate("server_tools", ("server_id", "name"), ("tool_discovery", "tools_of_server")),
    Candidate("sessions", ("user_id", "is_active"), ("sessions_of_user",)),
    Candidate("enhanced_api_keys", ("tenant_id", "user_id"), ("keys_of_tenant", "keys_of_user")),
    Candidate("request_usage", ("tenant_id", "bucket"), ("tenant_usage",)),
)


@dataclass(frozen=True, slots=True)
class Trial:
    """One query without and with the statistics; the same parameters in the same order."""

    candidate: Candidate
    place: str
    kind: str
    query: str
    before: Sequence[Run]
    after: Sequence[Run]
    analyze_ms: tuple[float, float]

    @property
    def changed(self) -> int:
        """Plans that are others than before."""
        return sum(
            (one.nodes, one.indexes) != (other.nodes, other.indexes)
            for one, other in zip(self.before, self.after, strict=True)
        )

    @property
    def line(self) -> str:
        def of(name: str, take: Any, digits: int) -> str:
            found = [take(getattr(run, name) for run in runs) for runs in (self.before, self.after)]
            return " -> ".join(f"{value:.{digits}f}" for value in found)

        def mean(values: Iterator[float]) -> float:
            return sum(values) / len(self.before)

        analyze = " -> ".join(f"{taken:.0f}" for taken in self.analyze_ms)
        return (
            f"{self.place:<10} {self.kind:<12} {self.query:<18} off by {of('misestimate', max, 0)};"
            f" {self.changed} of {len(self.before)} plans changed;"
            f" buffers {of('buffers', mean, 0)}; {of('execution', mean, 3)} ms;"
            f" ANALYZE {analyze} ms"
        )


def trials(
    connection: Connection, candidate: Candidate, *, at: datetime, walls: Walls, parameters: int
) -> Iterator[Trial]:
    """Each kind at each place; nothing is left behind."""
    leaves = _leaves(connection, candidate.table)
    places = {"parent": [candidate.table], "partitions": leaves} if leaves else {}
    analyzed = _analyze(connection, candidate.table)
    before = _asked(connection, candidate, at=at, walls=walls, parameters=parameters)
    for place, tables in (places or {"table": [candidate.table]}).items():
        for kind in KINDS:
            with _statistics(connection, kind, candidate.columns, tables):
                taken = _analyze(connection, candidate.table)
                after = _asked(connection, candidate, at=at, walls=walls, parameters=parameters)
            for query, runs in after.items():
                told = (candidate, place, kind, query, before[query], runs)
                yield Trial(*told, analyze_ms=(analyzed, taken))


def _leaves(connection: Connection, table: str) -> list[str]:
    rows = connection.execute(
        "SELECT c.relname FROM pg_partition_tree(%s::regclass) AS t JOIN pg_class AS c"
        " ON c.oid = t.relid WHERE t.isleaf AND t.level > 0",
        [table],
    ).fetchall()
    return [name for (name,) in rows]


@contextmanager
def _statistics(
    connection: Connection, kind: LiteralString, columns: Sequence[str], tables: Sequence[str]
) -> Iterator[None]:
    tried = [
        Statistics(
            name=f"bench_statistics_{place}",
            table=table,
            columns=tuple(columns),
            kind=kind,
            reason="tried",
        )
        for place, table in enumerate(tables)
    ]
    try:
        for one in tried:
            connection.execute(create_statistics(one))
        yield
    finally:
        for one in tried:
            name = sql.Identifier(one.name)
            connection.execute(sql.SQL("DROP STATISTICS IF EXISTS {}").format(name))


def _analyze(connection: Connection, table: str) -> float:
    """Milliseconds."""
    taken = list[float]()
    while len(taken) < REPEATS and sum(taken) < SLOW_MS:
        began = time.perf_counter()
        connection.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(table)))
        taken.append((time.perf_counter() - began) * 1000)
    return min(taken)


def _asked(
    connection: Connection, candidate: Candidate, *, at: datetime, walls: Walls, parameters: int
) -> dict[str, list[Run]]:
    from gateway.bench.arms import OPTIMISED
    from gateway.bench.asking import asking
    from gateway.bench.queries import QUERIES, draw
    from gateway.bench.reads import explain

    found: dict[str, list[Run]] = {}
    for query in QUERIES:
        if query.name not in candidate.queries:
            continue
        for drawn in draw(connection, query, count=parameters, absent=0):
            asked = query.statement(drawn.values, at=at)
            with asking(connection, walls.asker(OPTIMISED, query.tenant_of(drawn.values))):
                runs = [explain(connection, asked.sql, asked.parameters) for _ in range(REPEATS)]
            found.setdefault(query.name, []).append(min(runs, key=lambda run: run.execution))
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parameters", type=int, default=40, help="Of each query. Default: 40.")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--servers", type=int, default=10_000)
    tables = sorted({candidate.table for candidate in CANDIDATES})
    parser.add_argument("--table", action="append", choices=tables, help="Only this one.")
    options = parser.parse_args(arguments)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway.settings")
    django.setup()
    from django.utils.timezone import now

    from gateway.bench.asking import raise_walls, walls_of
    from gateway.bench.fill import Sizes
    from gateway.bench.run import Steps, filled
    from registry.db.circumstances import one_line
    from registry.db.scratch import connect, migrated_database

    at, sizes = now(), Sizes(options.requests, options.servers)
    with migrated_database(bytes_needed=sizes.bytes_needed):
        why_not = raise_walls()
        with connect() as connection:
            _say(f"{one_line(connection)}; {sizes.requests:,} requests, {sizes.servers:,} servers")
            filled(connection, sizes=sizes, at=at, steps=Steps())
            _drop_declared(connection)
            connection.execute("VACUUM (ANALYZE)")
            walls = walls_of(connection, why_not=why_not)
            for candidate in CANDIDATES:
                if options.table and candidate.table not in options.table:
                    continue
                _say(f"\n{candidate.table} ({', '.join(candidate.columns)})")
                for trial in trials(
                    connection, candidate, at=at, walls=walls, parameters=options.parameters
                ):
                    _say(trial.line)


def _drop_declared(connection: Connection) -> None:
    """What pays is there already, and would be compared with itself."""
    rows = connection.execute(
        "SELECT n.nspname, s.stxname FROM pg_statistic_ext AS s"
        " JOIN pg_namespace AS n ON n.oid = s.stxnamespace"
    ).fetchall()
    for name in rows:
        connection.execute(sql.SQL("DROP STATISTICS {}").format(sql.Identifier(*name)))


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
