"""Does making and dropping partitions hold up traffic? `python -m monitoring.bench.partitions`.

In a scratch database beside the configured one, which it makes and drops: writers COPY batches
into `request_logs`, readers count the last seconds and a report reads for a second at a time,
while partitions are made and dropped over and over: not at all, as the gateway does it, and by
plain CREATE and DROP, which shows that the measurement can fail. It prints how long statements
took and how long the longest of them waited for a lock on a table, as pg_stat_activity tells it
every few milliseconds.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import django
import psycopg

LOCK_TIMEOUT_MS = 2_000
BATCH = 500
APPLICATION = "mcp-gateway benchmark traffic"


@dataclass(slots=True)
class Load:
    """What traffic saw: durations in milliseconds."""

    copies: list[float] = field(default_factory=list)
    reads: list[float] = field(default_factory=list)
    longest_lock_wait: float = 0.0
    errors: list[str] = field(default_factory=list)

    def line(self, name: str) -> str:
        return (
            f"{name:<24} {_summary('COPY', self.copies)}; {_summary('SELECT', self.reads)}; "
            f"longest lock wait {self.longest_lock_wait:.0f} ms; {len(self.errors)} error(s)"
        )


def _summary(name: str, taken: list[float]) -> str:
    ordered = sorted(taken)
    p99 = ordered[int(len(ordered) * 0.99)]
    return f"{len(ordered)} {name}: p99 {p99:.0f} ms, longest {ordered[-1]:.0f} ms"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="monitoring.bench.partitions")
    parser.add_argument("--seconds", type=float, default=15.0, help="Per arm. Default: 15.")
    parser.add_argument("--writers", type=int, default=2)
    parser.add_argument("--readers", type=int, default=2)
    chosen = parser.parse_args()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway.settings")
    django.setup()
    from registry.db.circumstances import one_line
    from registry.db.scratch import connect, migrated_database

    with migrated_database():
        with connect() as connection:
            _out(one_line(connection))
        _out(f"{chosen.writers} writers, {chosen.readers} readers")
        for name, work in ARMS.items():
            load, rounds = _run(chosen, work)
            _out(load.line(name) + (f"; {rounds} partitions made and dropped" if rounds else ""))
            if load.errors:
                _out(f"first error: {load.errors[0]}")
                return 1
    return 0


def _out(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _run(chosen: argparse.Namespace, work: Callable[[float], int]) -> tuple[Load, int]:
    from monitoring.bench.lockwait import watching
    from registry.db.scratch import connect

    load, over = Load(), threading.Event()
    jobs = [*[_write] * chosen.writers, *[_read] * chosen.readers, _report]
    threads = [threading.Thread(target=_guarded, args=(job, load, over)) for job in jobs]
    with watching(connect("mcp-gateway benchmark watch"), application=APPLICATION) as watch:
        for thread in threads:
            thread.start()
        try:
            rounds = work(chosen.seconds)
        finally:
            over.set()
            for thread in threads:
                thread.join()
        load.longest_lock_wait = watch.longest_ms
    return load, rounds


def _rest(seconds: float) -> int:
    time.sleep(seconds)
    return 0


def _partitions(seconds: float) -> int:
    """Move the window of what is kept into the future and back, again and again."""
    from django.utils.timezone import now

    from registry.db.partitions import partitions_drop, partitions_make

    until, table, made = time.monotonic() + seconds, "request_logs", 0
    while time.monotonic() < until:
        at = now()
        past = at - timedelta(days=10)
        made += partitions_make(at=at, tables=[table], back_to=past)
        partitions_drop(at=at, keep={table: timedelta(days=3)})
    return made


def _plainly(seconds: float) -> int:
    from django.db import Error, connection

    until, made = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        try:
            with connection.cursor() as cursor:
                cursor.execute("SET lock_timeout = '2s'")
                cursor.execute(
                    "CREATE TABLE request_logs_trial PARTITION OF request_logs"
                    " FOR VALUES FROM ('2000-01-01') TO ('2000-01-02')"
                )
                made += 1
                cursor.execute("DROP TABLE request_logs_trial")
        except Error:  # the lock was not to be had, or the table is still there
            with connection.cursor() as cursor:
                cursor.execute("DROP TABLE IF EXISTS request_logs_trial")
    return made


ARMS: dict[str, Callable[[float], int]] = {
    "traffic alone": _rest,
    "partitions at work": _partitions,
    "plain CREATE and DROP": _plainly,
}


def _guarded(job: Callable[..., None], load: Load, over: threading.Event) -> None:
    from registry.db.scratch import connect

    try:
        with connect(APPLICATION) as own, own.cursor() as cursor:
            cursor.execute("SELECT set_config('lock_timeout', %s, false)", [f"{LOCK_TIMEOUT_MS}ms"])
            job(cursor, load, over)
    except psycopg.Error as error:
        load.errors.append(str(error).strip())


def _write(cursor: Any, load: Load, over: threading.Event) -> None:
    from django.utils.timezone import now

    while not over.is_set():
        rows = [_row(now()) for _ in range(BATCH)]
        began = time.monotonic()
        with cursor.copy(
            "COPY request_logs (id, request_time, request_id, method, path, rpc_method, tool_name,"
            " status_code, duration_ms, request_size_bytes, response_size_bytes, error_type,"
            " error_message, protocol_version, request_metadata) FROM STDIN"
        ) as copy:
            for row in rows:
                copy.write_row(row)
        load.copies.append((time.monotonic() - began) * 1000)


def _row(at: datetime) -> tuple[Any, ...]:
    made = uuid4()
    texts = ("POST", "/mcp/bench", "tools/call", "echo")
    return (made, at, made, *texts, 200, 12.5, 300, 900, "", "", "2025-06-18", "{}")


def _read(cursor: Any, load: Load, over: threading.Event) -> None:
    while not over.is_set():
        began = time.monotonic()
        cursor.execute(
            "SELECT count(*), avg(duration_ms) FROM request_logs"
            " WHERE request_time >= now() - interval '2 seconds' AND request_time < now()"
        )
        cursor.fetchone()
        load.reads.append((time.monotonic() - began) * 1000)


def _report(cursor: Any, _load: Load, over: threading.Event) -> None:
    """A transaction that has read the log and takes its time."""
    while not over.is_set():
        cursor.execute("BEGIN")
        cursor.execute("SELECT count(*) FROM request_logs WHERE request_time < now()")
        over.wait(1.0)
        cursor.execute("COMMIT")


if __name__ == "__main__":
    sys.exit(main())
