"""How many request rows a second get into PostgreSQL, beside a bare table in the same run.

    python -m monitoring.bench.ingest [--rows N] [--writers 1,8] [--batch 20000,500]

Makes a scratch database on the server of DATABASE_URL, migrates it, and drops it at the end. Each
writer is a process that makes lines of rows and writes them through `Store`, as a gateway does,
in turn to a table without indexes (`bare`) and to `request_logs` with all its indexes and
triggers (`real`). The turns of all writers begin together. Rows a core: rows by seconds of CPU
that writer and backend used together; the rate by the cores where the backend is elsewhere.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import queue
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.synchronize import Barrier
from typing import Any

import django

ROUNDS = 5
ARMS = ("bare", "real")


@dataclass(frozen=True)
class Turn:
    """What one writer did in one turn of one arm; seconds."""

    arm: str
    rows: int
    began: float
    ended: float
    cpu: float | None

    @property
    def seconds(self) -> float:
        return self.ended - self.began


def main() -> None:
    options = _options()
    _setup()
    say = sys.stdout.write
    say(f"put(): {_put_microseconds():.2f} us a row; with the row's making {_made():.2f} us\n")
    say(f"line(): {_line_microseconds():.2f} us a row\n")
    from registry.db.scratch import migrated_database

    with migrated_database() as name:
        say(f"{_make_bare()}\n")
        for batch in options.batch:
            for writers in options.writers:
                turns = _run(name, rows=options.rows, writers=writers, batch=batch)
                say(_told(turns, writers=writers, batch=batch))


def _options() -> argparse.Namespace:
    def numbers(raw: str) -> list[int]:
        return [int(word) for word in raw.split(",")]

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=100_000, help="A turn, all writers together.")
    parser.add_argument("--writers", type=numbers, default=[1, 8])
    parser.add_argument("--batch", type=numbers, default=[20_000, 500])
    return parser.parse_args()


def _setup() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway.settings")
    django.setup()


# ---------------------------------------------------------------- the call's own cost


def _best(work: Any, *, times: int) -> float:
    """Microseconds for one of `times`, the best of five runs."""
    runs = []
    for _ in range(5):
        began = time.perf_counter()
        work(times)
        runs.append((time.perf_counter() - began) / times * 1e6)
    return min(runs)


def _put_microseconds() -> float:
    from monitoring.logwriter import writer

    async def measure() -> float:
        (row,) = _rows(1)

        def put(times: int) -> None:
            log = writer.LogWriter(None)  # type: ignore[arg-type]  # nothing is written
            for _ in range(times):
                log.put(row)

        return _best(put, times=50_000)

    return asyncio.run(measure())


def _made() -> float:
    from monitoring.logwriter import writer

    async def measure() -> float:
        def put(times: int) -> None:
            log = writer.LogWriter(None)  # type: ignore[arg-type]  # nothing is written
            for row in _rows(times):
                log.put(row)

        return _best(put, times=50_000)

    return asyncio.run(measure())


def _line_microseconds() -> float:
    (row,) = _rows(1)

    def lines(times: int) -> None:
        for _ in range(times):
            row.line()

    return _best(lines, times=50_000)


def _rows(count: int) -> Iterator[Any]:
    """Rows as calls leave them: some tenants, keys, servers and tools, one in twenty failed."""
    from django.utils.timezone import now

    from monitoring.logwriter import RequestRow
    from registry.db.ids import uuid7

    tenants, keys, servers = ([uuid7() for _ in range(size)] for size in (20, 200, 50))
    for number in range(count):
        failed = number % 20 == 0
        yield RequestRow(
            request_time=now(),
            request_id=uuid7(),
            tenant_id=tenants[number % 20],
            api_key_id=keys[number % 200],
            ip_address="203.0.113.9",
            method="POST",
            path=f"/mcp/server-{number % 50}",
            rpc_method="tools/call",
            tool_name=f"tool_{number % 300}",
            target_server_id=servers[number % 50],
            status_code=502 if failed else 200,
            duration_ms=5 + number % 977 / 10,
            upstream_ms=4 + number % 977 / 10,
            queue_ms=0.0,
            request_size_bytes=200 + number % 100,
            response_size_bytes=1000 + number % 5000,
            error_type="upstream_error" if failed else "",
            error_message="HTTP 502" if failed else "",
            protocol_version="2025-06-18",
        )


# ---------------------------------------------------------------- the database


def _make_bare() -> str:
    """A table like the log's without its indexes and triggers; server, machine and load."""
    from psycopg import sql

    from registry.db.circumstances import one_line
    from registry.db.scratch import connect
    from registry.db.tenancy import OPERATOR_ROLE

    with connect() as connection:
        connection.execute("CREATE TABLE request_logs_bare (LIKE request_logs INCLUDING DEFAULTS)")
        # The writers work as the operator's role, as in the gateway.
        grant = sql.SQL("GRANT INSERT ON request_logs_bare TO {}")
        connection.execute(grant.format(sql.Identifier(OPERATOR_ROLE)))
        return one_line(connection)


