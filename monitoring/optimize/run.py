"""Runs a plan online: short waits for locks, retries, a record of what was done, the undoing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import Any, Self, TypeVar

from django.db import Error, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.timezone import now

from monitoring.audit import Actor, audit_write
from monitoring.models import DeclaredIndex, OptimizeOutcome, OptimizeRun
from monitoring.optimize.advise import Advice, advise, is_suspicious, notes
from monitoring.optimize.facts import Facts, read_facts, read_index_facts
from monitoring.optimize.plan import INSTANT, Change, Step
from monitoring.optimize.state import State, actual_state
from registry.db.direct import (
    BRIEF_LOCK_MS,
    PoolerError,
    as_default,
    direct_connections,
    is_about_locks,
    set_lock_timeout,
)
from registry.db.roles import Raised, walls_pending, walls_raise

__all__ = [
    "BRIEF_LOCK_MS",
    "CONCURRENT_LOCK_MS",
    "PARALLEL",
    "BusyError",
    "Executor",
    "PoolerError",
    "Reporter",
    "Session",
    "StepError",
    "cut_off_since",
    "last_run",
    "open_session",
    "patiently",
    "read_actual",
    "read_advice",
    "read_use",
    "rollback_steps",
    "run_plan",
    "run_rollback",
    "session_lock",
    "walls_restore",
    "walls_steps",
]

T = TypeVar("T")

APPLICATION_NAME = "mcp-gateway optimize_db"
# A run that is killed leaves its session at work: it is to notice within this time that nobody
# waits for it any more, and the next run waits a little longer for its lock.
NOTICE_MS = 1_000
PATIENCE_SECONDS = 3.0
ADVISORY_LOCK = int.from_bytes(b"mcp-opt\0", "big")

# A build that others help is done somewhat sooner, and traffic waits for a processor meanwhile.
PARALLEL = 0
CONCURRENT_LOCK_MS = 60_000  # a concurrent build makes nobody wait and may be patient
BACK_OFF_SECONDS = (0.5, 1.0, 2.0, 4.0)  # after the 1st, 2nd, … attempt
POLL_SECONDS = 0.3
LOCKED = "A table is locked against reading"


class BusyError(Exception):
    """Another optimize_db holds the lock; the message says which session."""


class StepError(Exception):
    """A statement failed for good; the message is the database's, with who was in the way."""


class Reporter:
    """Hears what happens; this one keeps it to itself."""

    def change_started(self, change: Change) -> None: ...

    def change_failed(self, reason: str) -> None: ...

    def step_started(self, step: Step) -> None: ...

    def step_progress(self, share: float | None, doing: str) -> None: ...

    def step_retried(self, *, attempt: int, seconds: float, reason: str) -> None: ...

    def step_finished(self, step: Step, seconds: float) -> None: ...


# --------------------------------------------------------------------------- connections


@dataclass(frozen=True, slots=True)
class Session:
    """Two direct connections in autocommit: one works, the other one watches it."""

    work: BaseDatabaseWrapper
    watch: BaseDatabaseWrapper


@contextmanager
def open_session(
    *, lock_timeout_ms: int = BRIEF_LOCK_MS, parallel: int = PARALLEL
) -> Iterator[Session]:
    """Connections of their own, past the pooler where DATABASE_DIRECT_URL names a way.

    `parallel`: how many processes may help one that builds an index.
    """
    name, patience = APPLICATION_NAME, lock_timeout_ms
    with direct_connections(application_name=name, lock_timeout_ms=patience) as (work, watch):
        _end_with_client(work)
        _one(
            work,
            "SELECT set_config('max_parallel_maintenance_workers', %s, false)",
            [str(parallel)],
        )
        yield Session(work=work, watch=watch)


def _end_with_client(connection: BaseDatabaseWrapper) -> None:
    with suppress(Error), connection.cursor() as cursor:  # some platforms cannot
        cursor.execute(
            "SELECT set_config('client_connection_check_interval', %s, false)", [f"{NOTICE_MS}ms"]
        )


def _one(connection: BaseDatabaseWrapper, query: str, parameters: Sequence[Any] = ()) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(query, parameters)
        return cursor.fetchone()


def _backend(connection: BaseDatabaseWrapper) -> int:
    return int(_one(connection, "SELECT pg_backend_pid()")[0])


@contextmanager
def session_lock(session: Session) -> Iterator[None]:
    """One optimize_db at a time in a database; BusyError says who runs already."""
    until = time.monotonic() + PATIENCE_SECONDS
    while not _one(session.work, "SELECT pg_try_advisory_lock(%s)", [ADVISORY_LOCK])[0]:
        if time.monotonic() > until:
            raise BusyError(_holder(session.work))
        time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        with suppress(Error):  # a connection that broke has given it back
            _one(session.work, "SELECT pg_advisory_unlock(%s)", [ADVISORY_LOCK])


