"""The task that takes rows from the calls to their tables. See the package's notes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.utils.timezone import now

from monitoring.logwriter.denials import WINDOW_SECONDS, Denial, Denials
from monitoring.logwriter.metrics import Connections, ServerSums
from monitoring.logwriter.rows import AUDIT_LOGS, AuditRow, Batch, MetricRow, RequestRow, Row, Table
from monitoring.logwriter.spool import LONGEST_REST, Loss, Segment, Spool, SpoolFull, strays
from monitoring.logwriter.store import Later, NoPartition, Refused, Store, Unavailable
from registry.db.pool import Pool

__all__ = ["Backlog", "LogWriter", "Status", "default_folder", "spool_check"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
AnyRow = TypeVar("AnyRow", bound=Row)

FLUSH_SECONDS = 0.5
BATCH_ROWS = 20_000
BATCH_SECONDS = 10.0  # for PostgreSQL to take one batch
SLICE_ROWS = 200  # made into lines before other tasks of the event loop have their turn
MAX_WAITING = 100_000
STOP_SECONDS = 5.0
LONGEST_PAUSE = 5.0  # between tries while PostgreSQL is away
LOADS_A_ROUND = 4  # segments, so that new rows do not wait for a long backlog
MINUTE = WINDOW_SECONDS
FOR = "database"  # a folder's file that tells a person which database its rows are for

# The spool's open segments, by what has to happen before they are loaded.
AUDIT = "audit"  # nothing: the journal of audit rows
HELD = "held"  # the minute's end
AWAY = "away"  # PostgreSQL's return
LATER = "later"  # somebody makes a partition, a table or a grant
RELIEF = "relief"  # nothing: what was too much for memory beside one slow write


@dataclass(frozen=True, slots=True)
class Status:
    """What a writer has done and has before it: rows, and bytes of the whole machine's spool."""

    written: int
    waiting: int
    spooled: int  # that went to files for the time being
    dropped: int
    refused: int
    damaged_bytes: int  # of files, in the place of rows
    damaged_rows: int  # an estimate
    unreadable_files: int  # left out for now
    spooled_bytes: int
    available: bool


@dataclass(frozen=True, slots=True)
class Backlog:
    """A process's own rows that are in no table: in memory, in files, and lost since the start."""

    waiting: int
    spooled: int
    lost: int


def default_folder() -> Path:
    """Below GATEWAY_SPOOL_DIR one folder a database, so that no other one gets the rows."""
    digest = sha256(_address().encode()).hexdigest()[:16]
    return Path(settings.GATEWAY_SPOOL_DIR) / digest


def _address() -> str:
    where = connections["default"].settings_dict
    return "\n".join(str(where[part]) for part in ("ADDRESS", "NAME"))


def spool_check() -> None:
    """Make this database's folder; ImproperlyConfigured if it is unusable.

    Warns of rows in other databases' folders, which may be this one's under another address. Each
    folder says in a file of its own what address it is for.
    """
    ours, (host, port, name) = default_folder(), _address().split("\n")
    try:
        ours.mkdir(mode=0o700, parents=True, exist_ok=True)
        (ours / FOR).write_text(
            f"{name} at {host or 'the default host'}, port {port or 'left out'}"
        )
    except OSError as error:
        raise _unusable(ours, error) from None
    with contextlib.suppress(OSError):  # others' folders are not ours to complain of
        for folder, files in strays(ours).items():
            named = folder / FOR
            logger.warning(
                "log rows in %s (files: %d; database: %s) were left by gateways that have ended. "
                "If that is this database under another address, move its *.spool files to %s: "
                "they are loaded within a minute.",
                folder,
                files,
                named.read_text() if named.exists() else "unknown",
                ours,
            )


def _unusable(folder: Path, error: OSError) -> ImproperlyConfigured:
    return ImproperlyConfigured(
        f"GATEWAY_SPOOL_DIR: {folder} cannot be used ({error.strerror}); "
        "name a folder that this user may write."
    )


