"""How a plan and a run look: for people (coloured on a terminal), for psql and as JSON."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column
from rich.text import Text

from monitoring.optimize.advise import KINDS, Advice
from monitoring.optimize.plan import PHASES, Change, Step
from monitoring.optimize.run import BRIEF_LOCK_MS, CONCURRENT_LOCK_MS, Reporter

__all__ = [
    "Printer",
    "as_json",
    "as_script",
    "faults",
    "notices",
    "show_advice",
    "show_note",
    "show_plan",
    "show_steps",
    "show_walls",
]

# Without a terminal: how long a statement may run before it says how far it is, and how often then.
QUIET_SECONDS = 5.0
REPEAT_SECONDS = 30.0
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
        if not any(change.steps or change.is_fault for change in changes):
            _line(console, "  [green]as declared[/]" if phase < 5 else "  [green]fresh[/]")
        for change in changes:
            _wrapped(console, _title(change, sizes), indent=2)
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


def show_advice(console: Console, found: Sequence[Advice], notes: Iterable[str]) -> None:
    """Each advice with what it rests on, what to run, and what to mind."""
    for kind, title in KINDS.items():
        of_kind = [advice for advice in found if advice.kind == kind]
        if of_kind:
            _line(console, f"[bold]{title}[/]")
        for advice in of_kind:
            _show_advice(console, advice)
    if not found:
        _line(console, "[green]Nothing to advise.[/]")
    for note in notes:
        _wrapped(console, f"[yellow]note[/] {escape(note)}", indent=2)


def _show_advice(console: Console, advice: Advice) -> None:
    _wrapped(console, escape(advice.sentence), indent=2)
    figures = ", ".join(f"{name} {_figure(value)}" for name, value in advice.evidence.items())
    _wrapped(console, f"[dim]seen: {escape(figures)}[/]", indent=4)
    for step in advice.steps:
        _show_step(console, step)
    _wrapped(console, f"[dim]mind: {escape(advice.caution)}[/]", indent=4)


def _figure(value: Any) -> str:
    if isinstance(value, list):
        return "(" + ", ".join(map(str, value)) + ")"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "unknown"}[value]
    return f"{value:,}" if isinstance(value, int) else str(value)


def _wrapped(console: Console, text: str, *, indent: int) -> None:
    """Prose, within a terminal's width; elsewhere one line."""
    if console.is_terminal:
        console.print(Padding(text, (0, 0, 0, indent)), highlight=False)
    else:
        _line(console, f"{' ' * indent}{text}")


def show_note(console: Console, text: str) -> None:
    _wrapped(console, escape(text), indent=0)


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
    _wrapped(console, f"[cyan]{escape(headline(step.sql))}[/]", indent=4)
    undo = _undo(step) if with_undo else []
    along = f"; undone with {step.goes_with}" if with_undo and step.goes_with else ""
    _wrapped(console, f"[dim]lock: {escape(step.lock + along)}[/]", indent=6)
    for line in undo:
        _wrapped(console, f"[dim]undo: {escape(line)}[/]", indent=6)


def _undo(step: Step) -> list[str]:
    if step.inverse:
        return [headline(inverse.sql) for inverse in step.inverse]
    return [] if step.goes_with else ["nothing to undo"]


class Printer(Reporter):
    """A run as it happens: a bar for the statement that runs, a line for each that ran.

    Where there is no terminal, what takes long says now and then how far it is.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._phase = 0
        self._bar: Progress | None = None
        self._said = ""
        self._say_again = 0.0

    def change_started(self, change: Change) -> None:
        if change.phase != self._phase:
            self._phase = change.phase
            _heading(self._console, change.phase)
        _wrapped(self._console, _title(change, {}), indent=2)

    def change_failed(self, reason: str) -> None:
        self._stop()
        _wrapped(self._console, f"[red]failed[/] {escape(reason)}", indent=4)

    def step_started(self, step: Step) -> None:
        self._say_again = time.monotonic() + QUIET_SECONDS
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("   "),
                SpinnerColumn(),
                TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True)),
                BarColumn(bar_width=12),
                _Percent(),
                TimeElapsedColumn(),
                console=self._console,
                transient=True,
                expand=True,
            )
            self._bar.add_task(escape(headline(step.sql)), total=None)
            self._bar.start()

    def step_progress(self, share: float | None, doing: str) -> None:
        if self._bar is not None:
            task = self._bar.task_ids[0]
            total = None if share is None else 1.0
            self._bar.update(task, total=total, completed=share or 0.0, description=escape(doing))
        elif doing != self._said or time.monotonic() > self._say_again + REPEAT_SECONDS:
            self._say_progress(share, doing)

    def _say_progress(self, share: float | None, doing: str) -> None:
        if time.monotonic() > self._say_again:
            done = "" if share is None else f", {share:.0%}"
            _line(self._console, f"    {escape(doing)}{done}")
            self._said, self._say_again = doing, time.monotonic()

    def step_retried(self, *, attempt: int, seconds: float, reason: str) -> None:
        text = f"attempt {attempt} gave up: {reason}; again in {seconds:g} s"
        _wrapped(self._console, f"[yellow]{escape(text)}[/]", indent=4)

    def step_finished(self, step: Step, seconds: float) -> None:
        self._stop()
        text = f"[green]done[/] {escape(headline(step.sql))} [dim]({seconds:.1f} s)[/]"
        _wrapped(self._console, text, indent=4)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class _Percent(ProgressColumn):
    """Nothing while there is nothing to count, such as a wait."""

    def render(self, task: Task) -> Text:
        return Text("" if task.total is None else f"{task.percentage:3.0f} %")


# --------------------------------------------------------------------------- for psql


def as_script(
    changes: Sequence[tuple[str, Sequence[Step]]], *, lock_timeout_ms: int | None, parallel: int
) -> str:
    """A script that psql runs as it is; each change is a title and its steps."""
    lines = [
        r"-- Run with: psql -X -f this-file. Statements outside BEGIN … COMMIT must stay outside:",
        r"-- CONCURRENTLY is refused in a transaction. After a lock time-out run optimize_db --sql",
        r"-- again: it also repairs what was cut off.",
        r"\set ON_ERROR_STOP on",
        "SET statement_timeout = 0;",
        f"SET max_parallel_maintenance_workers = {parallel};",
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
