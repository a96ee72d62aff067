"""Reading: the same parameters in every arm, taken in turns.

Each parameter set is measured twice in a turn: as a client sees it, from sending to the last row,
and by the server itself, which tells execution and planning apart (EXPLAIN with ANALYZE, without
the clock's own cost at every node). Execution is what goals and savings are about: it does not
hold the round trip, which on a busy machine takes longer than a good plan.
"""

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
from gateway.bench.asking import Asker, Walls, asking
from gateway.bench.figures import Saving, difference, quantile, saving
from gateway.bench.queries import CLASSES, Parameters, Query, Statement, draw

__all__ = [
    "CLIENT",
    "EXECUTION",
    "MEASURES",
    "PLANNING",
    "ArmFigures",
    "Explained",
    "Finding",
    "Run",
    "explain",
    "measure",
]

Connection = psycopg.Connection[Any]
ORDER = (BARE, DJANGO, OPTIMISED, DJANGO, BARE, OPTIMISED)  # drift hits every arm alike
MEASURES = EXECUTION, CLIENT, PLANNING = "execution", "client", "planning"
PASS_SECONDS = 8.0  # of the slowest arm; larger tables are asked with fewer parameters
FEWEST = 4
OCCURRING = ("frequent", "rare")
# Quick queries take their turns several times: what counts is a parameter's best time, so that
# a pause that somebody else caused does not.
QUICK_SECONDS, MOST_TURNS = 2.0, 4
SLOW_SECONDS = 1.0  # who takes longer is timed at the client in the first half of the turns alone
TRIED, TRIED_SECONDS = 5, 4.0  # executions before the timing, which also warm the cache
WARM_SECONDS = 1.0  # a pass that takes longer is not repeated only to warm the cache
FEW_BUFFERS = 50  # who reads no more needs no index: a small table, or one small partition


@dataclass(frozen=True, slots=True)
class Run:
    """One execution as the server tells it; milliseconds, and pages of 8 kB hit or read."""

    execution: float
    planning: float
    buffers: int
    nodes: tuple[str, ...]  # from the top down
    indexes: frozenset[str]
    misestimate: float  # the worst factor between expected and actual rows of a scan


@dataclass(frozen=True, slots=True)
class Explained:
    """What EXPLAIN said over all parameter sets; the median is of those that occur."""

    buffers_median: int
    buffers_max: int
    nodes: tuple[str, ...]
    indexes: tuple[str, ...]
    misestimate: float


@dataclass(frozen=True, slots=True)
class ArmFigures:
    """Milliseconds by measure, pass and parameter; a parameter's time is its best one."""

    passes: dict[str, list[list[float]]] = field(repr=False)
    kinds: list[str] = field(repr=False)
    explained: Explained

    def times(self, kind: str | None = None, *, measure: str = EXECUTION) -> list[float]:
        """Of a class; without one of all that occur, as often as they occur."""
        return self._best(self.passes[measure], OCCURRING if kind is None else (kind,))

    def median(self, measure: str) -> float:
        return quantile(self.times(measure=measure), 0.5)

    def noise(self, measure: str = EXECUTION) -> float | None:
        """The A/A pair: by how much the two halves of the passes differ. None: there was one."""
        passes = self.passes[measure]
        half = len(passes) // 2
        if not half:
            return None
        return difference(
            self._best(passes[:half], OCCURRING), self._best(passes[half:], OCCURRING)
        )

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
    role: str  # whose transaction it was in arm C
    unequal: int  # parameter sets that gave other rows in another arm
    scanned: dict[str, int]  # C's indexes that served it, with their scans in the timed passes

    def against(self, arm: Arm) -> Saving:
        """What C saves in execution time."""
        base, better = self.arms[arm.name], self.arms[OPTIMISED.name]
        noise = max(base.noise() or 0.0, better.noise() or 0.0)
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
            (f"{least:.0%} less execution time than {arm.title}", self.against(arm).low >= least)
            for arm, least in ((BARE, goal.against_bare), (DJANGO, goal.against_django))
            if least is not None
        ]
        if goal.buffers is not None:
            found.append((f"at most {goal.buffers} buffers", figures.buffers_max <= goal.buffers))
        found += [(f"no {node}", node not in figures.nodes) for node in goal.without]
        return found


