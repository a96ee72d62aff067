"""What operators' pages and `/metrics` cost beside a large log.

    python -m gateway.bench.pages --rows 10000000

Makes a scratch database on DATABASE_URL's server (a role that may CREATE DATABASE), fills a month
of calls and audit entries with their rollups, servers, tools, breakers and pools, and drops it at
the end. Then every page is asked in this process as the roles that the gateway takes: the time from
request to answer (median and longest), this process's own CPU time in it, how many SQL statements
it took, and the slowest of them. Goals: 300 ms and 20 statements a page, 20 ms for /metrics, no
stretch of a log read without an index but for searches, no row of it counted. What misses a goal is
marked with !.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import django

if TYPE_CHECKING:
    from gateway.bench.looking import Figures

__all__ = ["document", "lines", "main"]

WEEK = 8  # days of rollups that the overview's last week reads, the begun one too
TROUBLED = """
UPDATE performance_alerts SET is_active = true, is_triggered = id IN (
    SELECT id FROM performance_alerts ORDER BY id LIMIT 20);
UPDATE connection_pools SET active_connections = 1 WHERE hashtext(id::text) % 10 = 0;
UPDATE request_queues SET current_size = 1 WHERE hashtext(id::text) % 10 = 0;
"""


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway.settings")
    django.setup()
    from registry.db.scratch import ScratchError

    try:
        found = _run(options)
    except ScratchError as error:
        sys.exit(f"Error: {error}")
    if options.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="Of the request log.")
    parser.add_argument("--servers", type=int, default=1_000)
    parser.add_argument("--times", type=int, default=11, help="Each page is asked; default 11.")
    parser.add_argument("--json", action="store_true", help="Print one JSON document.")
    options = parser.parse_args(arguments)
    for flag, least, most in (("rows", 1_000, 100_000_000), ("servers", 100, 1_000_000)):
        if not least <= getattr(options, flag) <= most:
            parser.error(f"--{flag} takes {least:,} to {most:,}.")
    if options.times < 1:
        parser.error("--times takes 1 and more.")
    return options


def _run(options: argparse.Namespace) -> dict[str, Any]:
    from gateway.bench.asking import raise_walls
    from gateway.bench.fill import Sizes
    from registry.db.circumstances import machine_facts, one_line, server_facts
    from registry.db.scratch import connect, migrated_database

    say = _saying(quiet=options.json)
    sizes = Sizes(requests=options.rows, servers=options.servers)
    with migrated_database(bytes_needed=sizes.bytes_needed):
        if why_not := raise_walls():
            sys.stderr.write(f"The walls do not stand: {why_not}.\n")
        with connect() as connection:
            say(f"{one_line(connection)}; {options.rows:,} calls, {options.servers:,} servers")
            _fill(connection, sizes, say)
            facts = {"server": server_facts(connection), "machine": machine_facts()}
        say(lines()[0])
        found = []
        for figures in _measured(options.times):
            found.append(figures)
            say(lines([figures])[1])
    return document(found, rows=options.rows, servers=options.servers, facts=facts)


def _saying(*, quiet: bool) -> Any:
    def say(text: str) -> None:
        stream = sys.stderr if quiet else sys.stdout
        stream.write(f"{text}\n")
        stream.flush()

    return say


def _fill(connection: Any, sizes: Any, say: Any) -> None:
    from django.utils.timezone import now

    from gateway.bench import fill
    from gateway.bench.arms import OPTIMISED
    from gateway.bench.run import Steps, filled
    from gateway.jobs import PERIODIC
    from monitoring.schedule import tasks_sync

    class Told(Steps):
        def step(self, text: str) -> None:
            say(f"{text} …")

    at = now()
    filled(connection, sizes=sizes, at=at, steps=Told(), rollup_days=WEEK)
    connection.execute(TROUBLED)
    tasks_sync(PERIODIC.values(), at=at)
    say("Vacuuming and ageing …")
    fill.age_rows(connection, OPTIMISED.schema)
    fill.analyse(connection, OPTIMISED.schema)
    connection.execute("CHECKPOINT")


def _measured(times: int) -> Iterator[Figures]:
    from django.db import connection

    from gateway.bench.looking import following, measure, measure_metrics, pages
    from security.models import Role, User

    with connection.cursor() as cursor:  # as in the gateway; the filling had hours
        cursor.execute("SET statement_timeout = '30s'")
    user = User.objects.create_superuser("bench-operator", password=None, role=Role.ADMIN)
    for page in pages():
        yield measure(page, user=user, times=times)
        leads_on = page.name.startswith("API") and not page.searches
        if leads_on and (after := following(page, user=user)):
            yield measure(after, user=user, times=times)
    connection.close()
    yield measure_metrics(times=times)


# --------------------------------------------------------------------------- how it is told


def document(
    found: Sequence[Figures], *, rows: int, servers: int, facts: dict[str, Any]
) -> dict[str, Any]:
    """Times in milliseconds."""
    from registry.db.circumstances import load_average

    return {
        "rows": rows,
        "servers": servers,
        **facts,
        "load_after": load_average(),
        "pages": [figures.as_dict() for figures in found],
        "missed": [figures.page.name for figures in found if figures.missed],
    }


def lines(found: Sequence[Figures] = ()) -> list[str]:
    """A table, its head first."""
    times = f"{'median':>8} {'longest':>8} {'CPU':>7}"
    heads = f"{'':2}{'page':42} {times} {'SQL':>4} {'goal':>12}  slowest"
    return [heads, *map(_line, found)]


def _line(one: Figures) -> str:
    asked = "" if one.statements is None else str(one.statements)
    goal = f"{one.goal_ms:g} ms" + (f", {one.goal_statements}" if one.goal_statements else "")
    words = " ".join(one.slowest.split())
    slowest = f"{one.slowest_ms:.1f} ms {words[:60]}" if words else ""
    missed = f"  misses: {', '.join(one.missed)}" if one.missed else ""
    if one.scanned:
        missed += f" ({one.scanned:,} rows)"
    mark = "! " if one.missed else "  "
    return (
        f"{mark}{one.page.name:42} {one.median:8.1f} {max(one.times):8.1f} {one.cpu_ms:7.1f}"
        f" {asked:>4} {goal:>12}  {slowest}{missed}"
    )


if __name__ == "__main__":
    main()
