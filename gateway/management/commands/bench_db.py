"""Parse, call, print: the work is done in gateway.bench."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import psycopg
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.timezone import now
from psycopg import errors
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gateway.bench.charts import write_charts
from gateway.bench.fill import Sizes
from gateway.bench.growth import GrowthError, growth, read_document
from gateway.bench.indexes import index_page
from gateway.bench.queries import QUERIES, Query
from gateway.bench.report import as_document, show, show_growth
from gateway.bench.run import Result, Steps, run_benchmark
from gateway.bench.traffic import TrafficError
from registry.db.direct import PoolerError
from registry.db.partitions import PartitionsError
from registry.db.scratch import ScratchError

SIZES = {
    "small": Sizes(100_000, 10_000),
    "medium": Sizes(1_000_000, 100_000),
    "large": Sizes(10_000_000, 1_000_000),
}
# From so many requests on, the traffic's p99 rests on more seconds.
LONG_FROM, SHORT_SECONDS, LONG_SECONDS = 1_000_000, 3.0, 10.0
FILE_WIDTH = 160  # columns of tables that no terminal bounds
LIMITS = {
    "--requests": (1_000, 100_000_000),
    "--servers": (100, 10_000_000),
    "--parameters": (10, 10_000),
    "--traffic-seconds": (1, 600),
}


class Command(BaseCommand):
    help = (
        "Measure what the indexes gain and cost: the same rows with primary keys alone, with "
        "Django's default indexes, and as migrated, in a scratch database that is made on "
        "DATABASE_URL's server and dropped afterwards. Sizes: "
        + "; ".join(
            f"{name}: {size.requests:,} requests and {size.servers:,} servers"
            for name, size in SIZES.items()
        )
        + ". "
        "Exit status: 0 done; 1 failed, other rows in one arm than in another, or a headline query "
        "found no index; 2 wrong usage."
    )
    requires_system_checks = []  # they are about the code, and load every page

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--size", choices=SIZES, default="small", help="Default: small.")
        for flag, what in (("--requests", "Request log rows"), ("--servers", "Servers")):
            parser.add_argument(flag, type=int, metavar="N", help=f"{what}; default: the size's.")
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
        parser.add_argument(
            "--traffic-seconds",
            type=float,
            metavar="N",
            help="Of traffic in quiet, beside optimize_db and dropped partitions; "
            f"default {SHORT_SECONDS:g}, from {LONG_FROM:,} requests on {LONG_SECONDS:g}.",
        )
        parser.add_argument(
            "--against",
            type=Path,
            metavar="FILE",
            help="Tell what queries read more than in another run, of which this is the document.",
        )
        parser.add_argument("--svg", metavar="FOLDER", help="Write charts for the docs there.")
        parser.add_argument(
            "--indexes",
            type=Path,
            metavar="FILE",
            help="Measure each index of the catalogue by itself instead, and write the page.",
        )
        parser.add_argument(
            "--json",
            action="store_true",
            help="Print one JSON document; the tables go to standard error.",
        )

    def handle(
        self,
        *,
        size: str,
        requests: int | None,
        servers: int | None,
        parameters: int,
        indexes: Path | None,
        json: bool,
        **options: Any,
    ) -> None:
        wanted = SIZES[size]
        sizes = Sizes(
            wanted.requests if requests is None else requests,
            wanted.servers if servers is None else servers,
        )
        seconds = options["traffic_seconds"]
        options["traffic_seconds"] = _seconds(sizes) if seconds is None else seconds
        given = {
            "--requests": sizes.requests,
            "--servers": sizes.servers,
            "--parameters": parameters,
            "--traffic-seconds": options["traffic_seconds"],
        }
        for flag, value in given.items():
            _in_range(flag, value)
        talk = self._console(self.stderr if json else self.stdout, options)
        if indexes is not None:
            self._measure_indexes(talk, sizes, indexes)
        else:
            self._compare(talk, sizes, parameters, json, options)

    def _measure_indexes(self, talk: Console, sizes: Sizes, path: Path) -> None:
        with _progress(talk) as steps, _in_words():
            page = index_page(sizes=sizes, at=now(), steps=steps)
            path.write_text(page, encoding="utf-8")
        talk.print(f"Wrote {path}", highlight=False, markup=False)

    def _compare(
        self, talk: Console, sizes: Sizes, parameters: int, json: bool, options: dict[str, Any]
    ) -> None:
        chosen = _chosen(options["query"])
        with _progress(talk) as steps, _in_words():
            other = read_document(options["against"]) if options["against"] else None
            result = run_benchmark(
                sizes=sizes,
                parameters=parameters,
                at=now(),
                steps=steps,
                traffic_seconds=options["traffic_seconds"],
                chosen=chosen,
            )
        self._show(talk, result, other, json)
        if options["svg"]:
            for path in write_charts(result, Path(options["svg"])):
                talk.print(f"Wrote {path}", highlight=False, markup=False)
        if result.failures:
            raise CommandError(" ".join(result.failures))

    def _show(
        self, talk: Console, result: Result, other: dict[str, Any] | None, json: bool
    ) -> None:
        show(talk, result)
        document = as_document(result)
        if other is not None:
            grown = growth(other, document)
            document["growth"] = [one.as_dict() for one in grown]
            show_growth(talk, grown, other, document)
        if json:
            self._print_document(document)

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


def _seconds(sizes: Sizes) -> float:
    return LONG_SECONDS if sizes.requests >= LONG_FROM else SHORT_SECONDS


def _in_range(flag: str, value: float) -> None:
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
    except (ScratchError, GrowthError, TrafficError, PoolerError, PartitionsError) as error:
        raise CommandError(str(error)) from None
    except errors.DiskFull:
        raise CommandError(
            "The server's disk is full: choose a smaller size. The scratch database is dropped."
        ) from None
    except psycopg.OperationalError as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise CommandError(
            f"The server ended the benchmark: {reason}. What is left of its scratch database is "
            "dropped by the next run."
        ) from None