def _holder(connection: BaseDatabaseWrapper) -> str:
    row = _one(
        connection,
        "SELECT a.pid, a.usename, host(a.client_addr), a.backend_start FROM pg_locks l"
        " JOIN pg_stat_activity a USING (pid)"
        " WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1"
        " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        " AND (l.classid::bigint << 32 | l.objid::bigint) = %s",
        [ADVISORY_LOCK],
    )
    if row is None:
        return "Another optimize_db ran until just now: try again."
    pid, user, address, since = row
    started = f", since {since:%H:%M:%S}" if since else ""
    return (
        f"Another optimize_db runs already: session {pid} of {user or 'another role'}"
        f" from {address or 'this machine'}{started}. Wait for it, or end it there."
    )


# --------------------------------------------------------------------------- one statement

_PROGRESS = """
    SELECT phase, blocks_done, blocks_total, tuples_done, tuples_total
    FROM pg_stat_progress_create_index WHERE pid = %s
"""
_BLOCKERS = """
    SELECT a.pid, a.usename, a.state, extract(epoch FROM now() - a.xact_start), a.application_name
    FROM unnest(pg_blocking_pids(%s)) b (pid)
    JOIN pg_stat_activity a USING (pid)
    ORDER BY a.xact_start LIMIT 3
"""


class _Watcher:
    """Follows a running statement from the other connection: progress, and who is in the way."""

    def __init__(self, session: Session, reporter: Reporter) -> None:
        self.blockers = ""
        self._pid = _backend(session.work)
        self._connection = session.watch
        self._reporter = reporter
        self._done = Event()
        self._thread = Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._done.wait(POLL_SECONDS):
            try:
                self._look()
            except Error:
                return  # watching is a comfort; the statement itself is not affected

    def _look(self) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute(_BLOCKERS, [self._pid])
            blockers = ", ".join(_blocker(*row) for row in cursor.fetchall())
            cursor.execute(_PROGRESS, [self._pid])
            progress = cursor.fetchone()
        if blockers:
            self.blockers = blockers
            self._reporter.step_progress(None, f"waiting for {blockers}")
        elif progress:
            phase, *counts = progress
            is_counted = "scanning" in phase or "loading" in phase
            self._reporter.step_progress(_share(*counts) if is_counted else None, phase)


def _blocker(
    pid: int, user: str | None, state: str | None, seconds: Any, application: str | None
) -> str:
    age = f" {float(seconds):.0f} s" if seconds is not None else ""
    name = f", {application}" if application else ""
    return f"session {pid} of {user or 'another role'} ({state or 'active'}{age}{name})"


def _share(
    blocks_done: int, blocks_total: int, tuples_done: int, tuples_total: int
) -> float | None:
    if tuples_total:
        return tuples_done / tuples_total
    return blocks_done / blocks_total if blocks_total else None


@dataclass(slots=True)
class Executor:
    """Runs steps one after the other; `lock_timeout_ms` None means the defaults above."""

    session: Session
    reporter: Reporter = field(default_factory=Reporter)
    lock_timeout_ms: int | None = None

    def execute(self, step: Step) -> float:
        """Run one statement, again after a lock time-out; seconds taken. StepError in the end."""
        self.reporter.step_started(step)
        began = time.monotonic()
        for attempt, seconds in enumerate((*BACK_OFF_SECONDS, None), start=1):
            reason, may_retry = self._attempt(step, is_first=attempt == 1)
            if not reason:
                break
            if not may_retry or seconds is None:
                self._clean_up(step)
                raise StepError(reason)
            self.reporter.step_retried(attempt=attempt, seconds=seconds, reason=reason)
            time.sleep(seconds)
        taken = time.monotonic() - began
        self.reporter.step_finished(step, taken)
        return taken

    def _attempt(self, step: Step, *, is_first: bool) -> tuple[str, bool]:
        """Why it failed ('' when it did not) and whether another attempt may help.

        A concurrent build that was cut off left an invalid index in its own way, and
        IF NOT EXISTS would take it for a good one: so it is dropped before the next attempt.
        """
        is_in_the_way = step.cleanup and not is_first
        statements = [step.cleanup, step.sql] if is_in_the_way else [step.sql]
        patience = CONCURRENT_LOCK_MS if step.is_concurrent else BRIEF_LOCK_MS
        set_lock_timeout(self.session.work, self.lock_timeout_ms or patience)
        with _Watcher(self.session, self.reporter) as watcher:
            try:
                with self.session.work.cursor() as cursor:
                    for statement in statements:
                        cursor.execute(statement)
            except Error as error:
                is_lock = is_about_locks(error)
                sentence = _sentence(error)
                if is_lock and watcher.blockers:
                    sentence += f" (waited for {watcher.blockers})"
                return sentence, is_lock
        if step.builds and not self._is_valid(step.builds):
            return f"{step.builds} was built but is not valid", True
        return "", False

    def _is_valid(self, index: str) -> bool:
        found = _one(
            self.session.work,
            "SELECT bool_and(x.indisvalid AND x.indisready) FROM pg_index x"
            " JOIN pg_class i ON i.oid = x.indexrelid"
            " WHERE i.relname = %s AND pg_table_is_visible(i.oid)",
            [index],
        )
        # NULL: a partition's index in a schema off the path; its parent's validity covers it.
        return found[0] is not False

    def _clean_up(self, step: Step) -> None:
        """Remove what the failed attempt left; what resists is repaired by the next run."""
        if step.cleanup:
            set_lock_timeout(self.session.work, self.lock_timeout_ms or BRIEF_LOCK_MS)
            try:
                with self.session.work.cursor() as cursor:
                    cursor.execute(step.cleanup)
            except Error:
                self.reporter.step_progress(None, "an invalid index stays for the next attempt")


