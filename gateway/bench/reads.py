"""Reading: the same parameters in every arm, taken in turns, with plans and buffers beside."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psycopg

from gateway.bench.arms import ARMS, BARE, DJANGO, OPTIMISED, Arm, enter
from gateway.bench.figures import Saving, difference, quantile, saving
from gateway.bench.queries import CLASSES, Parameters, Query, Statement, draw

__all__ = ["ArmFigures", "Explained", "Finding", "measure"]

Connection = psycopg.Connection[Any]
ORDER = (BARE, DJANGO, OPTIMISED, DJANGO, BARE, OPTIMISED)  # drift hits every arm alike
PASS_SECONDS = 20.0  # of the slowest arm; larger tables are asked with fewer parameters
FEWEST = 15
OCCURRING = ("frequent", "rare")
# Quick queries take their turns several times: what counts is a parameter's best time, so that
# a pause that somebody else caused does not.
QUICK_SECONDS, MOST_TURNS = 2.0, 4
TRIED = 5  # executions before the timing, which also warm the cache
EXPLAINED = 8  # of each class
FEW_BUFFERS = 50  # who reads no more needs no index: a small table, or one small partition


@dataclass(frozen=True, slots=True)
class Explained:
    """What EXPLAIN (ANALYZE, BUFFERS) said over some executions."""

    buffers_median: int
    buffers_max: int
    nodes: tuple[str, ...]
    indexes: tuple[str, ...]
    misestimate: float  # the worst factor between expected and actual rows of a scan


@dataclass(frozen=True, slots=True)
class ArmFigures:
    """Milliseconds by pass and parameter; a parameter's time is its best one."""

    passes: list[list[float]] = field(repr=False)
    kinds: list[str] = field(repr=False)
    explained: Explained

    def times(self, kind: str | None = None) -> list[float]:
        """Of a class; without one of all that occur, as often as they occur."""
        return self._best(self.passes, OCCURRING if kind is None else (kind,))

    def halves(self) -> tuple[list[float], list[float]]:
        """The A/A pair: what occurs, timed in the first half of the passes and in the second."""
        half = len(self.passes) // 2
        return self._best(self.passes[:half], OCCURRING), self._best(self.passes[half:], OCCURRING)

    def _best(self, passes: list[list[float]], kinds: Sequence[str]) -> list[float]:
        best = [min(times) for times in zip(*passes, strict=True)]
        return [time for time, kind in zip(best, self.kinds, strict=True) if kind in kinds]

    def of_class(self, kind: str) -> dict[str, float] | None:
        times = self.times(kind)
        if not times:
            return None
        return {"median_ms": quantile(times, 0.5), "p95_ms": quantile(times, 0.95)}


@dataclass(frozen=True, slots=True)
class Finding:
    """One query in all arms."""

    query: Query
    counts: dict[str, int]
    arms: dict[str, ArmFigures]
    unequal: int  # parameter sets that gave other rows in another arm
    scanned: dict[str, int]  # C's indexes that served it, with their scans in the timed passes

    def against(self, arm: Arm) -> Saving:
        base, better = self.arms[arm.name], self.arms[OPTIMISED.name]
        noise = max(difference(*base.halves()), difference(*better.halves()))
        return saving(base.times(), better.times(), noise=noise)

    @property
    def failures(self) -> list[str]:
        """What makes the whole benchmark worthless, or an index a decoration."""
        found = []
        if self.unequal:
            found.append(
                f"{self.query.title}: {self.unequal} parameter set(s) gave other rows in one arm "
                "than in another, so the times compare different work."
            )
        optimised = self.arms[OPTIMISED.name].explained
        if self.query.headline and not self.scanned and optimised.buffers_max > FEW_BUFFERS:
            found.append(
                f"{self.query.title}: no index of arm C was scanned, and {optimised.buffers_max} "
                "buffers were read. The query and the declared indexes do not fit each other."
            )
        return found

    @property
    def goals(self) -> list[tuple[str, bool]]:
        """What was to be reached, in words, and whether it was."""
        goal, figures = self.query.goal, self.arms[OPTIMISED.name].explained
        found = [
            (f"{_percent(least)} less time than {arm.title}", self.against(arm).low >= least)
            for arm, least in ((BARE, goal.against_bare), (DJANGO, goal.against_django))
            if least is not None
        ]
        if goal.buffers is not None:
            found.append((f"at most {goal.buffers} buffers", figures.buffers_max <= goal.buffers))
        found += [(f"no {node}", node not in figures.nodes) for node in goal.without]
        return found