def measure(
    connection: Connection, query: Query, *, parameters: int, at: datetime, walls: Walls
) -> Finding:
    """Run one query in all arms: `parameters` that occur and a quarter more that do not."""
    drawn = draw(connection, query, count=parameters, absent=max(1, parameters // 4))
    occurs = next(place for place, one in enumerate(drawn) if one.kind in OCCURRING)
    drawn.insert(0, drawn.pop(occurs))  # one that occurs is among them, however few are kept
    asked = _Asked(connection, query, drawn, at, walls)
    kept, turns, is_slow = _affordable(asked)
    drawn = drawn[:kept]
    before = _scans(connection)
    passes: dict[str, dict[str, list[list[float]]]] = {
        arm.name: {measure: [] for measure in MEASURES} for arm in ARMS
    }
    prints: dict[str, list[bytes]] = {}
    runs: dict[str, list[Run]] = {}
    for place, arm in enumerate(ORDER * turns):
        taken = passes[arm.name]
        asked.warm(arm, kept)
        if not is_slow or place < len(ARMS):
            times, digests = asked.at_the_client(arm, kept)
            taken[CLIENT].append(times)
            prints.setdefault(arm.name, digests)
        runs[arm.name] = asked.at_the_server(arm, kept)
        taken[EXECUTION].append([run.execution for run in runs[arm.name]])
        taken[PLANNING].append([run.planning for run in runs[arm.name]])
    after = _scans(connection)
    kinds = [one.kind for one in drawn]
    names = _parents(connection)
    arms = {
        arm.name: ArmFigures(passes[arm.name], kinds, _explained(runs[arm.name], kinds, names))
        for arm in ARMS
    }
    return Finding(
        query=query,
        counts={kind: kinds.count(kind) for kind in CLASSES},
        arms=arms,
        role=walls.asker(OPTIMISED, query.tenant_of(drawn[0].values)).role,
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


class _Asked:
    """One query with its parameters, asked in any arm as the program asks it there."""

    def __init__(
        self,
        connection: Connection,
        query: Query,
        drawn: Sequence[Parameters],
        at: datetime,
        walls: Walls,
    ) -> None:
        self.connection, self.query, self.walls = connection, query, walls
        self.statements = [query.statement(one.values, at=at) for one in drawn]
        self.tenants = [query.tenant_of(one.values) for one in drawn]
        self.seconds = {arm.name: self._seconds(arm) for arm in ARMS}

    def warm(self, arm: Arm, kept: int) -> None:
        """Fetch what the last arm's reading drove out of the cache, if that does not take long.

        Else the client would be told times of a cold cache and the server of a warm one.
        """
        if self.seconds[arm.name] * kept < WARM_SECONDS:
            self.at_the_server(arm, kept)

    def at_the_client(self, arm: Arm, kept: int) -> tuple[list[float], list[bytes]]:
        """Milliseconds from sending to the last row, and a digest of the rows, for each."""
        by_driver, by_server = (
            psycopg.ClientCursor(self.connection),
            psycopg.Cursor(self.connection),
        )
        times, digests = [], []
        for asker, statement in self._askers(arm, kept):
            cursor = by_server if statement.is_bound_by_server else by_driver
            with asking(self.connection, asker):
                began = time.perf_counter_ns()
                cursor.execute(statement.sql, statement.parameters)
                rows = cursor.fetchall()
                times.append((time.perf_counter_ns() - began) / 1e6)
            names = [column.name for column in cursor.description or ()]
            digests.append(_digest(names, rows, self.query.compared))
        return times, digests

    def at_the_server(self, arm: Arm, kept: int) -> list[Run]:
        found = []
        for asker, statement in self._askers(arm, kept):
            with asking(self.connection, asker):
                found.append(explain(self.connection, statement.sql, statement.parameters))
        return found

    def _seconds(self, arm: Arm) -> float:
        """Of one execution; warms the arm up."""
        times: list[float] = []
        for place in range(min(TRIED, len(self.statements))):
            if sum(times) < TRIED_SECONDS:
                began = time.perf_counter()
                self._one(arm, place)
                times.append(time.perf_counter() - began)
        return quantile(times, 0.5)

    def _one(self, arm: Arm, place: int) -> None:
        enter(self.connection, arm)
        asker, statement = self._asker(arm, place), self.statements[place]
        with asking(self.connection, asker):
            explain(self.connection, statement.sql, statement.parameters)

    def _asker(self, arm: Arm, place: int) -> Asker:
        return self.walls.asker(arm, self.tenants[place])

    def _askers(self, arm: Arm, kept: int) -> Iterator[tuple[Asker, Statement]]:
        enter(self.connection, arm)
        for place, statement in enumerate(self.statements[:kept]):
            yield self._asker(arm, place), statement


def _affordable(asked: _Asked) -> tuple[int, int, bool]:
    """For how many parameter sets and turns there is time, and whether it is a slow one."""
    slowest = max(asked.seconds.values())
    kept = min(len(asked.statements), max(FEWEST, int(PASS_SECONDS / slowest)))
    turn = 2 * kept * sum(asked.seconds[arm.name] for arm in ORDER)
    turns = max(1, min(MOST_TURNS, int(QUICK_SECONDS / turn)))
    return kept, turns, slowest > SLOW_SECONDS


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
_EXPLAIN = "EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, SUMMARY, FORMAT JSON) "
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


def _explained(runs: Sequence[Run], kinds: Sequence[str], parents: dict[str, str]) -> Explained:
    occurring = [run.buffers for run, kind in zip(runs, kinds, strict=True) if kind in OCCURRING]
    used = {parents.get(index, index) for run in runs for index in run.indexes}
    return Explained(
        buffers_median=int(quantile(occurring, 0.5)),
        buffers_max=max(run.buffers for run in runs),
        nodes=tuple(sorted({node for run in runs for node in run.nodes})),
        indexes=tuple(sorted(used)),
        misestimate=max(run.misestimate for run in runs),
    )


def explain(connection: Connection, statement: str, parameters: Any) -> Run:
    """Run a statement and hear what it took."""
    cursor = psycopg.ClientCursor(connection)
    cursor.execute(_EXPLAIN + statement, parameters)
    found = (cursor.fetchone() or [""])[0]
    (document,) = json.loads(found) if isinstance(found, str) else found
    plan = document["Plan"]
    nodes = list(_nodes(plan))
    return Run(
        execution=document["Execution Time"],
        planning=document["Planning Time"],
        buffers=plan["Shared Hit Blocks"] + plan["Shared Read Blocks"],
        nodes=tuple(node["Node Type"] for node in nodes),
        indexes=frozenset(node["Index Name"] for node in nodes if "Index Name" in node),
        misestimate=max((_misestimate(node) for node in nodes), default=1.0),
    )


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
