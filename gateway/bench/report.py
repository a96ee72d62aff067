"""How a result looks: as one JSON document, and as tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from gateway.bench.arms import ARMS, BARE, DJANGO, OPTIMISED, Arm
from gateway.bench.figures import Saving, quantile
from gateway.bench.growth import Growth
from gateway.bench.queries import CLASSES
from gateway.bench.reads import CLIENT, EXECUTION, MEASURES, PLANNING, ArmFigures, Finding
from gateway.bench.run import Result
from gateway.bench.traffic import Traffic

__all__ = ["as_document", "show", "show_growth"]

NOISE = "noise"
DISTURBING_SECONDS = 1.0
WIDE = 110  # columns from which there is room for intervals


# --------------------------------------------------------------------------- for programs


def as_document(result: Result) -> dict[str, Any]:
    """Everything measured; times in milliseconds, sizes in bytes, shares from 0 to 1."""
    return {
        "started": result.started.isoformat(),
        "sizes": {"requests": result.sizes.requests, "servers": result.sizes.servers},
        "parameters": result.parameters,
        "machine": result.machine,
        "server": result.server,
        "walls": result.walls.as_dict(),
        "database_bytes": result.database_bytes,
        "arms": {arm.name: arm.title for arm in ARMS},
        "queries": [_finding(finding) for finding in result.findings],
        "writes": {arm.name: _writes(result, arm) for arm in ARMS if result.copied},
        "traffic": result.traffic.as_dicts() if result.traffic else [],
        "lock_timeout_ms": result.traffic.lock_timeout_ms if result.traffic else None,
        "keys": result.keys.as_dict() if result.keys else None,
        "failures": result.failures,
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "name": finding.query.name,
        "title": finding.query.title,
        "headline": finding.query.headline,
        "asked_as": finding.role,
        "parameters": finding.counts,
        "rows_equal": not finding.unequal,
        "arms": {name: _figures(figures) for name, figures in finding.arms.items()},
        "saving": {arm.name: asdict(finding.against(arm)) for arm in (BARE, DJANGO)},
        "index_scans": finding.scanned,
        "goals": [{"goal": text, "met": met} for text, met in finding.goals],
    }


def _figures(figures: ArmFigures) -> dict[str, Any]:
    """Times of execution, but for the medians that are named after another measure."""
    times = figures.times()
    return {
        "median_ms": quantile(times, 0.5),
        "p95_ms": quantile(times, 0.95),
        "total_ms": sum(times),
        "client_median_ms": figures.median(CLIENT),
        "planning_median_ms": figures.median(PLANNING),
        "noise": {measure: figures.noise(measure) for measure in MEASURES},
        "classes": {kind: figures.of_class(kind) for kind in CLASSES},
        "passes": {measure: len(figures.passes[measure]) for measure in MEASURES},
        **asdict(figures.explained),
    }


def _writes(result: Result, arm: Arm) -> dict[str, Any]:
    return {
        "copy": asdict(result.copied[arm.name]),
        "updates": [asdict(updated) for updated in result.updated[arm.name]],
        "tables": [asdict(size) for size in result.table_sizes[arm.name]],
        "index_builds": [asdict(build) for build in result.builds.get(arm.name, [])],
    }


# --------------------------------------------------------------------------- for people


def show(console: Console, result: Result) -> None:
    """Tables in the order in which one asks: how fast, at what cost, who waited, what failed."""
    _reads(console, result)
    _around(console, result)
    _classes(console, result)
    _goals(console, result)
    if result.copied:
        _costs(console, result)
        _updates(console, result)
    if result.traffic:
        _traffic(console, result.traffic)
    _keys(console, result)
    _note(console, _circumstances(result))
    for failure in result.failures:
        console.print(Text(f"✗ {failure}", style="bold red"))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", no_wrap=True)
    return table


def _reads(console: Console, result: Result) -> None:
    table = _table(
        "Reading: median ms of execution (buffers)",
        "query",
        *(arm.letter for arm in ARMS),
        "C against A",
        "C against B",
    )
    with_interval = console.width >= WIDE
    for finding in result.findings:
        table.add_row(
            Text(finding.query.title, style="bold" if finding.query.headline else ""),
            *(_cell(finding.arms[arm.name]) for arm in ARMS),
            *(_saving(finding.against(arm), with_interval) for arm in (BARE, DJANGO)),
        )
    console.print(table)
    arms = "; ".join(f"{arm.letter}: {arm.title}" for arm in ARMS)
    _note(
        console,
        f"{arms}. Bold: the performance guide's headline queries. A share compares total execution "
        "time over parameters drawn as often as they occur; in brackets its 95 % interval. Where "
        f"two halves of one arm's own passes differ by as much, it says {NOISE}. {_walls(result)}",
    )


def _walls(result: Result) -> str:
    walls = result.walls
    if not walls.standing:
        return f"C has no walls here either: {walls.why_not}."
    return (
        "C answers behind its walls, a tenant's questions walled in to the tenant, the others "
        "across tenants; A and B have none. A transaction without a question, at the client: "
        f"{walls.tenant_us:.0f} µs walled, {walls.operator_us:.0f} µs across tenants, "
        f"{walls.plain_us:.0f} µs of it BEGIN and COMMIT."
    )


def _around(console: Console, result: Result) -> None:
    table = _table(
        "Around the execution: median ms at the client, and of planning",
        "query",
        *(f"{arm.letter} client" for arm in ARMS),
        *(f"{arm.letter} planning" for arm in ARMS),
        "C asked as",
    )
    for finding in result.findings:
        medians = [
            _ms(finding.arms[arm.name].median(measure))
            for measure in (CLIENT, PLANNING)
            for arm in ARMS
        ]
        table.add_row(finding.query.title, *medians, finding.role)
    console.print(table)


def _note(console: Console, text: str) -> None:
    console.print(text, style="dim", markup=False, highlight=False)


def _cell(figures: ArmFigures) -> str:
    return f"{_ms(figures.median(EXECUTION))} ({figures.explained.buffers_median:,})"


def _ms(value: float) -> str:
    if value < 1:
        return f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _saving(saving: Saving, with_interval: bool) -> Text:
    if saving.share is None:
        return Text(f"{NOISE} (±{saving.noise:.0%})", style="dim")
    interval = f" [{_change(saving.low)}, {_change(saving.high)}]" if with_interval else ""
    return Text(_change(saving.share) + interval, style="green" if saving.share > 0 else "red")


def _change(share: float) -> str:
    """-97% for less time; for much more, how many times as much."""
    digits = 2 if share > 0.999 else 1 if share > 0.95 else 0
    return f"×{1 - share:.1f}" if share < -1 else f"{-share:+.{digits}%}"


def _classes(console: Console, result: Result) -> None:
    table = _table(
        "By class of parameter: median / p95 ms",
        "headline query",
        "class",
        *(arm.letter for arm in ARMS),
        "of",
    )
    for finding in _headlines(result):
        for kind in CLASSES:
            classes = [finding.arms[arm.name].of_class(kind) for arm in ARMS]
            cells = [f"{_ms(c['median_ms'])} / {_ms(c['p95_ms'])}" if c else "–" for c in classes]
            table.add_row(finding.query.title, kind, *cells, str(finding.counts[kind]))
    if table.row_count:
        console.print(table)


def _headlines(result: Result) -> Iterable[Finding]:
    return (finding for finding in result.findings if finding.query.headline)


def _goals(console: Console, result: Result) -> None:
    table = Table(title="Goals", title_justify="left", title_style="bold", header_style="bold")
    for column in ("headline query", "goals", "indexes that C scanned"):
        table.add_column(column)
    for finding in _headlines(result):
        goals = Text("\n").join(
            Text(f"✓ {text}", style="green") if met else Text(f"✗ {text}", style="red")
            for text, met in finding.goals
        )
        table.add_row(finding.query.title, goals, "\n".join(finding.scanned) or "none")
        table.add_section()
    if table.row_count:
        console.print(table)


def _costs(console: Console, result: Result) -> None:
    table = _table("Writing: what the indexes cost", "", *(arm.letter for arm in ARMS))
    copied = [result.copied[arm.name] for arm in ARMS]
    sizes = [result.table_sizes[arm.name] for arm in ARMS]
    builds = [result.builds.get(arm.name, []) for arm in ARMS]
    table.add_row("request log: rows/s by COPY", *(f"{c.rows_per_second:,.0f}" for c in copied))
    table.add_row("request log: WAL bytes a row", *(f"{c.wal_bytes_per_row:,.0f}" for c in copied))
    table.add_row("tables", *(decimal(sum(s.table_bytes for s in of)) for of in sizes))
    table.add_row("indexes", *(decimal(sum(s.index_bytes for s in of)) for of in sizes))
    table.add_row("building the secondary indexes", *(_seconds(of) for of in builds))
    console.print(table)


def _seconds(builds: Iterable[Any]) -> str:
    found = [build.seconds for build in builds]
    return f"{sum(found):.1f} s for {len(found)}" if found else "–"


def _updates(console: Console, result: Result) -> None:
    table = _table(
        "Updates: HOT share (no new index entries), WAL bytes a row",
        "",
        *(arm.letter for arm in ARMS),
    )
    for row in zip(*(result.updated[arm.name] for arm in ARMS), strict=True):
        cells = [f"{updated.hot_share:.0%}, {updated.wal_bytes_per_row:,.0f}" for updated in row]
        table.add_row(row[0].title, *cells)
    console.print(table)
    others = max(updated.others_open_seconds for of in result.updated.values() for updated in of)
    if others > DISTURBING_SECONDS:
        _note(
            console,
            f"Another session of the server had a transaction open for {others:.0f} s, which keeps "
            "dead rows from being cleared away: on a quiet server the shares are higher.",
        )


def _traffic(console: Console, traffic: Traffic) -> None:
    table = _table(
        "Traffic in C while the schema changes: median / p99 / longest ms (p99 to quiet)",
        "meanwhile",
        "for",
        "reads",
        "writes",
        "longest lock wait",
    )
    table.columns[0].no_wrap = False
    for figures in traffic.as_dicts():
        table.add_row(
            figures["what"],
            f"{figures['seconds']:.1f} s",
            *(_three(figures[kind]) for kind in ("reads", "writes")),
            f"{figures['longest_lock_wait_ms']:.0f} ms",
        )
    console.print(table)
    _note(
        console,
        "Lock waits are looked for every five milliseconds; a statement of DDL gives up after "
        f"{traffic.lock_timeout_ms:,} ms.",
    )


def _three(summary: dict[str, float] | None) -> str:
    if summary is None:
        return "none ended"
    three = " / ".join(_ms(summary[name]) for name in ("median_ms", "p99_ms", "max_ms"))
    return f"{three} (×{summary['p99_to_quiet']:.1f})"


def _keys(console: Console, result: Result) -> None:
    found = result.keys
    if found is None:
        return
    mark, style = ("✓", "green") if found.met else ("✗", "red")
    backend = "unknown" if found.backend_us is None else f"{found.backend_us:.0f} µs"
    console.print(
        Text(
            f"{mark} Validating a key takes {found.total_us:.0f} µs of CPU (goal: at most "
            f"{found.goal_us:.0f}): {found.deciding_us:.1f} from row to verdict, hashing "
            f"({found.hashing_us:.1f}) included, and {found.execution_us:.0f} of execution. The "
            f"backend spends {backend} a look-up, parsing and planning included; a call from "
            "memory needs none.",
            style=style,
        )
    )


def show_growth(
    console: Console, found: Sequence[Growth], before: Mapping[str, Any], after: Mapping[str, Any]
) -> None:
    """What each query reads at two sizes."""
    sizes = [f"{run['sizes']['requests']:,}" for run in (before, after)]
    table = _table(
        f"Growth of buffers from {sizes[0]} to {sizes[1]} requests",
        "query",
        *(f"C at {size}" for size in sizes),
        "C",
        "A",
    )
    for one in found:
        table.add_row(
            Text(one.title, style="bold" if one.headline else ""),
            f"{one.before:,}",
            f"{one.after:,}",
            Text(f"×{one.factor:.2f}", style="green" if one.is_flat else "red"),
            f"×{one.bare_factor:.1f}",
        )
    console.print(table)


def _circumstances(result: Result) -> str:
    machine, server = result.machine, result.server
    return (
        f"{result.sizes.requests:,} request log rows, {result.sizes.servers:,} servers, "
        f"{result.started:%Y-%m-%d %H:%M} UTC. All arms together weigh "
        f"{decimal(result.database_bytes)}. PostgreSQL {server['server_version']}, "
        f"shared_buffers {server['shared_buffers']}, cache warm; {machine['cpus']} CPUs "
        f"({machine['system']}), load {machine['load_before']} before and "
        f"{machine.get('load_after', '–')} after. {OPTIMISED.letter} is what the migrations make."
    )