def _percent(share: float) -> str:
    return f"{share:.0%}"


def measure(connection: Connection, query: Query, *, parameters: int, at: datetime) -> Finding:
    """Run one query in all arms: `parameters` that occur and a quarter more that do not."""
    drawn = draw(connection, query, count=parameters, absent=max(1, parameters // 4))
    statements = [query.statement(one.values, at=at) for one in drawn]
    kept, turns = _affordable(connection, statements)
    drawn, statements = drawn[:kept], statements[:kept]
    before = _scans(connection)
    passes: dict[str, list[list[float]]] = {arm.name: [] for arm in ARMS}
    prints: dict[str, list[bytes]] = {}
    for arm in ORDER * turns:
        enter(connection, arm)
        times, digests = _pass(connection, statements, query.compared)
        passes[arm.name].append(times)
        prints.setdefault(arm.name, digests)
    after = _scans(connection)
    kinds = [one.kind for one in drawn]
    names = _parents(connection)
    arms = {
        arm.name: ArmFigures(
            passes=passes[arm.name],
            kinds=kinds,
            explained=_explain(connection, arm, drawn, statements, names),
        )
        for arm in ARMS
    }
    return Finding(
        query=query,
        counts={kind: kinds.count(kind) for kind in CLASSES},
        arms=arms,
        unequal=sum(len(set(digests)) > 1 for digests in zip(*prints.values(), strict=True)),
        scanned=_serving(before, after, arms[OPTIMISED.name].explained),
    )


def _serving(before: dict[str, int], after: dict[str, int], explained: Explained) -> dict[str, int]:
    """Indexes that were scanned more often than before, as the plans say that they should be.

    The counter alone would not do: the planner itself looks up the ends of indexes and counts as
    a scan. Plans alone neither: a node that never ran is in them too. What a function does is in
    no plan, so there the counter decides.
    """
    is_opaque = "Function Scan" in explained.nodes
    grown = {index: scans - before.get(index, 0) for index, scans in after.items()}
    return {
        index: scans
        for index, scans in grown.items()
        if scans > 0 and (is_opaque or index in explained.indexes)
    }


def _affordable(connection: Connection, statements: Sequence[Statement]) -> tuple[int, int]:
    """How many parameter sets and how many turns there is time for; warms all arms up."""
    seconds = {}
    for arm in ARMS:
        enter(connection, arm)
        times, _ = _pass(connection, statements[:TRIED], ())
        seconds[arm.name] = quantile(times, 0.5) / 1000
    affordable = int(PASS_SECONDS / max(seconds.values()))
    kept = min(len(statements), max(FEWEST, affordable))
    turn = sum(seconds[arm.name] for arm in ORDER) * kept
    return kept, max(1, min(MOST_TURNS, int(QUICK_SECONDS / turn)))


def _pass(
    connection: Connection, statements: Sequence[Statement], compared: Sequence[str]
) -> tuple[list[float], list[bytes]]:
    """Milliseconds from sending to the last row, and a digest of the rows, for each statement."""
    by_driver, by_server = psycopg.ClientCursor(connection), psycopg.Cursor(connection)
    times, digests = [], []
    for statement in statements:
        cursor = by_server if statement.is_bound_by_server else by_driver
        began = time.perf_counter_ns()
        cursor.execute(statement.sql, statement.parameters)
        rows = cursor.fetchall()
        times.append((time.perf_counter_ns() - began) / 1e6)
        names = [column.name for column in cursor.description or ()]
        digests.append(_digest(names, rows, compared))
    return times, digests


def _digest(names: Sequence[str], rows: Sequence[Any], compared: Sequence[str]) -> bytes:
    """The rows as a set: the same in any order, sums of floats but for their last digits."""
    places = [names.index(name) for name in compared] or list(range(len(names)))
    lines = sorted(repr([_rounded(row[place]) for place in places]) for row in rows)
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).digest()


def _rounded(value: Any) -> Any:
    return f"{value:.9g}" if isinstance(value, float) else value


# --------------------------------------------------------------------------- indexes and plans

_SCANS = """
    SELECT coalesce(p.relname, i.relname), sum(s.idx_scan)::bigint
      FROM pg_stat_user_indexes AS s
      JOIN pg_class AS i ON i.oid = s.indexrelid
      LEFT JOIN pg_inherits AS h ON h.inhrelid = i.oid
      LEFT JOIN pg_class AS p ON p.oid = h.inhparent
     WHERE s.schemaname = 'public'
     GROUP BY 1
"""
_EXPLAIN = "EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) "
_PARENTS = """
    SELECT i.relname, p.relname FROM pg_inherits AS h
      JOIN pg_class AS i ON i.oid = h.inhrelid AND i.relkind IN ('i', 'I')
      JOIN pg_class AS p ON p.oid = h.inhparent
"""


def _scans(connection: Connection) -> dict[str, int]:
    """Scans of C's indexes so far, a partition's counted as its parent's."""
    connection.execute("SELECT pg_stat_force_next_flush()")
    return {str(name): int(scans) for name, scans in connection.execute(_SCANS).fetchall()}


def _parents(connection: Connection) -> dict[str, str]:
    return {str(leaf): str(parent) for leaf, parent in connection.execute(_PARENTS).fetchall()}


def _explain(
    connection: Connection,
    arm: Arm,
    drawn: Sequence[Parameters],
    statements: Sequence[Statement],
    parents: dict[str, str],
) -> Explained:
    enter(connection, arm)
    plans = [_plan(connection, statement) for statement in _some(drawn, statements)]
    nodes = [node for plan in plans for node in _nodes(plan)]
    buffers = sorted(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] for plan in plans)
    indexes = {
        parents.get(node["Index Name"], node["Index Name"])
        for node in nodes
        if "Index Name" in node
    }
    return Explained(
        buffers_median=int(quantile(buffers, 0.5)),
        buffers_max=buffers[-1],
        nodes=tuple(sorted({node["Node Type"] for node in nodes})),
        indexes=tuple(sorted(indexes)),
        misestimate=max((_misestimate(node) for node in nodes), default=1.0),
    )


def _some(drawn: Sequence[Parameters], statements: Sequence[Statement]) -> Iterator[Statement]:
    for kind in CLASSES:
        of_kind = [s for one, s in zip(drawn, statements, strict=True) if one.kind == kind]
        yield from of_kind[:EXPLAINED]


def _plan(connection: Connection, statement: Statement) -> dict[str, Any]:
    """The plan as it ran, without the clock's own cost at every node."""
    cursor = psycopg.ClientCursor(connection)
    cursor.execute(_EXPLAIN + statement.sql, statement.parameters)
    found = (cursor.fetchone() or [""])[0]
    document = json.loads(found) if isinstance(found, str) else found
    return dict(document[0]["Plan"])


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


def _misestimate(node: dict[str, Any]) -> float:
    """The factor between expected and actual rows; 1 where nothing was scanned."""
    if "Scan" not in node["Node Type"] or not node["Actual Loops"]:
        return 1.0
    expected, actual = max(1.0, node["Plan Rows"]), max(1.0, node["Actual Rows"])
    return float(max(expected / actual, actual / expected))
