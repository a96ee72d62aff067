"""Rows on disk: those that PostgreSQL could not take yet, and audit rows until it has them.

    FOLDER/spool.lock             held for the moments in which processes come and are inherited
    FOLDER/<process>.lock         held as long as the process lives
    FOLDER/<process>-<n>.spool    segments: framed records, appended, read back whole, removed
    FOLDER/<process>-<n>.refused  what a person has to look at: audit rows that PostgreSQL refused,
                                  files with damage, and those of another version

A process is a random token, never used again. Whose lock is free has ended, however it ended:
the next process renames its segments to names of its own. All of this is blocking file work; but
for `append` of a few hundred bytes it belongs into a thread.

Who removes or moves the folder takes nothing of a running process's open segments: they are made
again from their descriptors, in a folder that is made again.
"""

from __future__ import annotations

import logging
import os
import struct
import threading
import zlib
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from monitoring.logwriter.rows import TABLES, Batch
from registry.db.filelock import lock_alone, locked, open_lock
from registry.db.ids import uuid7

__all__ = ["Damage", "Loss", "Segment", "Spool", "SpoolFull", "frame", "records", "strays"]

logger = logging.getLogger(__name__)

SEGMENT_BYTES = 8 * 2**20
RECORD_LINES = 500  # what one damaged record can cost
BATCH_LINES = 20_000
LONGEST_REST = 8

# The first and last byte never occur in UTF-8, so a record's content cannot look like a start.
MAGIC = b"\xffLG\xfe"
_HEAD = struct.Struct("<4sII")  # magic, length and CRC-32 of what follows


class SpoolFull(Exception):
    """The rows would take the spool past its bound."""


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes of a segment that are no record: the end of a crash, or worse."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Loss:
    """What of a segment is no record: bytes, and rows as far as its others tell their length."""

    bytes: int
    rows: int | None
    kept: Path  # the whole file


@dataclass(slots=True, eq=False)
class Segment:
    """One file of records; `descriptor` where that is all there is left of it."""

    path: Path
    size: int = 0
    rows: int = 0
    descriptor: int | None = None
    loss: Loss | None = None  # found when it was read
    is_told: bool = False  # that it cannot be read
    pause: int = 0  # how many calls of `resume` it rests, and
    rest: int = 0  # how many are left


def frame(content: bytes) -> bytes:
    """A record: content with its length and checksum before it."""
    return _HEAD.pack(MAGIC, len(content), zlib.crc32(content)) + content


def records(data: bytes) -> Iterator[bytes | Damage]:
    """The contents of a segment's records in order; what is unreadable is told and passed over."""
    at = 0
    while at < len(data):
        content = _content(data, at)
        if content is not None:
            yield content
            at += _HEAD.size + len(content)
            continue
        start = data.find(MAGIC, at + 1)
        end = len(data) if start < 0 else start
        yield Damage(at, end - at)
        at = end


def _content(data: bytes, at: int) -> bytes | None:
    if len(data) - at < _HEAD.size:
        return None
    magic, length, checksum = _HEAD.unpack_from(data, at)
    content = data[at + _HEAD.size : at + _HEAD.size + length]
    whole = magic == MAGIC and len(content) == length
    return content if whole and zlib.crc32(content) == checksum else None


