"""How a plan and a run look: for people (coloured on a terminal), for psql and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from monitoring.optimize.plan import PHASES, Change, Step
from monitoring.optimize.run import BRIEF_LOCK_MS, CONCURRENT_LOCK_MS, Reporter

__all__ = [
    "Printer",
    "as_json",
    "as_script",
    "faults",
    "notices",
    "show_plan",
    "show_steps",
    "show_walls",
]

COLOURS = {"missing": "red", "invalid": "red", "different": "yellow", "unapplied": "red"}


def faults(plan: Iterable[Change]) -> list[Change]:
    """What `--check` fails for."""
    return [change for change in plan if change.is_fault]


def notices(plan: Iterable[Change]) -> list[Change]:
    """What is said and left alone."""
    return [change for change in plan if not change.is_fault and not change.steps]


def headline(statement: str) -> str:
    """One line of a statement, with how many more there are."""
    lines = [line for line in statement.splitlines() if line and not line.startswith("--")]
    more = f"  … {len(lines) - 1} more lines, see --sql" if len(lines) > 1 else ""
    return f"{lines[0]}{more}" if lines else ""


# --------------------------------------------------------------------------- for people


def show_plan(
    console: Console,
    plan: Sequence[Change],
    *,
    phases: Iterable[int],
    sizes: Mapping[str, int],
    with_steps: bool = True,
) -> None:
    """Every phase with its changes; `with_steps` adds statements, locks and what undoes them."""
    for phase in phases:
        changes = [change for change in plan if change.phase == phase]
        _heading(console, phase)
        if not changes:
            _line(console, "  [green]as declared[/]" if phase < 5 else "  [green]fresh[/]")
        for change in changes:
            _line(console, f"  {_title(change, sizes)}")
            for step in change.steps if with_steps else ():
                _show_step(console, step)


def show_steps(console: Console, steps: Iterable[Step]) -> None:
    """Statements with their locks, in order."""
    for step in steps:
        _show_step(console, step, with_undo=False)


def show_walls(console: Console, steps: Sequence[Step] | None, *, with_steps: bool = True) -> None:
    """What a run ends with: grants, policies and flags."""
    _line(console, "[bold]Then: grants and policies[/]")
    if steps is None:
        _line(console, "  [yellow]roles or memberships are missing[/]: init_db makes or names them")
    elif not steps:
        _line(console, "  [green]as declared[/]")
    else:
        _line(console, f"  [yellow]different[/]  {len(steps)} statement(s) put them right")
        for step in steps if with_steps else ():
            _show_step(console, step, with_undo=False)


def _heading(console: Console, phase: int) -> None:
    _line(console, f"[bold]Phase {phase}: {PHASES[phase]}[/]")


def _line(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False)


def _title(change: Change, sizes: Mapping[str, int]) -> str:
    colour = COLOURS.get(change.kind, "cyan" if change.steps else "dim")
    on_table = f" on {change.table}" if change.table not in {"", change.name} else ""
    size = f", about {decimal(sizes[change.name])}" if change.name in sizes else ""
    reason = escape(change.reason)
    return f"[{colour}]{change.kind:<10}[/] [bold]{escape(change.name)}[/]{on_table} {reason}{size}"


def _show_step(console: Console, step: Step, *, with_undo: bool = True) -> None:
    _line(console, f"    [cyan]{escape(headline(step.sql))}[/]")
    _line(console, f"      [dim]lock: {escape(step.lock)}[/]")
    if with_undo:
        undo = " ".join(headline(inverse.sql) for inverse in step.inverse)
        _line(console, f"      [dim]undo: {escape(undo) or 'nothing to undo'}[/]")


class Printer(Reporter):
    """A run as it happens: a bar for the statement that runs, a line for each that ran."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._phase = 0
        self._bar: Progress | None = None

    def change_started(self, change: Change) -> None:
        if change.phase != self._phase:
            self._phase = change.phase
            _heading(self._console, change.phase)
        _line(self._console, f"  {_title(change, {})}")

    def change_failed(self, reason: str) -> None:
        self._stop()
        _line(self._console, f"    [red]failed[/] {escape(reason)}")

    def step_started(self, step: Step) -> None:
        if self._console.is_terminal:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                TimeElapsedColumn(),
                console=self._console,
                transient=True,
            )
            self._bar.add_task(escape(headline(step.sql)[:60]), total=None)
            self._bar.start()

    def step_progress(self, share: float | None, doing: str) -> None:
        if self._bar is not None:
            task = self._bar.task_ids[0]
            total = None if share is None else 1.0
            self._bar.update(task, total=total, completed=share or 0.0, description=escape(doing))

    def step_retried(self, *, attempt: int, seconds: float, reason: str) -> None:
        text = f"attempt {attempt} gave up: {reason}; again in {seconds:g} s"
        _line(self._console, f"    [yellow]{escape(text)}[/]")

    def step_finished(self, step: Step, seconds: float) -> None:
        self._stop()
        _line(
            self._console,
            f"    [green]done[/] {escape(headline(step.sql))} [dim]({seconds:.1f} s)[/]",
        )

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


# --------------------------------------------------------------------------- for psql


def as_script(changes: Sequence[tuple[str, Sequence[Step]]], *, lock_timeout_ms: int | None) -> str:
    """A script that psql runs as it is; each change is a title and its steps."""
    lines = [
        r"-- Run with: psql -X -f this-file. Statements outside BEGIN … COMMIT must stay outside:",
        r"-- CONCURRENTLY is refused in a transaction. After a lock time-out run optimize_db --sql",
        r"-- again: it also repairs what was cut off.",
        r"\set ON_ERROR_STOP on",
        "SET statement_timeout = 0;",
    ]
    for title, steps in changes:
        lines += ["", f"-- {title}"]
        for step in steps:
            lines += _script_step(step, lock_timeout_ms)
    if not changes:
        lines += ["", "-- Nothing to do."]
    return "\n".join([*lines, ""])


def _script_step(step: Step, lock_timeout_ms: int | None) -> list[str]:
    patience = lock_timeout_ms or (CONCURRENT_LOCK_MS if step.is_concurrent else BRIEF_LOCK_MS)
    lines = [f"-- Lock: {step.lock}"]
    lines += [f"-- Undo: {headline(inverse.sql)}" for inverse in step.inverse]
    lines.append(f"SET lock_timeout = '{patience}ms';")
    is_block = "\n" in step.sql
    return [*lines, "BEGIN;", step.sql, "COMMIT;"] if is_block else [*lines, step.sql]


# --------------------------------------------------------------------------- for programs


def as_json(
    plan: Sequence[Change], *, phases: Iterable[int], sizes: Mapping[str, int]
) -> list[dict[str, Any]]:
    """The phases with their changes."""
    return [
        {
            "phase": phase,
            "name": PHASES[phase],
            "changes": [
                {
                    "kind": change.kind,
                    "name": change.name,
                    "table": change.table or None,
                    "reason": change.reason,
                    "is_fault": change.is_fault,
                    "estimated_bytes": sizes.get(change.name),
                    "statements": [
                        {
                            "sql": step.sql,
                            "lock": step.lock,
                            "undo": [inverse.sql for inverse in step.inverse],
                        }
                        for step in change.steps
                    ],
                }
                for change in plan
                if change.phase == phase
            ],
        }
        for phase in phases
    ]