def read_actual(session: Session, reporter: Reporter) -> State:
    """What the database has, again after a lock time-out; StepError in the end.

    PostgreSQL opens a table to spell out a partial index's predicate, and so waits for whoever
    has locked the table against reading.
    """
    return patiently(lambda: actual_state(session.work), reporter, trouble=LOCKED)


def read_use(session: Session, reporter: Reporter, *, actual: State) -> Facts:
    """Of indexes: which are used, and since when that is counted."""
    return patiently(
        lambda: read_index_facts(session.work, actual=actual), reporter, trouble=LOCKED
    )


def read_advice(session: Session, reporter: Reporter) -> tuple[list[Advice], list[str]]:
    """Advice and notes; the session changes nothing, not even by mistake."""
    _one(session.work, "SELECT set_config('default_transaction_read_only', 'on', false)")
    facts = patiently(
        lambda: read_facts(session.work, is_suspicious=is_suspicious), reporter, trouble=LOCKED
    )
    return advise(facts), notes(facts)


def walls_restore(executor: Executor) -> Raised:
    """Bring grants, policies and flags to their declaration: what was made anew has none yet.

    Only what differs is touched. StepError where a table stays in use.
    """
    work = executor.session.work
    set_lock_timeout(work, executor.lock_timeout_ms or BRIEF_LOCK_MS)
    with as_default(work):
        return patiently(
            walls_raise, executor.reporter, trouble="Grants and policies are not all restored"
        )


def walls_steps(session: Session, *, new_views: Iterable[str]) -> list[Step] | None:
    """What `walls_restore` would run after the plan. None: roles have to be made first."""
    with as_default(session.work):
        pending = walls_pending(new_views=new_views)
    return None if pending is None else [_wall_step(step.text()) for step in pending]


def _wall_step(statement: str) -> Step:
    is_grant = statement.startswith(("GRANT", "REVOKE"))
    lock = "none on tables" if is_grant else INSTANT.format("the table")
    return Step(sql=statement, lock=lock)


def patiently(work: Callable[[], T], reporter: Reporter, *, trouble: str) -> T:
    """The result of what may be repeated, again after a lock time-out; StepError in the end."""
    for attempt, seconds in enumerate((*BACK_OFF_SECONDS, None), start=1):
        try:
            return work()
        except Error as error:
            if not is_about_locks(error):
                raise
            reason = f"{trouble}: {_sentence(error)}"
            if seconds is None:
                raise StepError(f"{reason}. Try again when the lock is gone.") from None
            reporter.step_retried(attempt=attempt, seconds=seconds, reason=reason)
            time.sleep(seconds)
    raise AssertionError("the last attempt returns or raises")


def _sentence(error: Error) -> str:
    diagnostics = getattr(error.__cause__, "diag", None)
    parts = [getattr(diagnostics, name, None) for name in ("message_primary", "message_detail")]
    return ": ".join(part.rstrip(".") for part in parts if part) or str(error).strip()


# --------------------------------------------------------------------------- whole runs