class Spool:
    """The segments of one process, and those it inherits. `pending` are closed, oldest first."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self.pending: deque[Segment] = deque()
        self._resting: list[Segment] = []
        self._token = uuid7().hex
        self._numbers = count(1)
        self._open: dict[str, tuple[Segment, int]] = {}  # by purpose: segment and descriptor
        self._at_home = threading.Lock()
        self._unsynced: set[Segment] = set()  # sealed, perhaps not on the disk itself

    # ------------------------------------------------------------ coming and going

    def open(self) -> None:
        """Make the folder and say that this process lives. OSError if the folder is unusable."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(self._gate):
            self._alive = open_lock(self._lock_of(self._token))
            lock_alone(self._alive)

    def _come_home(self) -> None:
        """Make the folder and this process's lock again if somebody took them away.

        Without the lock others would take this process's segments for left ones.
        """
        with self._at_home:
            if _is_at(self._lock_of(self._token), self._alive.fileno()):
                return
            before = self._alive
            self.open()
            before.close()
            logger.error("spool: %s was removed while in use, and has been made again", self.folder)

    def close(self) -> int:
        """Leave; returns how many segments stay for the next process. `inherit` takes them."""
        for purpose in list(self._open):
            self.seal(purpose)
        self._sync_sealed()
        left = [*self.pending, *self._resting]
        homeless = sum(segment.size for segment in left if segment.descriptor is not None)
        if homeless:
            logger.error(
                "spool: log rows of %d bytes are lost: their files were removed, and %s cannot "
                "be made again",
                homeless,
                self.folder,
            )
        with suppress(OSError), locked(self._gate):
            if not left:
                self._lock_of(self._token).unlink(missing_ok=True)
        self._alive.close()
        return len(left)

    def inherit(self) -> int:
        """Take over the segments of processes that have ended; returns how many."""
        self._come_home()
        before = len(self.pending)
        with locked(self._gate):
            for token in sorted(self._tokens() - {self._token}):
                lock = self._lock_of(token)
                with open_lock(lock) as file:
                    if lock_alone(file):
                        self._take(token)
                        lock.unlink()
        return len(self.pending) - before

    def _take(self, token: str) -> None:
        for path in sorted(self.folder.glob(f"{token}-*.spool")):
            mine = self._new_path()
            path.rename(mine)
            data = mine.read_bytes()
            self.pending.append(Segment(mine, len(data), _count_rows(data)))

    def _tokens(self) -> set[str]:
        locks = {path.stem for path in self.folder.glob("*.lock")} - {"spool"}
        return locks | {path.stem.partition("-")[0] for path in self.folder.glob("*.spool")}

    @property
    def _gate(self) -> Path:
        return self.folder / "spool.lock"

    def _lock_of(self, token: str) -> Path:
        return self.folder / f"{token}.lock"

    def _new_path(self, suffix: str = "spool") -> Path:
        return self.folder / f"{self._token}-{next(self._numbers):08d}.{suffix}"

    # ------------------------------------------------------------ writing

    def append(self, purpose: str, batch: Batch) -> None:
        """Add a batch's rows to the open segment of a purpose; after that kill -9 cannot hurt."""
        segment, descriptor = self._segment(purpose)
        size = segment.size
        try:
            for at in range(0, len(batch.lines), RECORD_LINES):
                record = frame(_packed(batch, batch.lines[at : at + RECORD_LINES]))
                _write_all(descriptor, record)
                size += len(record)
        except OSError:
            with suppress(OSError):  # half a record would count as damage
                os.ftruncate(descriptor, segment.size)
            raise
        segment.size = size
        segment.rows += len(batch.lines)
        if segment.size >= SEGMENT_BYTES:
            self.seal(purpose)

    def save(self, purpose: str, batch: Batch, *, bound: bool = True) -> None:
        """`append`, on the disk itself afterwards; SpoolFull if that would be past the bound."""
        if bound and self.bytes() + sum(map(len, batch.lines)) > self.max_bytes:
            raise SpoolFull
        self.append(purpose, batch)
        self.sync(purpose)

    def sync(self, purpose: str) -> None:
        """Have a purpose's rows on the disk itself, and all that was sealed before.

        For a thread: the event loop may append to the segment and seal it meanwhile. So files are
        opened anew here, no descriptor is shared.
        """
        segment, _ = self._open.get(purpose, (None, -1))
        if segment is not None:
            _force(segment.path)
        self._sync_sealed()

    def _sync_sealed(self) -> None:
        for segment in list(self._unsynced):
            _force(segment.path)
            self._unsynced.discard(segment)

    def seal(self, purpose: str) -> None:
        """Close a purpose's segment, if it has one, and count it among the pending.

        Stays open what is nowhere but behind its descriptor.
        """
        segment, descriptor = self._open.pop(purpose, (None, -1))
        if segment is None:
            return
        try:
            descriptor = self._in_place(segment, descriptor)
        except OSError:
            segment.descriptor = descriptor
        self._unsynced.add(segment)
        self.pending.append(segment)
        if segment.descriptor is None:
            os.close(descriptor)

    def set_aside(self, batch: Batch) -> Path:
        """Keep rows that nobody will try again; returns where."""
        self._come_home()
        path = self._new_path("refused")
        descriptor = _create(path)
        try:
            _write_all(descriptor, frame(_packed(batch, batch.lines)))
            os.fsync(descriptor)
        except OSError:
            path.unlink()
            raise
        finally:
            os.close(descriptor)
        return path

    def bytes(self) -> int:
        """The size of everything in the folder, all processes' segments together."""
        return sum(_size(path) for path in self.folder.glob("*.spool"))

    def rows(self, *, but: Collection[str] = ()) -> int:
        """How many rows wait in this process's segments, those open for some purposes left out."""
        waiting = [*self.pending, *self._resting]
        waiting += [segment for name, (segment, _) in [*self._open.items()] if name not in but]
        return sum(segment.rows for segment in waiting)

    def _segment(self, purpose: str) -> tuple[Segment, int]:
        self._come_home()
        if purpose in self._open:
            segment, descriptor = self._open[purpose]
            descriptor = self._in_place(segment, descriptor)
        else:
            segment = Segment(self._new_path())
            descriptor = _create(segment.path)
        self._open[purpose] = segment, descriptor
        return segment, descriptor

    def _in_place(self, segment: Segment, descriptor: int) -> int:
        """The descriptor of an open segment whose file is where it belongs, if need be anew."""
        if _is_at(segment.path, descriptor):
            return descriptor
        self._come_home()
        path = self._new_path()
        anew = _create(path)
        try:
            _write_all(anew, os.pread(descriptor, segment.size, 0))
        except OSError:
            os.close(anew)
            path.unlink()
            raise
        segment.path = path
        os.close(descriptor)
        return anew

    @property
    def unreadable(self) -> int:
        """How many segments were tried in vain."""
        return sum(segment.is_told for segment in (*self.pending, *self._resting))

    # ------------------------------------------------------------ reading

    def read(self, segment: Segment) -> list[Batch]:
        """A segment's rows in batches. Of two versions of a row, by its id, the later counts."""
        found: dict[tuple[str, tuple[str, ...]], dict[bytes, bytes]] = {}
        damages: list[Damage] = []
        whole = known = 0
        for record in records(_contents(segment)):
            if isinstance(record, Damage):
                damages.append(record)
                continue
            table, columns, lines = _unpacked(record)
            whole, known = whole + len(record), known + len(lines)
            if table not in TABLES or not set(columns) <= set(TABLES[table].columns):
                self._keep_foreign(segment, table)
                continue
            rows = found.setdefault((table, columns), {})
            rows.update((line.partition(b"\t")[0], line) for line in lines)
        if damages and segment.loss is None:
            self._keep_damaged(segment, damages, row_bytes=whole / known if known else None)
        return [
            Batch(TABLES[table], columns, lines[at : at + BATCH_LINES])
            for (table, columns), rows in found.items()
            for lines in [list(rows.values())]
            for at in range(0, len(lines), BATCH_LINES)
        ]

    def _keep(self, segment: Segment) -> Path:
        kept = segment.path.with_suffix(".refused")
        if not kept.exists():
            os.link(segment.path, kept)
        return kept

    def _keep_damaged(
        self, segment: Segment, damages: list[Damage], *, row_bytes: float | None
    ) -> None:
        lost = sum(damage.length for damage in damages)
        rows = max(1, round(lost / row_bytes)) if row_bytes else None
        segment.loss = Loss(lost, rows, self._keep(segment))
        logger.error(
            "spool: %d bytes of a log file, from %d on, are no whole records and are passed over: "
            "what was being written when a process was killed, or a damaged disk. They hold %s "
            "rows by the length of the others; the file stays as %s",
            lost,
            damages[0].offset,
            "an unknown number of" if rows is None else f"about {rows}",
            segment.loss.kept,
        )

    def _keep_foreign(self, segment: Segment, table: str) -> None:
        kept = self._keep(segment)
        logger.error(
            "spool: rows of '%s' were written by another version of this program and cannot be "
            "loaded; they stay in %s. Rename it to .spool under the version that wrote it.",
            table,
            kept,
        )

    def remove(self, segment: Segment) -> None:
        """Forget a pending segment: its rows are in their tables, or in another segment."""
        if segment.descriptor is None:
            segment.path.unlink(missing_ok=True)
        else:
            os.close(segment.descriptor)
        self._unsynced.discard(segment)
        self.pending.remove(segment)

    def rest(self, segment: Segment, *, longest: bool = False) -> None:
        """Leave out a pending segment for 1, 2, 4, and at last 8 calls of `resume`."""
        doubled = min(max(1, segment.pause * 2), LONGEST_REST)
        segment.pause = segment.rest = LONGEST_REST if longest else doubled
        self.pending.remove(segment)
        self._resting.append(segment)

    def resume(self) -> None:
        """Count down the rests, and have the segments again whose rest is over."""
        for segment in self._resting:
            segment.rest -= 1
        self.pending += [segment for segment in self._resting if segment.rest <= 0]
        self._resting = [segment for segment in self._resting if segment.rest > 0]


