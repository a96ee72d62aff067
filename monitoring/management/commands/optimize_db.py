"""Parse, call, print: the work is done in monitoring.optimize."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import IO, Any, cast

from django.core.management.base import BaseCommand, CommandError, CommandParser
from rich.console import Console

from monitoring.audit import Actor
from monitoring.models import OptimizeRun
from monitoring.optimize import run as running
from monitoring.optimize.advise import with_use
from monitoring.optimize.estimate import estimated_sizes
from monitoring.optimize.output import (
    Printer,
    as_json,
    as_script,
    faults,
    notices,
    show_advice,
    show_note,
    show_plan,
    show_steps,
    show_walls,
)
from monitoring.optimize.plan import PHASES, Change, Step, make_plan, new_views
from monitoring.optimize.space import NoSpaceError, Space, space_for
from monitoring.optimize.state import MissingRightsError, State, declared_state
from registry.db.roles import Raised

ACTOR = Actor(service_name="cli")
MOST_PARALLEL = 1024  # of max_parallel_maintenance_workers
NOTHING_TO_UNDO = "No recorded run is left to undo."
WALLS_NEED_A_DBA = (
    "Some grants or policies need more rights than this role has: init_db prints them for a DBA."
)


class Command(BaseCommand):
    help = (
        "Bring indexes, functions, views and statistics to what the code declares, online and in "
        "five phases: 1 indexes, 2 tables (their storage parameters; what else is missing is only "
        "reported), 3 functions, 4 views, 5 statistics. "
        "Safe to repeat. Exit status: 0 done, 1 failed or --check found a fault, 2 wrong usage."
    )
    requires_system_checks = []  # they are about the code, and load every page

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--dry-run",
            action="store_true",
            help="Show the plan: every statement, its lock, what undoes it. Run nothing.",
        )
        parser.add_argument(
            "--sql", action="store_true", help="Print the plan as a script for psql. Run nothing."
        )
        parser.add_argument(
            "--check",
            action="store_true",
            help="Exit 1 when an object of our tables is missing, invalid or different.",
        )
        parser.add_argument(
            "--advise",
            action="store_true",
            help="Report what could be better: unused, redundant and bloated indexes, foreign keys "
            "without one, tables that autovacuum does not keep up with, updates that touch every "
            "index, old snapshots. Changes nothing.",
        )
        parser.add_argument("--phase", type=int, choices=PHASES, help="Only this phase.")
        parser.add_argument(
            "--rollback",
            action="store_true",
            help="Undo the last recorded run, the last statement first; what ANALYZE gathered, and "
            "grants that were put right, stay.",
        )
        parser.add_argument(
            "--lock-timeout",
            type=int,
            metavar="MS",
            help="How long a statement may wait for a lock before it gives up and tries again; "
            f"default {running.BRIEF_LOCK_MS}, and {running.CONCURRENT_LOCK_MS} for concurrent "
            "builds, which make nobody wait.",
        )
        parser.add_argument(
            "--parallel",
            type=int,
            metavar="N",
            default=running.PARALLEL,
            help="How many more processes may help to build an index "
            "(max_parallel_maintenance_workers); default %(default)s, which leaves them to "
            "traffic. Where there is none, 2 and more are quicker.",
        )
        parser.add_argument("--json", action="store_true", help="Print one JSON document.")

    def handle(self, **options: Any) -> None:
        _refuse_contradictions(options)
        self.options = options
        self.console = Console(
            file=cast("IO[str]", self.stdout._out),
            no_color=options.get("no_color") or None,
            force_terminal=options.get("force_color") or None,
        )
        try:
            patience = options["lock_timeout"] or running.BRIEF_LOCK_MS
            with running.open_session(
                lock_timeout_ms=patience, parallel=options["parallel"]
            ) as session:
                if options["rollback"]:
                    self._rollback(session)
                elif options["advise"]:
                    self._advise(session)
                else:
                    self._optimize(session)
        except (
            MissingRightsError,
            NoSpaceError,
            running.BusyError,
            running.PoolerError,
            running.StepError,
        ) as error:
            raise CommandError(str(error)) from None

    def _say(self, text: str) -> None:
        if not self.options["json"]:
            self.console.print(text, soft_wrap=True, highlight=False)

    def _reporter(self) -> running.Reporter:
        return running.Reporter() if self.options["json"] else Printer(self.console)

    def _executor(self, session: running.Session) -> running.Executor:
        return running.Executor(
            session=session,
            reporter=self._reporter(),
            lock_timeout_ms=self.options["lock_timeout"],
        )

    # ---------------------------------------------------------------- towards the declaration

    def _optimize(self, session: running.Session) -> None:
        if self.options["check"] or self.options["dry_run"] or self.options["sql"]:
            self._show(session)
            return
        with running.session_lock(session):
            declared, plan = self._plan(session)
            if not self._has_records:
                raise CommandError("The schema is not there yet: run init_db, then try again.")
            _refuse_if_too_large(session, plan)
            executor = self._executor(session)
            run, failures = running.run_plan(
                plan=plan, declared=declared, executor=executor, actor=ACTOR
            )
            walls = self._restore_walls(executor, failures)
        self._conclude(plan, run, failures, walls)

    def _restore_walls(self, executor: running.Executor, failures: list[str]) -> Raised | None:
        try:
            return running.walls_restore(executor)
        except running.StepError as failure:
            failures.append(str(failure))
            return None

    def _plan(self, session: running.Session) -> tuple[State, list[Change]]:
        declared = declared_state(session.work)
        actual = running.read_actual(session, self._reporter())
        self._has_records = "optimize_runs" in actual.tables
        self._new_views = new_views(declared, actual) if 4 in self._phases else []
        plan = make_plan(declared=declared, actual=actual, phases=self._phases)
        if 1 in self._phases:
            plan = with_use(plan, running.read_use(session, self._reporter(), actual=actual))
        return declared, plan

    @property
    def _phases(self) -> list[int]:
        return [self.options["phase"]] if self.options["phase"] else list(PHASES)

    def _show(self, session: running.Session) -> None:
        _, plan = self._plan(session)
        sizes = estimated_sizes(session.work, plan)
        space = space_for(session.work, sizes)
        walls = running.walls_steps(session, new_views=self._new_views)
        if self.options["sql"]:
            changes = [
                (f"Phase {change.phase}: {change.name} {change.reason}", change.steps)
                for change in plan
                if change.steps
            ]
            if walls:
                changes.append(("Grants and policies", tuple(walls)))
            self._print_script(changes)
        elif self.options["json"]:
            self._print_json(plan, sizes=sizes, space=space, walls=walls)
        else:
            with_steps = not self.options["check"]
            show_plan(self.console, plan, phases=self._phases, sizes=sizes, with_steps=with_steps)
            show_walls(self.console, walls, with_steps=with_steps)
            if space:
                show_note(self.console, f"Disk: {space}.")
            if not with_steps:
                self._say("[green]All is as declared.[/]" if not faults(plan) else "")
        if self.options["check"] and (found := faults(plan)):
            raise CommandError(_verdict(found))

    def _print_script(self, changes: Sequence[tuple[str, Sequence[Step]]]) -> None:
        options = self.options
        text = as_script(
            changes, lock_timeout_ms=options["lock_timeout"], parallel=options["parallel"]
        )
        self.stdout.write(text, ending="")

    def _conclude(
        self,
        plan: list[Change],
        run: OptimizeRun | None,
        failures: list[str],
        walls: Raised | None,
    ) -> None:
        left = [change for change in faults(plan) if not change.steps]
        if self.options["json"]:
            self._print_json(plan, run=run, failures=failures, raised=walls)
        else:
            said = [change for change in notices(plan) if change.kind != "unused"]
            for change in [*left, *said]:
                self._say(f"  {change.kind}: {change.name} {change.reason}")
            done = len(run.statements) if run else 0
            undo = (
                " (--rollback undoes all but ANALYZE)"
                if run and running.rollback_steps(run)
                else ""
            )
            self._say(f"{done} statement(s) ran{undo}." if run else "Nothing to do.")
            self._say_walls(walls)
        if failures:
            raise CommandError(f"{len(failures)} change(s) failed: {'; '.join(failures)}")
        if left:
            raise CommandError(_verdict(left))

    def _say_walls(self, walls: Raised | None) -> None:
        if walls and walls.done:
            self._say(f"{walls.done} change(s) to grants and policies.")
        if walls and not walls.is_complete:
            self._say(f"[yellow]{WALLS_NEED_A_DBA}[/]")

    def _print_json(
        self,
        plan: list[Change],
        *,
        sizes: dict[str, int] | None = None,
        space: Space | None = None,
        walls: list[Step] | None = None,
        run: OptimizeRun | None = None,
        failures: list[str] | None = None,
        raised: Raised | None = None,
    ) -> None:
        document = {
            "faults": len(faults(plan)),
            "phases": as_json(plan, phases=self._phases, sizes=sizes or {}),
            "run": str(run.id) if run else None,
            "ran": [
                {"object": ran["object"], "sql": ran["sql"], "seconds": ran["seconds"]}
                for ran in (run.statements if run else [])
            ],
            "failures": failures or [],
            "disk": {"needed_bytes": space.needed, "free_bytes": space.free} if space else None,
            "walls": {
                "pending": [step.sql for step in walls or []],
                "changed": raised.done if raised else 0,
                "for_a_dba": [step.text() for step in raised.refused] if raised else [],
            },
        }
        self.stdout.write(json.dumps(document, indent=2))

    def _advise(self, session: running.Session) -> None:
        found, notes = running.read_advice(session, self._reporter())
        if self.options["json"]:
            document = {"advice": [advice.as_dict() for advice in found], "notes": notes}
            self.stdout.write(json.dumps(document, indent=2))
        else:
            show_advice(self.console, found, notes)

    # ---------------------------------------------------------------- and back

    def _rollback(self, session: running.Session) -> None:
        if self.options["dry_run"] or self.options["sql"]:
            self._show_rollback()
            return
        with running.session_lock(session):
            run = running.last_run()
            done = (
                running.run_rollback(run=run, executor=self._executor(session), actor=ACTOR)
                if run
                else []
            )
            walls = running.walls_restore(self._executor(session)) if run else None
        if self.options["json"]:
            statements = [step.sql for step in done]
            document = {"run": str(run.id) if run else None, "ran": statements}
            self.stdout.write(json.dumps(document, indent=2))
        elif run is None:
            self._say(NOTHING_TO_UNDO)
        else:
            self._say(f"The run of {_when(run)} is undone: {len(done)} statement(s) ran.")
            self._say_cut_off(run)
            self._say_walls(walls)

    def _say_cut_off(self, run: OptimizeRun | None) -> None:
        """Or somebody who wants to undo that run undoes a good one and does not see it."""
        later = running.cut_off_since(run) if run else None
        if later is not None:
            self._say(
                f"The run of {_when(later)} was later; it was cut off and left nothing to undo. "
                "What it left behind, optimize_db repairs."
            )

    def _show_rollback(self) -> None:
        run = running.last_run()
        steps = running.rollback_steps(run) if run else []
        if self.options["sql"]:
            changes = [(f"Undo the run of {_when(run)}", steps)] if run else []
            self._print_script(changes)
        elif self.options["json"]:
            document = {
                "run": str(run.id) if run else None,
                "would_run": [step.sql for step in steps],
            }
            self.stdout.write(json.dumps(document, indent=2))
        else:
            self._say(f"Would undo the run of {_when(run)}:" if run else NOTHING_TO_UNDO)
            self._say_cut_off(run)
            show_steps(self.console, steps)


def _refuse_contradictions(options: dict[str, Any]) -> None:
    def refuse(sentence: str) -> None:
        raise CommandError(sentence, returncode=2)

    shows = [name for name in ("dry_run", "sql", "check") if options[name]]
    if len(shows) > 1:
        refuse("Choose one of --dry-run, --sql and --check.")
    if options["rollback"] and (options["check"] or options["phase"]):
        refuse("--rollback undoes a whole run: leave --check and --phase out.")
    if options["advise"] and (shows or options["rollback"] or options["phase"]):
        refuse("--advise is a report of its own: leave the other modes out.")
    if options["sql"] and options["json"]:
        refuse("--sql prints a script and --json a document: choose one.")
    if options["lock_timeout"] is not None and options["lock_timeout"] < 1:
        refuse("--lock-timeout must be 1 or more milliseconds; 0 would wait for ever.")
    if not 0 <= options["parallel"] <= MOST_PARALLEL:
        refuse(f"--parallel takes 0 to {MOST_PARALLEL}.")


def _refuse_if_too_large(session: running.Session, plan: list[Change]) -> None:
    space = space_for(session.work, estimated_sizes(session.work, plan))
    if space and not space.is_enough:
        raise NoSpaceError(f"Nothing was done: {space}. Make room and run it again.")


def _when(run: OptimizeRun) -> str:
    return f"{run.started_at:%Y-%m-%d %H:%M:%S} UTC"


def _verdict(found: list[Change]) -> str:
    named = ", ".join(f"{change.name} ({change.kind})" for change in found[:5])
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    repairable = any(change.steps for change in found)
    advice = "optimize_db repairs it." if repairable else "See the reasons above."
    return f"{len(found)} object(s) are not as declared: {named}{more}. {advice}"
