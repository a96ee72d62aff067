"""What a running gateway holds at one moment: memory, files, connections, rows.

Memory and files are read from /proc (proc(5)), so the processes, and PostgreSQL's for their
memory, are on this machine; what is elsewhere is left out. Of a backend the anonymous memory
counts, for its resident one holds the buffers that all of them share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from gateway.bench.figures import Slope, sens_slope

__all__ = ["BACKENDS", "Growth", "Memory", "Sample", "Table", "growths", "memories", "sample_take"]

PROC = Path("/proc")
BACKENDS = "PostgreSQL"
KB = 1024
# What does not double within a month is flat: processes are started anew more often than that, by
# releases and by updates of the system, and machines have room for twice of what they need.
DAYS_TO_DOUBLE = 30
FEWEST_SAMPLES = 10  # of the second half; a slope of fewer is chance
BLOAT_BYTES = 2**20  # more without more rows
# What is written for each call or each stretch of time, and trimmed by retention.
LOGS = (
    "audit_logs",
    "request_logs",
    "server_metrics",
    "request_rollup",
    "request_usage",
    "request_user",
    "request_tool_days",
    "metric_snapshots",
)


@dataclass(frozen=True, slots=True)
class Process:
    """Of one process: resident and anonymous memory in bytes, open files (None: not ours)."""

    resident: int
    anonymous: int
    files: int | None
    threads: int


@dataclass(frozen=True, slots=True)
class Table:
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Sample:
    """At so many seconds since the beginning. Backends and connections by application."""

    seconds: float
    processes: dict[str, Process]
    backends: dict[str, int] = field(default_factory=dict)  # anonymous memory in bytes
    connections: dict[str, int] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)

    def memory(self) -> dict[str, int]:
        """Bytes by process; PostgreSQL's backends are one."""
        own = {name: process.resident for name, process in self.processes.items()}
        return own | ({BACKENDS: sum(self.backends.values())} if self.backends else {})

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


# --------------------------------------------------------------------------- taking one


def sample_take(
    connection: psycopg.Connection[Any], *, seconds: float, roots: Mapping[str, int]
) -> Sample:
    """`roots` are process ids by name; their descendants are sampled with them."""
    backends, connections = _backends(connection)
    return Sample(
        seconds=seconds,
        processes=_processes(roots),
        backends=backends,
        connections=connections,
        tables=_tables(connection),
    )


def _processes(roots: Mapping[str, int]) -> dict[str, Process]:
    """By name and place in the family: `serve`, `serve 1`, …; who ended meanwhile is left out."""
    children = _children()
    found: dict[str, Process] = {}
    for name, root in roots.items():
        for place, pid in enumerate(_family(root, children)):
            if process := _process(pid):
                found[f"{name} {place}" if place else name] = process
    return found


def _children() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for folder in PROC.glob("[0-9]*"):
        try:
            text = (folder / "stat").read_text()
        except OSError:
            continue
        parent = int(text.rpartition(")")[2].split()[1])
        found.setdefault(parent, []).append(int(folder.name))
    return found


def _family(root: int, children: Mapping[int, list[int]]) -> Iterable[int]:
    yield root
    for child in sorted(children.get(root, ())):
        yield from _family(child, children)


def _process(pid: int) -> Process | None:
    folder = PROC / str(pid)
    try:
        status = dict(
            line.split(":", 1) for line in (folder / "status").read_text().splitlines() if line
        )
        anonymous = int(status["RssAnon"].split()[0]) * KB
        resident = int(status["VmRSS"].split()[0]) * KB
    except (OSError, KeyError):  # it ended just now
        return None
    try:
        files: int | None = len(list((folder / "fd").iterdir()))
    except OSError:
        files = None
    return Process(resident, anonymous, files, threads=int(status["Threads"]))


_BACKENDS = """
SELECT pid, coalesce(nullif(application_name, ''), backend_type, 'other'), datname IS NOT NULL
  FROM pg_stat_activity
 WHERE pid <> pg_backend_pid() AND (datname = current_database() OR datname IS NULL)
"""


