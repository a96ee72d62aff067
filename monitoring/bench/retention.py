"""What retention costs those who write the same table meanwhile.

    python -m monitoring.bench.retention --rows 1000000 --seconds 20

Makes a scratch database on DATABASE_URL's server (a role that may CREATE DATABASE), fills
`sessions` with old rows, lets writers prolong and add logins with and without a policy at work,
in turns, prints their latency, and drops the database. Retention runs in a process of its own, as
in a worker: in the writers' it would take the interpreter from them.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from threading import Event
from uuid import uuid4

import django

__all__ = ["main"]

WRITERS = 4
TURNS = 3  # without and with retention, one after the other, so that drift falls on both
LIVE = 20_000  # logins that go on

_FILL = """
INSERT INTO sessions (id, session_token, expires_at, session_data, is_active, last_activity,
                      user_agent)
SELECT gen_random_uuid(), md5(i::text) || md5((-i)::text), now() + i * %(apart)s::interval,
       repeat('x', 200), i > 0, now(), repeat('agent ', 10)
FROM generate_series(%(first)s::int, %(last)s::int) AS i
"""
_PROLONG = """
UPDATE sessions SET last_activity = now(), expires_at = now() + interval '14 days' WHERE id = %s
"""
_ADD = """
INSERT INTO sessions (id, session_token, expires_at, session_data, is_active, last_activity,
                      user_agent)
VALUES (%s, %s, now() + interval '14 days', '', true, now(), '')
"""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=500_000, help="old rows to delete")
    parser.add_argument("--seconds", type=float, default=15.0, help="length of each turn")
    parser.add_argument("--batch-size", type=int, default=1000, help="of the policy, at most")
    parser.add_argument(
        "--retain", action="store_true", help=argparse.SUPPRESS
    )  # the other process
    options = parser.parse_args(arguments)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway.settings")
    django.setup()
    from registry.db.scratch import migrated_database

    if options.retain:
        _retain()
        return
    with migrated_database():
        _measure(options.rows, options.seconds, options.batch_size)


def _measure(rows: int, seconds: float, batch_size: int) -> None:
    from django.db import connection

    from monitoring.models import DataRetentionPolicy
    from registry.db.circumstances import one_line
    from registry.db.scratch import connect

    with connection.cursor() as cursor:
        cursor.execute("SET statement_timeout = 0")
        for first, last, apart in ((-rows, -1, "1 s"), (1, LIVE, "1 min")):
            cursor.execute(_FILL, {"first": first, "last": last, "apart": apart})
        cursor.execute("VACUUM ANALYZE sessions")
        cursor.execute("SELECT id FROM sessions WHERE is_active")
        live = [row[0] for row in cursor.fetchall()]
    policy = DataRetentionPolicy.objects.create(
        name="bench",
        table_name="sessions",
        date_column="expires_at",
        retention_days=1,
        batch_size=batch_size,
    )
    print_line = sys.stdout.write
    with connect() as own:
        print_line(f"{one_line(own)}\n{rows:,} old rows, batches of {batch_size:,},")
    print_line(f" {WRITERS} writers, {TURNS} turns of {seconds:g} s each way\n")
    without: list[float] = []
    with_it: list[float] = []
    worked = 0.0
    for _ in range(TURNS):
        without += _turn(live, seconds)
        with _retaining():
            began = time.monotonic()
            with_it += _turn(live, seconds)
            worked += time.monotonic() - began
    policy.refresh_from_db()
    for name, taken in (("without", without), ("with retention", with_it)):
        p50, p99 = _percentile(taken, 50), _percentile(taken, 99)
        print_line(f"{name:15} {len(taken):>9,} writes  p50 {p50:7.2f} ms  p99 {p99:7.2f} ms\n")
    ratio = _percentile(with_it, 99) / _percentile(without, 99)
    print_line(f"p99 with / without: {ratio:.2f}; {policy.total_deleted:,} rows deleted,")
    print_line(f" {policy.total_deleted / worked:,.0f} a second\n")
    if policy.total_deleted >= rows - 86_400:  # the last day's are kept
        print_line("All old rows were gone before the end: take more --rows.\n")


@contextmanager
def _retaining() -> Iterator[None]:
    """Retention runs over and over in another process, from the first batch to the end."""
    from registry.db.scratch import environment

    command = [sys.executable, "-m", "monitoring.bench.retention", "--retain"]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE) as other:
        try:
            next(iter(other.stdout or ()), None)  # it is about to begin
            yield
        finally:
            other.terminate()


def _retain() -> None:
    from monitoring.models import DataRetentionPolicy
    from monitoring.retention.run import policies_run

    over = Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while not over.is_set():
        DataRetentionPolicy.objects.update(next_run=None)
        policies_run(at=datetime.now(UTC), stop=over.is_set)


def _turn(live: list[object], seconds: float) -> list[float]:
    """The milliseconds of every write."""
    over = Event()
    with ThreadPoolExecutor(WRITERS) as pool:
        writers = [pool.submit(_write, live, over, number) for number in range(WRITERS)]
        time.sleep(seconds)
        over.set()
        return [taken for writer in writers for taken in writer.result()]


def _write(live: list[object], over: Event, seed: int) -> list[float]:
    from registry.db.scratch import connect

    dice, taken = random.Random(seed), []  # noqa: S311  (which rows, not secrets)
    with connect() as own:
        while not over.is_set():
            began = time.perf_counter()
            if dice.random() < 0.8:
                own.execute(_PROLONG, [dice.choice(live)])
            else:
                own.execute(_ADD, [uuid4(), uuid4().hex])
            taken.append((time.perf_counter() - began) * 1000)
            time.sleep(0.002)  # a steady load, not a contest for two cores
    return taken


def _percentile(taken: list[float], percent: int) -> float:
    return statistics.quantiles(taken, n=100)[percent - 1]


if __name__ == "__main__":
    main()
