"""One run of the benchmark, from an empty scratch database to its figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psycopg

from gateway.bench import arms, fill, keys, reads, traffic, writes
from gateway.bench.arms import ARMS, OPTIMISED, Build
from gateway.bench.asking import Walls, raise_walls, walls_of
from gateway.bench.fill import Sizes
from gateway.bench.queries import QUERIES, Query
from gateway.bench.reads import Finding
from registry.db.circumstances import load_average, machine_facts, server_facts
from registry.db.scratch import connect, migrated_database

__all__ = ["Result", "Steps", "filled", "run_benchmark"]

Connection = psycopg.Connection[Any]


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
    walls: Walls = field(default_factory=lambda: Walls(standing=False))
    database_bytes: int = 0
    builds: dict[str, list[Build]] = field(default_factory=dict)
    table_sizes: dict[str, list[writes.Size]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    copied: dict[str, writes.Copied] = field(default_factory=dict)
    updated: dict[str, list[writes.Updated]] = field(default_factory=dict)
    traffic: traffic.Traffic | None = None
    keys: keys.Validation | None = None

    @property
    def failures(self) -> list[str]:
        return [failure for finding in self.findings for failure in finding.failures]


def run_benchmark(
    *,
    sizes: Sizes,
    parameters: int,
    at: datetime,
    steps: Steps,
    traffic_seconds: float,
    chosen: Sequence[Query] = QUERIES,
) -> Result:
    """Make the database, fill it, measure, drop it. ScratchError when it cannot be had."""
    result = Result(sizes=sizes, parameters=parameters, started=at)
    steps.start(len(chosen) + len(fill.TABLES) + 14)
    steps.step("Making the scratch database and its schema")
    with migrated_database(bytes_needed=sizes.bytes_needed):
        why_not = raise_walls()
        with connect() as connection:
            result.server = server_facts(connection)
            result.machine = machine_facts()
            _prepare(connection, result, at, steps)
            result.walls = walls_of(connection, why_not=why_not)
            for query in chosen:
                steps.step(f"Asking: {query.title}")
                finding = reads.measure(
                    connection, query, parameters=parameters, at=at, walls=result.walls
                )
                result.findings.append(finding)
            steps.step("Validating keys")
            result.keys = keys.validate(connection, at=at, walls=result.walls)
            _write(connection, result, at, steps)
            steps.step("Traffic while the schema changes")
            result.traffic = traffic.run_traffic(
                connection, at=at, walls=result.walls, seconds=traffic_seconds
            )
            result.machine["load_after"] = load_average()
    return result


def filled(
    connection: Connection,
    *,
    sizes: Sizes,
    at: datetime,
    steps: Steps,
    rollup_days: int = fill.ROLLUP_DAYS,
) -> list[Build]:
    """Fill what the migrations made, then build its indexes; the builds."""
    fill.make_partitions(at=at)
    definitions = arms.indexes_drop(connection)
    fill.fill(connection, sizes=sizes, at=at, told=steps.step, rollup_days=rollup_days)
    steps.step(f"Building the {len(definitions)} indexes of {OPTIMISED.letter}")
    connection.execute("SET maintenance_work_mem = '512MB'")
    return list(arms.indexes_build(connection, definitions))


def _prepare(connection: Connection, result: Result, at: datetime, steps: Steps) -> None:
    """Fill C, make A and B from it, let all three age alike."""
    result.builds[OPTIMISED.name] = filled(connection, sizes=result.sizes, at=at, steps=steps)
    result.builds |= arms.arms_make(connection, told=steps.step)
    connection.execute("RESET maintenance_work_mem")
    for arm in ARMS:
        steps.step(f"Vacuuming and ageing {arm.letter}, {arm.title}")
        fill.age_rows(connection, arm.schema)
        fill.analyse(connection, arm.schema)
        result.table_sizes[arm.name] = writes.sizes_of(connection, arm)
    found = connection.execute("SELECT pg_database_size(current_database())").fetchone()
    result.database_bytes = int(found[0]) if found else 0


def _write(connection: Connection, result: Result, at: datetime, steps: Steps) -> None:
    steps.step("Writing: COPY and updates")
    rows = max(1000, min(20_000, result.sizes.requests // 5))
    result.copied = writes.copy_rates(connection, rows=rows, at=at)
    result.updated = writes.update_costs(connection)