def _backends(connection: psycopg.Connection[Any]) -> tuple[dict[str, int], dict[str, int]]:
    memory: Counter[str] = Counter()
    connections: Counter[str] = Counter()
    for pid, kind, is_connection in connection.execute(_BACKENDS).fetchall():
        connections[kind] += is_connection
        if (process := _process(pid)) is not None and _is_postgres(pid):
            memory[kind] += process.anonymous
    return dict(memory), {kind: number for kind, number in connections.items() if number}


def _is_postgres(pid: int) -> bool:
    """Where the server is another machine, its numbers are those of other processes here."""
    try:
        return "postgres" in (PROC / str(pid) / "comm").read_text()
    except OSError:
        return False


_SIZES = """
SELECT class.relname, coalesce(
           (SELECT sum(pg_total_relation_size(tree.relid))
              FROM pg_partition_tree(class.oid) AS tree WHERE tree.isleaf),
           pg_total_relation_size(class.oid))::bigint
  FROM pg_class AS class
 WHERE class.relnamespace = 'public'::regnamespace AND class.relkind IN ('r', 'p', 'm')
   AND NOT class.relispartition AND class.relispopulated
 ORDER BY class.relname
"""


def _tables(connection: psycopg.Connection[Any]) -> dict[str, Table]:
    sizes = connection.execute(_SIZES).fetchall()
    return {name: Table(_rows(connection, name), size) for name, size in sizes}


def _rows(connection: psycopg.Connection[Any], table: str) -> int:
    counted = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier("public", table))
    row = connection.execute(counted).fetchone()
    return int(row[0]) if row else 0


# --------------------------------------------------------------------------- what they say


@dataclass(frozen=True, slots=True)
class Memory:
    """How one process's memory goes over the second half; `days` is the time it stands for.

    `slope` is in bytes a day. It grows where all of the slope's interval says that it doubles
    within a month; it is flat where none of it says so.
    """

    name: str
    first: int
    last: int
    slope: Slope | None

    @property
    def limit(self) -> float:
        return self.last / DAYS_TO_DOUBLE

    @property
    def verdict(self) -> str:
        if self.slope is None:
            return "too few samples"
        if self.slope.low > self.limit:
            return "grows"
        return "flat" if self.slope.high <= self.limit else "run longer to tell"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"limit": self.limit, "verdict": self.verdict}


def memories(samples: Sequence[Sample], *, speed: float) -> list[Memory]:
    """Of the processes that were there through the second half; a day is 24 h by `speed`."""
    half = _second_half(samples)
    names = [name for name in half[0].memory() if all(name in one.memory() for one in half)]
    return [_memory(name, half, 86_400 / speed) for name in names]


def _memory(name: str, half: Sequence[Sample], day: float) -> Memory:
    points = [(one.seconds / day, float(one.memory()[name])) for one in half]
    slope = sens_slope(points) if len(points) >= FEWEST_SAMPLES else None
    return Memory(name, int(points[0][1]), int(points[-1][1]), slope)


@dataclass(frozen=True, slots=True)
class Growth:
    """What a table got in the second half."""

    table: str
    rows: int
    bytes: int
    is_log: bool

    @property
    def is_bloat(self) -> bool:
        return self.rows <= 0 and self.bytes > BLOAT_BYTES


def growths(samples: Sequence[Sample]) -> list[Growth]:
    """Tables with more rows at the end, or more than a megabyte more without; logs come last."""
    half = _second_half(samples)
    before, after = half[0].tables, half[-1].tables
    found = [
        Growth(
            table=name,
            rows=now.rows - before[name].rows,
            bytes=now.bytes - before[name].bytes,
            is_log=name.startswith(LOGS),
        )
        for name, now in after.items()
        if name in before
    ]
    grown = [one for one in found if one.rows > 0 or one.is_bloat]
    return sorted(grown, key=lambda one: (one.is_log, -one.bytes))


def _second_half(samples: Sequence[Sample]) -> Sequence[Sample]:
    """From the middle in time on: by then pools, caches and memories are warm."""
    middle = (samples[0].seconds + samples[-1].seconds) / 2
    return [one for one in samples if one.seconds >= middle]
