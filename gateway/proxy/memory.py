"""What calls are decided by, remembered: read once, kept until PostgreSQL tells of a change.

An entry is used without asking while notices come in (see `contact`). When they do not, it is read
anew; when that is not possible either, it is used for GATEWAY_STALE_SECONDS after the last moment
at which it was known to be true. An entry that a notice has named is gone for good.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import psycopg
from django.db import OperationalError as DjangoOperationalError
from psycopg import errors

from gateway.proxy.contact import Contact, DatabaseAway, Era

__all__ = ["DATABASE_ERRORS", "SCHEMA_ERRORS", "Memory"]

logger = logging.getLogger(__name__)

K = TypeVar("K")
V = TypeVar("V")

# What says that the database does not answer, rather than that a question was wrong.
DATABASE_ERRORS = (psycopg.OperationalError, DjangoOperationalError, TimeoutError)
# What says that the database is not set up, or for another version of this program.
SCHEMA_ERRORS = (
    errors.InsufficientPrivilege,
    errors.UndefinedColumn,
    errors.UndefinedFunction,
    errors.UndefinedTable,
)
# Longer than the pool's own wait and a statement's usual time; past it the database is away.
DATABASE_SECONDS = 5.0
# A net under the notices, for changes made with triggers switched off (a restore, for instance):
# an entry in use is read again at this age, while calls go on with what is there.
REREAD_SECONDS = 60.0
# A notice without a value means every row of its table.
EVERYTHING = ""


@dataclass(frozen=True, slots=True)
class _Entry(Generic[V]):
    value: V
    labels: frozenset[str]
    read_at: float
    era: Era

    @property
    def verified_at(self) -> float:
        return max(self.read_at, self.era.until)


@dataclass(slots=True)
class _Reading(Generic[V]):
    """A read under way, and what notices named meanwhile."""

    task: asyncio.Task[V | None]
    noticed: set[str]


class Memory(Generic[K, V]):
    """A bounded map, least recently used entries forgotten first. Belongs to one event loop.

    `labels` names what a value was made of, `<table>.<column>=<value>` as in the notices.
    """

    def __init__(
        self, contact: Contact, *, size: int, labels: Callable[[V], frozenset[str]]
    ) -> None:
        self._contact = contact
        self._size = size
        self._labels = labels
        self._entries: OrderedDict[K, _Entry[V]] = OrderedDict()
        self._by_label: defaultdict[str, set[K]] = defaultdict(set)
        self._readings: dict[K, _Reading[V]] = {}
        # Look-ups that were answered from here, and those that had to ask.
        self.hits = self.reads = 0

    def __len__(self) -> int:
        return len(self._entries)

    async def get(
        self,
        key: K,
        read: Callable[[], Awaitable[V | None]],
        *,
        keep: Callable[[V], bool] = lambda _: True,
    ) -> V | None:
        """The value of a key, from memory or by `read`, which callers at the same time share.

        None, and what `keep` does not want, is never remembered: who asks for what does not exist
        pushes nothing out. Raises what `read` raises, DatabaseAway when asking is known to be vain.
        """
        contact, entry = self._contact, self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
            if entry.era is contact.era:
                if contact.clock() - entry.read_at >= REREAD_SECONDS:
                    self._reading(key, read, keep)
                self.hits += 1
                return entry.value
            if not contact.is_reachable and contact.is_recent(entry.verified_at):
                self.hits += 1
                return entry.value
        if contact.is_away:
            raise DatabaseAway("PostgreSQL is away")
        self.reads += 1
        try:
            return await asyncio.shield(self._reading(key, read, keep))
        except DATABASE_ERRORS:
            entry = self._entries.get(key)  # a notice may have taken it meanwhile
            if entry is None or not contact.is_recent(entry.verified_at):
                raise
            return entry.value

    def forget(self, label: str) -> None:
        """Drop what was made of the row that a notice names; a mere table's name drops all."""
        if "=" not in label:
            label = EVERYTHING
            self._entries.clear()
            self._by_label.clear()
        for key in tuple(self._by_label.get(label, ())):
            self._drop(key)
        for reading in self._readings.values():
            reading.noticed.add(label)

    def renew(self, label: str) -> None:
        """Have what was made of a row read again before it is next used, if that is possible.

        For what this process wrote itself: while the database is away the entry goes on serving.
        """
        for key in self._by_label.get(label, ()):
            entry = self._entries[key]
            self._entries[key] = replace(entry, era=Era(entry.verified_at))
        for reading in self._readings.values():
            reading.noticed.add(label)

    def _reading(
        self, key: K, read: Callable[[], Awaitable[V | None]], keep: Callable[[V], bool]
    ) -> asyncio.Task[V | None]:
        under_way = self._readings.get(key)
        if under_way is not None:
            return under_way.task
        noticed: set[str] = set()
        task = asyncio.create_task(self._read(key, read, keep, noticed))
        task.add_done_callback(_ended)
        self._readings[key] = _Reading(task, noticed)
        return task

    async def _read(
        self,
        key: K,
        read: Callable[[], Awaitable[V | None]],
        keep: Callable[[V], bool],
        noticed: set[str],
    ) -> V | None:
        """Read until no notice of the same rows has come in between."""
        try:
            async with asyncio.timeout(DATABASE_SECONDS):
                while True:
                    noticed.clear()
                    era, began = self._contact.era, self._contact.clock()
                    value = await read()
                    labels = self._labels(value) if value is not None else frozenset()
                    if noticed.isdisjoint(labels | {EVERYTHING}):
                        break
            self._drop(key)
            if value is not None and keep(value):
                if era is None or era is not self._contact.era:
                    era = Era(began)  # true when the read began; later changes are not told
                self._put(key, _Entry(value, labels, began, era))
            return value
        finally:
            del self._readings[key]

    def _put(self, key: K, entry: _Entry[V]) -> None:
        self._entries[key] = entry
        for label in entry.labels:
            self._by_label[label].add(key)
        if len(self._entries) > self._size:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: K) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        for label in entry.labels:
            keys = self._by_label[label]
            keys.discard(key)
            if not keys:
                del self._by_label[label]


def _ended(task: asyncio.Task[object]) -> None:
    """A read whose callers have left, or had none, fails with nobody to tell but the log."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.debug("a read for the memory failed: %r", error)
