"""Parse, call, print: the work is done in gateway.bench."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import current_thread, main_thread
from typing import IO, Any, cast

import psycopg
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.timezone import now
from psycopg import errors
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gateway.bench.charts import write_charts
from gateway.bench.fill import Sizes
from gateway.bench.queries import QUERIES, Query
from gateway.bench.report import as_document, show
from gateway.bench.run import Steps, run_benchmark
from gateway.bench.scratch import ScratchError
from gateway.bench.traffic import TrafficError
from registry.db.direct import PoolerError

SMALL, MEDIUM, LARGE = (100_000, 10_000), (1_000_000, 100_000), (10_000_000, 1_000_000)
FILE_WIDTH = 130  # columns of tables that no terminal bounds
LIMITS = {
    "--requests": (1_000, 100_000_000),
    "--servers": (100, 10_000_000),
    "--parameters": (10, 10_000),
}


class Command(BaseCommand):
    help = (
        "Measure what the indexes gain and cost: the same rows with primary keys alone, with "
        "Django's default indexes, and as migrated, in a scratch database that is made on "
        "DATABASE_URL's server and dropped afterwards. "
        f"Sizes: {SMALL[0]:,} requests and {SMALL[1]:,} servers are small (the default), "
        f"{MEDIUM[0]:,} and {MEDIUM[1]:,} medium, {LARGE[0]:,} and {LARGE[1]:,} large. "
        "Exit status: 0 done; 1 failed, other rows in one arm than in another, or a headline query "
        "found no index; 2 wrong usage."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--requests", type=int, default=SMALL[0], metavar="N", help="Request log rows."
        )
        parser.add_argument("--servers", type=int, default=SMALL[1], metavar="N", help="Servers.")
        parser.add_argument(
            "--parameters",
            type=int,
            default=200,
            metavar="N",
            help="Random parameters of each query; default 200, fewer where one pass would take "
            "too long, and a quarter more that match nothing.",
        )
        parser.add_argument(
            "--query", action="append", metavar="NAME", help="Only this query; may be repeated."
        )
        parser.add_argument("--svg", metavar="FOLDER", help="Write charts for the docs there.")
        parser.add_argument("--json", action="store_true", help="Print one JSON document.")

    def handle(
        self,
        *,
        requests: int,
        servers: int,
        parameters: int,
        query: list[str] | None,
        svg: str | None,
        json: bool,
        **options: Any,
    ) -> None:
        given = {"--requests": requests, "--servers": servers, "--parameters": parameters}
        for flag, value in given.items():
            _in_range(flag, value)
        chosen = _chosen(query)
        talk = self._console(self.stderr if json else self.stdout, options)
        with _progress(talk) as steps, _in_words(), _stoppable():
            result = run_benchmark(
                sizes=Sizes(requests, servers),
                parameters=parameters,
                at=now(),
                steps=steps,
                chosen=chosen,
            )
        if svg:
            for path in write_charts(result, Path(svg)):
                talk.print(f"Wrote {path}", highlight=False, markup=False)
        if json:
            self._print_document(as_document(result))
        else:
            show(talk, result)
        if result.failures:
            raise CommandError(" ".join(result.failures))

    def _console(self, stream: Any, options: dict[str, Any]) -> Console:
        console = Console(
            file=cast("IO[str]", stream._out),
            no_color=options.get("no_color") or None,
            force_terminal=options.get("force_color") or None,
        )
        if not console.is_terminal:
            console.width = max(console.width, FILE_WIDTH)
        return console

    def _print_document(self, document: dict[str, Any]) -> None:
        self.stdout.write(json.dumps(document, indent=2))


def _in_range(flag: str, value: int) -> None:
    least, most = LIMITS[flag]
    if not least <= value <= most:
        raise CommandError(f"{flag} takes {least:,} to {most:,}.", returncode=2)


def _chosen(names: list[str] | None) -> list[Query]:
    known = {query.name: query for query in QUERIES}
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise CommandError(
            f"There is no query '{unknown[0]}'; choose of: {', '.join(known)}.", returncode=2
        )
    return [known[name] for name in dict.fromkeys(names or known)]


# --------------------------------------------------------------------------- while it runs


class _Bar(Steps):
    """A bar on a terminal, a line for each step elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._done = -1

    def start(self, total: int) -> None:
        self._total = total
        if self._console.is_terminal:
            self._bar.start()
            self._bar.add_task("Starting", total=total)

    def step(self, text: str) -> None:
        self._done += 1
        if self._console.is_terminal:
            self._bar.update(self._bar.task_ids[0], description=text, completed=self._done)
        else:
            self._console.print(f"{text} …", highlight=False, markup=False, soft_wrap=True)

    def stop(self) -> None:
        if self._console.is_terminal:
            self._bar.stop()


@contextmanager
def _progress(console: Console) -> Iterator[Steps]:
    bar = _Bar(console)
    try:
        yield bar
    finally:
        bar.stop()


@contextmanager
def _in_words() -> Iterator[None]:
    """What can go wrong on somebody's server, in one sentence."""
    try:
        yield
    except (ScratchError, TrafficError, PoolerError) as error:
        raise CommandError(str(error)) from None
    except errors.DiskFull:
        raise CommandError(
            "The server's disk is full: choose smaller --requests and --servers. The scratch "
            "database is dropped."
        ) from None
    except psycopg.OperationalError as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise CommandError(
            f"The server ended the benchmark: {reason}. What is left of its scratch database is "
            "dropped by the next run."
        ) from None


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM as Ctrl-C, so that the scratch database is dropped either way."""
    if current_thread() is not main_thread():
        yield
        return
    usual = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, usual)