# ---------------------------------------------------------------- the writers


def _run(name: str, *, rows: int, writers: int, batch: int) -> list[Turn]:
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(writers), context.Queue()
    arguments = (name, rows // writers, batch, start, results)
    processes = [
        context.Process(target=_writer, args=arguments, daemon=True) for _ in range(writers)
    ]
    for process in processes:
        process.start()
    turns: list[Turn] = []
    while len(turns) < writers * ROUNDS * len(ARMS):
        try:
            turns.append(results.get(timeout=1))
        except queue.Empty:
            if any(process.exitcode for process in processes):
                sys.exit("A writer failed; its reason is above.")
    for process in processes:
        process.join()
    return turns


def _writer(name: str, rows: int, batch: int, start: Barrier, results: Any) -> None:
    _setup()
    from django.db import connection

    connection.settings_dict["NAME"] = name
    asyncio.run(_write(rows, batch, start, results))


async def _write(rows: int, batch: int, start: Barrier, results: Any) -> None:
    from monitoring.logwriter.rows import REQUEST_LOGS, Batch
    from monitoring.logwriter.store import Store
    from registry.db.pool import async_pool

    tables = {"bare": replace(REQUEST_LOGS, name="request_logs_bare"), "real": REQUEST_LOGS}
    pool = async_pool(max_size=1, timeout=30)
    async with pool:
        store = Store(pool)
        async with pool.connection() as connection:
            backend = connection.info.backend_pid
        for number in range(ROUNDS):
            for arm in ARMS if number % 2 else reversed(ARMS):
                waiting = list(_rows(rows))
                await asyncio.to_thread(start.wait, 300)
                began, cpu = time.monotonic(), _cpu_seconds(backend)
                for at in range(0, rows, batch):
                    lines = [row.line() for row in waiting[at : at + batch]]
                    await store.write(Batch.of(tables[arm], lines), seconds=300)
                used = _cpu_seconds(backend)
                spent = None if cpu is None or used is None else used - cpu
                results.put(Turn(arm, rows, began, time.monotonic(), spent))


def _cpu_seconds(backend: int) -> float | None:
    """CPU of this process and of its backend; None where the backend is not on this machine."""
    from registry.db.circumstances import backend_cpu_seconds

    server = backend_cpu_seconds(backend)
    return None if server is None else time.process_time() + server


# ---------------------------------------------------------------- the figures


def _told(turns: list[Turn], *, writers: int, batch: int) -> str:
    lines = []
    rates = {}
    for arm in ARMS:
        mine = sorted((turn for turn in turns if turn.arm == arm), key=lambda turn: turn.began)
        rounds = [mine[at : at + writers] for at in range(0, len(mine), writers)]
        rates[arm] = statistics.median(map(_rate, rounds))
        a_core = statistics.median(map(_rate_a_core, rounds))
        lines.append(
            f"{writers} writer(s), batches of {batch}, {arm}: {rates[arm]:,.0f} rows/s, "
            f"{a_core:,.0f} rows/s a core\n"
        )
    lines.append(f"    real / bare: {rates['real'] / rates['bare']:.2f}\n")
    return "".join(lines)


def _rate(turns: list[Turn]) -> float:
    """Rows a second from the first writer's start to the last one's end."""
    took = max(turn.ended for turn in turns) - min(turn.began for turn in turns)
    return sum(turn.rows for turn in turns) / took


def _rate_a_core(turns: list[Turn]) -> float:
    spent = [turn.cpu for turn in turns if turn.cpu is not None]
    if len(spent) < len(turns):
        return _rate(turns) / (os.cpu_count() or 1)
    return sum(turn.rows for turn in turns) / sum(spent)


if __name__ == "__main__":
    main()
