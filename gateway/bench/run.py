"""One run of the benchmark, from an empty scratch database to its figures."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psycopg

from gateway.bench import arms, fill, reads, traffic, writes
from gateway.bench.arms import ARMS, OPTIMISED, Build
from gateway.bench.fill import Sizes
from gateway.bench.queries import QUERIES, Query
from gateway.bench.reads import Finding
from gateway.bench.scratch import connect, scratch_database
from gateway.schema import schema_create

__all__ = ["Result", "Steps", "run_benchmark"]

Connection = psycopg.Connection[Any]
SETTINGS = (
    "server_version",
    "shared_buffers",
    "work_mem",
    "random_page_cost",
    "effective_cache_size",
    "max_parallel_workers_per_gather",
    "jit",
    "fsync",
    "synchronous_commit",
    "full_page_writes",
)


class Steps:
    """Hears what the run is doing; this one keeps it to itself."""

    def start(self, total: int) -> None: ...

    def step(self, text: str) -> None: ...


@dataclass(slots=True)
class Result:
    """Everything that was measured."""

    sizes: Sizes
    parameters: int
    started: datetime
    machine: dict[str, Any] = field(default_factory=dict)
    server: dict[str, str] = field(default_factory=dict)
    builds: dict[str, list[Build]] = field(default_factory=dict)
    table_sizes: dict[str, list[writes.Size]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    copied: dict[str, writes.Copied] = field(default_factory=dict)
    updated: dict[str, list[writes.Updated]] = field(default_factory=dict)
    traffic: list[traffic.During] = field(default_factory=list)

    @property
    def failures(self) -> list[str]:
        return [failure for finding in self.findings for failure in finding.failures]


def run_benchmark(
    *,
    sizes: Sizes,
    parameters: int,
    at: datetime,
    steps: Steps,
    chosen: Sequence[Query] = QUERIES,
) -> Result:
    """Make the database, fill it, measure, drop it. ScratchError when it cannot be had."""
    result = Result(sizes=sizes, parameters=parameters, started=at)
    steps.start(len(chosen) + len(fill.TABLES) + 10)
    steps.step("Making the scratch database and its schema")
    with scratch_database(bytes_needed=sizes.bytes_needed):
        schema_create(told=lambda _name: None)
        with connect() as connection:
            result.server = _server(connection)
            result.machine = _machine()
            _prepare(connection, result, at, steps)
            for query in chosen:
                steps.step(f"Asking: {query.title}")
                finding = reads.measure(connection, query, parameters=parameters, at=at)
                result.findings.append(finding)
            _write(connection, result, at, steps)
            steps.step("Traffic while the schema changes")
            result.traffic = traffic.run_traffic(connection, at=at)
            result.machine["load_after"] = _load()
    return result


def _prepare(connection: Connection, result: Result, at: datetime, steps: Steps) -> None:
    """Fill C, build its indexes, make A and B from it, let all three age alike."""
    fill.make_partitions(connection, at=at)
    definitions = arms.indexes_drop(connection)
    fill.fill(connection, sizes=result.sizes, at=at, told=steps.step)
    steps.step(f"Building the {len(definitions)} indexes of {OPTIMISED.letter}")
    result.builds[OPTIMISED.name] = list(arms.indexes_build(connection, definitions))
    result.builds |= arms.arms_make(connection, told=steps.step)
    for arm in ARMS:
        steps.step(f"Vacuuming and ageing {arm.letter}, {arm.title}")
        fill.age_rows(connection, arm.schema)
        fill.analyse(connection, arm.schema)
        result.table_sizes[arm.name] = writes.sizes_of(connection, arm)


def _write(connection: Connection, result: Result, at: datetime, steps: Steps) -> None:
    steps.step("Writing: COPY and updates")
    rows = max(1000, min(20_000, result.sizes.requests // 5))
    result.copied = writes.copy_rates(connection, rows=rows, at=at)
    result.updated = writes.update_costs(connection)


def _server(connection: Connection) -> dict[str, str]:
    return {
        name: str((connection.execute("SELECT current_setting(%s)", [name]).fetchone() or [""])[0])
        for name in SETTINGS
    }


def _machine() -> dict[str, Any]:
    return {
        "cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load_before": _load(),
    }


def _load() -> float:
    """Runnable processes over the last minute: above the number of CPUs, others were in the way."""
    return round(os.getloadavg()[0], 2)