class LogWriter:
    """Gathers rows and copies them; `start` and `stop` belong to the process's life.

    All methods are for the event loop that `start` is called in.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        folder: Path | None = None,
        max_bytes: int | None = None,
        gauges: Connections | None = None,
    ) -> None:
        self._pool, self._store = pool, Store(pool)
        self._spool = Spool(
            folder or default_folder(),
            max_bytes=max_bytes or settings.GATEWAY_SPOOL_MAX_BYTES,
        )
        self._gauges = gauges
        self._denials = Denials(put=self.journal, hold=self._hold)
        self._sums = ServerSums()
        self._waiting: deque[RequestRow | MetricRow] = deque()
        self._audits: deque[AuditRow] = deque()  # those no file took: never dropped
        self._unheld: list[Batch] = []  # last versions of held rows that no file took
        self._batches: deque[Batch] = deque()  # made into lines, not yet written
        self._set_back: deque[Batch] = deque()  # of these, for the next minute
        self._files = ThreadPoolExecutor(1, "spool")  # one thread: file work keeps its order
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._relief: asyncio.Task[None] | None = None
        self._stopping = False
        self._pause = FLUSH_SECONDS
        self._away_until = 0.0
        self._minute_began = time.monotonic()
        self._dropped_told = 0
        self._later_told = self._unfiled_told = -MINUTE
        self.written = self.spooled = self.dropped = self.refused = 0
        self.damaged_bytes = self.damaged_rows = 0

    @property
    def status(self) -> Status:
        """Reads the spool folder: for a page or a scrape, not for each call."""
        return Status(
            written=self.written,
            waiting=self._in_memory(),
            spooled=self.spooled,
            dropped=self.dropped,
            refused=self.refused,
            damaged_bytes=self.damaged_bytes,
            damaged_rows=self.damaged_rows,
            unreadable_files=self._spool.unreadable,
            spooled_bytes=self._spool.bytes(),
            available=not self._is_away(),
        )

    @property
    def backlog(self) -> Backlog:
        """Reads no folder, so for every few seconds. Leaves audit rows on their usual way out."""
        return Backlog(
            waiting=self._in_memory(),
            spooled=self._spool.rows(but=(AUDIT, HELD)),
            lost=self.dropped + self.refused,
        )

    def _in_memory(self) -> int:
        batches = (*self._batches, *self._set_back, *self._unheld)
        return len(self._audits) + len(self._waiting) + _count(batches)

    # ------------------------------------------------------------ what callers leave

    def put(self, row: RequestRow | MetricRow) -> None:
        """Take a row. Past the bound the oldest is dropped and counted, never silently."""
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            self.dropped += 1
        self._waiting.append(row)
        if len(self._waiting) == BATCH_ROWS:
            self._wake.set()
        elif len(self._waiting) >= MAX_WAITING // 2 and self._task and self._relief is None:
            # The round is held up by one write, or it would have taken these rows long ago.
            self._relief = asyncio.create_task(self._relieve(), name="log-writer-relief")

    def journal(self, row: AuditRow) -> None:
        """Take an audit row: it outlives this process from here on, if any file takes it."""
        if not self._file(AUDIT, row):
            self._audits.append(row)

    def deny(self, denial: Denial, *, at: datetime) -> None:
        """Take a refused call; repetitions become one row a minute."""
        self._denials.note(denial, at=at)

    def _hold(self, row: AuditRow) -> None:
        """Take the first version of a row; the last one is in memory, and comes in any case."""
        self._file(HELD, row)

    def _file(self, purpose: str, *rows: AuditRow) -> bool:
        """One write of some hundred bytes into the page cache: too short for a thread."""
        return self._append(purpose, Batch.of(AUDIT_LOGS, [row.line() for row in rows]))

    def _append(self, purpose: str, batch: Batch) -> bool:
        try:
            self._spool.append(purpose, batch)
        except OSError as error:
            self._tell_unfiled(error)
            return False
        return True

    # ------------------------------------------------------------ life

    def start(self) -> None:
        """Open the spool and start the task; ImproperlyConfigured if the folder is unusable."""
        try:
            self._spool.open()
            self._spool.inherit()
        except OSError as error:
            raise _unusable(self._spool.folder, error) from None
        self._task = asyncio.create_task(self._run(), name="log-writer")

    async def stop(self) -> None:
        """Write what waits, for five seconds at most; the rest goes to the spool."""
        if self._task is None:
            return
        self._stopping = True
        self._wake.set()
        await asyncio.wait({self._task}, timeout=STOP_SECONDS)
        # Rows first: a try that is called off may take longer than who stops us has patience.
        self._task.cancel()
        if self._relief is not None:
            await asyncio.wait({self._relief})  # file work that has an end
        await self._make_lines()
        self._bring_back()
        await self._keep_batches()
        await asyncio.gather(self._task, return_exceptions=True)
        left = await self._in_thread(self._spool.close)
        self._files.shutdown()
        if left:
            logger.warning(
                "log rows wait in %s (%d files): the next gateway process loads them",
                self._spool.folder,
                left,
            )
        lost = self.dropped + _count((*self._batches, *self._unheld))
        if lost:
            logger.error("log rows lost since the start: %d", lost)

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), FLUSH_SECONDS)
            self._wake.clear()
            stopping = self._stopping
            try:
                await self._round(stopping=stopping)
            except Exception:
                # Whatever it is, the task must live: without it rows gather until they are lost.
                logger.exception("the log writer failed and goes on (%s)", self.status)
            if stopping:
                return

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._files, work)

    # ------------------------------------------------------------ a round

    async def _round(self, *, stopping: bool = False) -> None:
        """Everything that waits, to PostgreSQL if it is there, else to the spool."""
        # While audit rows cannot leave memory the denials' minute goes on, so there are never many.
        is_stuck = self._has_audits_left()
        await self._make_lines()
        if stopping or time.monotonic() - self._minute_began >= MINUTE:
            await self._end_minute(close_denials=stopping or not is_stuck)
        if self._is_away() and not stopping:
            await self._keep_batches()
            return
        before = self.written, self._away_until
        try:
            await self._write_all(stopping=stopping)
        except Unavailable as error:
            await self._went_away(error)
        else:
            # With nothing to write nobody was asked.
            if self.written > before[0] and self._away_until == before[1]:
                self._came_back()

    async def _make_lines(self) -> None:
        """What waits becomes batches of lines."""
        await self._drain(self._audits, into=self._batches)
        await self._drain(self._waiting, into=self._batches)

    async def _drain(self, rows: deque[AnyRow], *, into: deque[Batch]) -> None:
        """In slices: calls go on in between, and leave rows that this does not wait for."""
        filling: dict[Table, Batch] = {}
        waiting = len(rows)
        while waiting > 0:
            for _ in range(min(SLICE_ROWS, len(rows))):
                self._make_line(rows.popleft(), filling, into)
            waiting -= SLICE_ROWS
            await asyncio.sleep(0)

    def _make_line(self, row: Row, filling: dict[Table, Batch], into: deque[Batch]) -> None:
        try:
            line = row.line()
        except Exception:
            self.refused += 1
            logger.exception("%s row %s is not fit to be written", row.table.name, row.id)
            return
        if isinstance(row, RequestRow):
            self._sums.add(row)
        batch = filling.get(row.table)
        if batch is None or len(batch.lines) >= BATCH_ROWS:
            batch = filling[row.table] = Batch.of(row.table, [])
            into.append(batch)
        batch.lines.append(line)

    async def _write_all(self, *, stopping: bool) -> None:
        """New rows, then some of what waits in files; all of it when this is the last round."""
        # Before the files: a held row's first version, if it is there, must not come first.
        unheld = self._unheld
        self._unheld = [piece for batch in unheld for piece in await self._write(batch)]
        while self._batches:
            for piece in await self._write(self._batches[0]):
                if not await self._keep(LATER, piece):
                    self._set_back.append(piece)
            self._batches.popleft()
        for purpose in (AUDIT, AWAY):
            self._spool.seal(purpose)
        loads = 0
        while self._spool.pending and (stopping or loads < LOADS_A_ROUND):
            await self._load(self._spool.pending[0])
            loads += 1
            if stopping:
                self._spool.seal(AUDIT)  # what loading left to say
        if self._spool.pending:
            self._wake.set()

    async def _load(self, segment: Segment) -> None:
        """A segment's rows; what is left of them goes to another one, or stays where it is."""
        try:
            batches = await self._read(segment)
        except OSError as error:
            self._pass_over(segment, error)
            return
        left = [piece for batch in batches for piece in await self._write(batch)]
        is_all_left = bool(left) and _count(left) == _count(batches)
        if is_all_left or not await self._keep_all(left):
            self._spool.rest(segment)
            return
        try:
            await self._in_thread(partial(self._spool.remove, segment))
        except OSError as error:
            self._pass_over(segment, error)

    async def _read(self, segment: Segment) -> list[Batch]:
        was_known = segment.loss is not None
        batches = await self._in_thread(partial(self._spool.read, segment))
        if segment.loss is not None and not was_known:
            self._count_damage(segment.loss)
        return batches

    def _count_damage(self, loss: Loss) -> None:
        """Where the rows are missed, a row says what is known of them."""
        self.damaged_bytes += loss.bytes
        self.damaged_rows += loss.rows or 0
        details = {"bytes": loss.bytes, "rows_estimated": loss.rows, "file": str(loss.kept)}
        self._audit("log_spool.damage", details, at=now())

    def _pass_over(self, segment: Segment, error: OSError) -> None:
        """Leave out a file that cannot be read (or removed): others come after it."""
        self._spool.rest(segment, longest=True)
        if segment.is_told:
            return
        segment.is_told = True
        logger.error(
            "spool: %s is left out, its rows may be missing in the logs: %s. "
            "It is tried again every %d minutes.",
            segment.path,
            error,
            LONGEST_REST,
        )

    async def _keep_all(self, pieces: list[Batch]) -> bool:
        kept = [await self._keep(LATER, piece, from_spool=True) for piece in pieces]
        return all(kept)

    async def _write(self, batch: Batch) -> list[Batch]:
        """Have a batch written; halve it where PostgreSQL refuses a row, until that is alone.

        Returns what has to be tried again later.
        """
        pieces, left = [batch], []
        while pieces:
            piece = pieces.pop()
            try:
                await self._store.write(piece, seconds=BATCH_SECONDS)
                self.written += len(piece.lines)
            except Later as error:
                days = piece.days() if isinstance(error, NoPartition) else [piece]
                if len(days) > 1:
                    pieces += days
                elif not await self._give_up(piece, error):
                    self._tell_later(error)
                    left.append(piece)
            except Refused as error:
                if len(piece.lines) > 1:
                    pieces += piece.halves()
                elif not await self._refuse(piece, error):
                    left.append(piece)
        return left

    async def _end_minute(self, *, close_denials: bool = True) -> None:
        at, ended = now(), time.monotonic()
        seconds, self._minute_began = ended - self._minute_began, ended
        self._waiting += self._sums.rows(at=at, seconds=seconds, connections=self._gauges)
        if close_denials:
            self._close_denials()
        self._spool.seal(LATER)
        self._spool.resume()
        self._bring_back()
        self._tell_dropped(at)
        await self._inherit()
        await self._make_lines()

    def _has_audits_left(self) -> bool:
        batches = (*self._batches, *self._set_back, *self._unheld)
        return any(batch.table is AUDIT_LOGS for batch in batches)

    def _close_denials(self) -> None:
        """The last versions of held rows, beside their first ones if any file takes them.

        What none takes goes to PostgreSQL; until it is there the first versions stay back.
        """
        rows = self._denials.close_window()
        unheld = [row.line() for row in rows if not self._file(HELD, row)]
        if unheld:
            self._unheld.append(Batch.of(AUDIT_LOGS, unheld))
        if not self._unheld:
            self._spool.seal(HELD)

    async def _inherit(self) -> None:
        try:
            await self._in_thread(self._spool.inherit)
        except OSError as error:
            self._tell_unfiled(error)

    def _tell_dropped(self, at: datetime) -> None:
        """Where the rows are missed, a row says how many: in the audit log, once a minute."""
        count, self._dropped_told = self.dropped - self._dropped_told, self.dropped
        if count:
            logger.error("log rows dropped in the last minute: %d", count)
            details = {"count": count, "spool_max_bytes": self._spool.max_bytes}
            self._audit("request_log.drop", details, at=at)

    def _audit(self, action: str, details: dict[str, Any], *, at: datetime) -> None:
        self.journal(AuditRow(timestamp=at, action=action, details=details, success=False))

    # ------------------------------------------------------------ when it does not go well

    def _is_away(self) -> bool:
        return time.monotonic() < self._away_until

    async def _went_away(self, error: Unavailable) -> None:
        """Keep the rows, and ask less and less often."""
        if self._away_until == 0.0:
            logger.warning("PostgreSQL does not take log rows, they go to files: %s", error)
            # Connections of before may all be dead: each of them would cost a try.
            await self._pool.drain()
        self._pause = min(LONGEST_PAUSE, self._pause * 2)
        self._away_until = time.monotonic() + self._pause
        await self._keep_batches()

    def _came_back(self) -> None:
        if self._away_until:
            logger.warning(
                "PostgreSQL takes log rows again; still in files: %d", self.backlog.spooled
            )
        self._pause, self._away_until = FLUSH_SECONDS, 0.0

    async def _keep_batches(self) -> None:
        """What was not written goes to the spool; journalled rows of earlier rounds to the disk."""
        self._unheld = [batch for batch in self._unheld if not self._append(HELD, batch)]
        with contextlib.suppress(OSError):
            await self._in_thread(partial(self._spool.sync, AUDIT))
        for _ in range(len(self._batches)):
            if await self._keep(AWAY, self._batches[0]):
                self._batches.popleft()
            else:
                self._batches.rotate(-1)

    async def _keep(self, purpose: str, batch: Batch, *, from_spool: bool = False) -> bool:
        """Save a batch, or drop it past the bound; False if its rows must stay in memory."""
        bound = not from_spool and batch.table is not AUDIT_LOGS
        try:
            await self._in_thread(partial(self._spool.save, purpose, batch, bound=bound))
        except (SpoolFull, OSError) as error:
            if not bound:
                self._tell_unfiled(error)
                return False
            if isinstance(error, OSError):
                logger.error("log rows are dropped, the spool fails: %s", error)  # noqa: TRY400
            self.dropped += len(batch.lines)
        else:
            self.spooled += 0 if from_spool else len(batch.lines)
        return True

    async def _relieve(self) -> None:
        """To files what gathers while PostgreSQL takes its time over one batch."""
        batches: deque[Batch] = deque()
        try:
            await self._drain(self._waiting, into=batches)
            while batches:
                await self._keep(RELIEF, batches[0])
                batches.popleft()
            await self._in_thread(partial(self._spool.seal, RELIEF))
        finally:
            self._batches += batches  # none, unless it failed
            self._relief = None

    def _bring_back(self) -> None:
        self._batches += self._set_back
        self._set_back.clear()

    def _tell_unfiled(self, error: Exception) -> None:
        if time.monotonic() - self._unfiled_told < MINUTE:
            return
        self._unfiled_told = time.monotonic()
        logger.error(
            "audit rows cannot be written to files and wait in memory: %s. "
            "Make room in GATEWAY_SPOOL_DIR, or let this user write there.",
            error,
        )

    def _tell_later(self, error: Later) -> None:
        if time.monotonic() - self._later_told < MINUTE:
            return
        self._later_told = time.monotonic()
        cure = (
            "partitions are missing, `run_maintenance` makes them"
            if isinstance(error, NoPartition)
            else "run `init_db`, or grant what is missing"
        )
        logger.error("log rows wait in files (%s): %s", cure, error)

    async def _give_up(self, batch: Batch, error: Later) -> bool:
        """Leave out rows for which nobody will make a partition; audit rows are kept aside."""
        if not isinstance(error, NoPartition) or not await self._store.is_too_old(
            batch, seconds=BATCH_SECONDS
        ):
            return False
        if not await self._set_aside(batch):
            return False
        self.dropped += len(batch.lines)
        logger.error(
            "%d rows of %s are older than its oldest partition and are left out: %s",
            len(batch.lines),
            batch.table.name,
            batch.day,
        )
        return True

    async def _refuse(self, batch: Batch, error: Refused) -> bool:
        """One row that no try will get in: counted, told, and an audit row kept aside.

        False if that fails: the row has to stay where it is.
        """
        id_ = batch.lines[0].partition(b"\t")[0].decode()
        logger.error("%s row %s refused: %s", batch.table.name, id_, error)
        kept = await self._set_aside(batch)
        self.refused += kept
        return kept

    async def _set_aside(self, batch: Batch) -> bool:
        """Keep audit rows for a person to look at; False if that fails."""
        if batch.table is not AUDIT_LOGS:
            return True
        try:
            path = await self._in_thread(partial(self._spool.set_aside, batch))
        except OSError as error:
            logger.error(  # noqa: TRY400  (one line)
                "audit rows cannot be kept aside yet: %s. Make room in GATEWAY_SPOOL_DIR.", error
            )
            return False
        logger.error("%d audit rows are kept in %s", len(batch.lines), path)
        return True


def _count(batches: Iterable[Batch]) -> int:
    return sum(len(batch.lines) for batch in batches)