def run_plan(
    *, plan: Sequence[Change], declared: State, executor: Executor, actor: Actor
) -> tuple[OptimizeRun | None, list[str]]:
    """Carry the plan out; the record (None when nothing was to be done) and what failed.

    One change that fails does not keep the others from being made. The record is written after
    each statement, so that a run that is killed can be rolled back too.
    """
    _close_cut_off()
    _remember_declared(declared)
    todo = [change for change in plan if change.steps]
    if not todo:
        return None, []
    run = OptimizeRun.objects.create()
    failures: list[str] = []
    for change in todo:
        executor.reporter.change_started(change)
        try:
            _make_change(run, change, executor)
        except StepError as failure:
            failures.append(f"{change.name}: {failure}")
            executor.reporter.change_failed(str(failure))
    _finish(run, failures, actor)
    return run, failures


def _close_cut_off() -> None:
    """The lock is ours, so whatever is said to run still was killed."""
    OptimizeRun.objects.filter(outcome=OptimizeOutcome.RUNNING).update(
        outcome=OptimizeOutcome.FAILED,
        error="The process ended before the run did; the next run went on from there.",
        updated_at=now(),
    )


def _make_change(run: OptimizeRun, change: Change, executor: Executor) -> None:
    for step in change.steps:
        seconds = executor.execute(step)
        run.statements.append(
            {
                "object": change.name,
                "sql": step.sql,
                "seconds": round(seconds, 3),
                "inverse": [inverse.as_dict() for inverse in step.inverse],
            }
        )
        run.save(update_fields=["statements", "updated_at"])


@transaction.atomic
def _finish(run: OptimizeRun, failures: list[str], actor: Actor) -> None:
    run.outcome = OptimizeOutcome.FAILED if failures else OptimizeOutcome.DONE
    run.error = "\n".join(failures)
    run.finished_at = now()
    run.save(update_fields=["outcome", "error", "finished_at", "updated_at"])
    details = {"outcome": run.outcome, "statements": len(run.statements)}
    audit_write(
        actor=actor,
        action="database.optimize",
        resource=run,
        details=details,
        success=not failures,
        error_message=run.error,
    )


@transaction.atomic
def _remember_declared(declared: State) -> None:
    """What `index_usage_summary.is_declared` reads. A run that finds it as it is writes nothing."""
    told = {
        index.name: (index.table, f"{'UNIQUE ' if index.is_unique else ''}{index.using}")
        for index in declared.indexes.values()
    }
    kept = {
        name: (table, definition)
        for name, table, definition in DeclaredIndex.objects.values_list(
            "index_name", "table_name", "definition"
        )
    }
    DeclaredIndex.objects.filter(index_name__in=kept.keys() - told.keys()).delete()
    DeclaredIndex.objects.bulk_create(
        [
            DeclaredIndex(index_name=name, table_name=table, definition=definition)
            for name, (table, definition) in told.items()
            if kept.get(name) != (table, definition)
        ],
        update_conflicts=True,
        unique_fields=["index_name"],
        update_fields=["table_name", "definition", "updated_at"],
    )


def last_run() -> OptimizeRun | None:
    """The newest run that can be undone and was not; statistics alone leave nothing to undo."""
    runs = OptimizeRun.objects.filter(rolled_back_at=None).order_by("-started_at")
    return next((run for run in runs.iterator(chunk_size=20) if rollback_steps(run)), None)


def cut_off_since(run: OptimizeRun) -> OptimizeRun | None:
    """The newest run after this one that did not come to its end, and left nothing to undo."""
    later = OptimizeRun.objects.filter(started_at__gt=run.started_at, rolled_back_at=None)
    return later.exclude(outcome=OptimizeOutcome.DONE).order_by("-started_at").first()


def rollback_steps(run: OptimizeRun) -> list[Step]:
    """What undoes a run, the last statement first."""
    return [step for _, steps in _undoing(run) for step in steps]


def _undoing(run: OptimizeRun) -> Iterator[tuple[dict[str, Any], list[Step]]]:
    for statement in reversed(run.statements):
        if not statement.get("undone"):
            yield statement, [Step.from_dict(raw) for raw in statement["inverse"]]


def run_rollback(*, run: OptimizeRun, executor: Executor, actor: Actor) -> list[Step]:
    """Undo a run; the statements that ran. StepError leaves the rest for another attempt."""
    done: list[Step] = []
    for statement, steps in _undoing(run):
        for step in steps:
            executor.execute(step)
            done.append(step)
        statement["undone"] = True
        run.save(update_fields=["statements", "updated_at"])
    with transaction.atomic():
        run.rolled_back_at = now()
        run.save(update_fields=["rolled_back_at", "updated_at"])
        details = {"statements": len(done)}
        audit_write(actor=actor, action="database.rollback", resource=run, details=details)
    return done