def strays(folder: Path) -> dict[Path, int]:
    """How many files with rows no living process has, by folder beside the given one."""
    found = {}
    for other in sorted(folder.parent.iterdir()):
        if other == folder or not any(other.glob("*.spool")):
            continue
        with suppress(OSError), locked(other / "spool.lock"):  # somebody else's, perhaps
            left = [path for path in other.glob("*.spool") if _size(path) and not _lives(path)]
            if left:
                found[other] = len(left)
    return found


def _lives(segment: Path) -> bool:
    """Whether the process runs that a segment is of."""
    lock = segment.with_name(f"{segment.stem.partition('-')[0]}.lock")
    if not lock.exists():
        return False
    with open_lock(lock) as file:
        return not lock_alone(file)


def _packed(batch: Batch, lines: list[bytes]) -> bytes:
    """A record's content: the table and the columns on a line, then the rows' lines."""
    head = f"{batch.table.name}\t{','.join(batch.columns)}\n".encode()
    return b"".join([head, *lines])


def _unpacked(content: bytes) -> tuple[str, tuple[str, ...], list[bytes]]:
    head, *lines = content.split(b"\n")[:-1]
    table, _, columns = head.decode().partition("\t")
    return table, tuple(columns.split(",")), [line + b"\n" for line in lines]


def _count_rows(data: bytes) -> int:
    contents = (record for record in records(data) if not isinstance(record, Damage))
    return sum(content.count(b"\n") - 1 for content in contents)  # the first line is the head


def _contents(segment: Segment) -> bytes:
    if segment.descriptor is None:
        return segment.path.read_bytes()
    return os.pread(segment.descriptor, segment.size, 0)


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is still the one at its path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def _create(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _force(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):  # loaded and removed meanwhile
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # loaded and removed meanwhile
        return 0
