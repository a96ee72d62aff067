"""Does a gateway that works on and on stay as it is?

    python -m gateway.bench.soak --minutes 60 --rate 50

Makes a scratch database on DATABASE_URL's server (a role that may CREATE DATABASE) and drops it at
the end. `serve`, `worker` and the sample MCP server run as processes of their own; calls of all
kinds come at a steady rate, and pages and /metrics are looked at. Periodic tasks run `--speed`
times as often as they would (default 24: an hour has a day's runs), though not more than once a
second, and what they find to do is what there is: logs get no older by it. Each minute the memory,
open files and connections of every process and the rows and bytes of every table are taken; at the
end the second half of them is judged. Runs on the machine of the processes, which is Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import django

if TYPE_CHECKING:
    from gateway.bench.soaking import Result

__all__ = ["lines", "main"]

MB = 2**20


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway.settings")
    django.setup()
    from django.core.management import CommandError

    from gateway.bench.soaking import soak_scratch
    from gateway.children import ChildError
    from registry.db.scratch import ScratchError

    say = sys.stderr.write if options.json else sys.stdout.write
    try:
        result = soak_scratch(
            seconds=options.minutes * 60,
            rate=options.rate,
            speed=options.speed,
            every=options.every,
            told=lambda text: say(f"{text}\n"),
        )
    except (ScratchError, ChildError, CommandError) as error:
        sys.exit(f"Error: {error}")
    if options.json:
        sys.stdout.write(json.dumps(result.as_dict(), indent=2) + "\n")
    for line in lines(result):
        say(f"{line}\n")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=_positive, default=60.0)
    parser.add_argument("--rate", type=_positive, default=50.0, help="Calls a second; default 50.")
    parser.add_argument(
        "--speed", type=_positive, default=24.0, help="How many times as often tasks run."
    )
    parser.add_argument(
        "--every", type=_positive, default=60.0, help="Seconds between samples; default 60."
    )
    parser.add_argument("--json", action="store_true", help="Print one JSON document.")
    return parser.parse_args(arguments)


def _positive(text: str) -> float:
    value = float(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not above 0")
    return value


# --------------------------------------------------------------------------- how it is told


def lines(result: Result) -> Iterator[str]:
    """What was sent, and what was found of memory and tables."""
    yield ""
    yield "calls: " + ", ".join(f"{name} {n:,}" for name, n in sorted(result.answers.items()))
    if result.behind:
        yield f"! {result.behind:,} calls were not sent: too many had no answer yet"
    yield from _tasks(result.runs)
    yield from _memory(result)
    yield from _tables(result)
    yield from (f"! {error}" for error in result.errors)


def _tasks(runs: Mapping[str, tuple[int, float]]) -> Iterator[str]:
    words = (f"{name} {ran} ({ran / usual:.0f}x)" for name, (ran, usual) in sorted(runs.items()))
    yield "tasks, runs (times as often as usual): " + ", ".join(words)


def _memory(result: Result) -> Iterator[str]:
    yield f"{'':2}{'memory, second half':24} {'from':>9} {'to':>9} {'a day':>10} {'limit':>10}"
    for one in result.memories:
        slope, between = "", ""
        if one.slope is not None:
            slope = f"{one.slope.value / MB:+.2f} MB"
            between = f" ({one.slope.low / MB:+.2f} to {one.slope.high / MB:+.2f})"
        mark = "! " if one.verdict == "grows" else "  "
        yield (
            f"{mark}{one.name:24} {one.first / MB:6.1f} MB {one.last / MB:6.1f} MB {slope:>10}"
            f" {one.limit / MB:7.2f} MB  {one.verdict}{between}"
        )


def _tables(result: Result) -> Iterator[str]:
    yield f"{'':2}{'tables that grew, second half':32} {'rows':>10} {'kB':>10}"
    for one in result.growths:
        words = "log or rollup" if one.is_log else "the same rows" if one.is_bloat else ""
        mark = "  " if one.is_log else "! "
        yield f"{mark}{one.table:32} {one.rows:10,} {one.bytes / 1024:10,.0f}  {words}"


if __name__ == "__main__":
    main()
