"""What each process counts of itself, and what those beside it last said of themselves.

A scrape reaches one of a server's processes. So each writes its figures to a file of its own every
few seconds, and the one that is asked reads them all; that takes no database, which may be what is
being looked into.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from monitoring.logwriter import Status

if TYPE_CHECKING:
    from gateway.proxy.plane import DataPlane

__all__ = ["FIGURES", "Board", "Figure", "Sample", "own_samples"]

logger = logging.getLogger(__name__)

# A name of FIGURES, the values of its labels, and the figure.
Sample = tuple[str, tuple[str, ...], float]

GONE_SECONDS = 15.0  # without news of a process: it has ended, or stands still
FORGOTTEN_SECONDS = 300.0  # then its file is removed


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a process. Names of counters end in `_total`."""

    help: str
    labels: tuple[str, ...] = ()


FIGURES = {
    "process_start_time_seconds": Figure("When the process began to serve, as Unix time."),
    "calls_in_progress": Figure("Exchanges on /mcp that are under way, open streams too."),
    "calls_ended_total": Figure("Exchanges on /mcp that have ended."),
    "upstream_connections": Figure("Open connections to servers.", ("state",)),
    "upstream_streams": Figure("Of these, streams that clients hold open."),
    "upstream_waiting": Figure("Calls that wait for a connection to a server."),
    "memory_entries": Figure("Keys and routes that are remembered.", ("memory",)),
    "memory_hits_total": Figure("Look-ups that memory answered without SQL.", ("memory",)),
    "memory_reads_total": Figure("Look-ups that had to ask PostgreSQL.", ("memory",)),
    "local_breakers": Figure("Breakers kept in memory while PostgreSQL is away.", ("state",)),
    "listening": Figure("1 while PostgreSQL tells this process of changes."),
    "database_pool_connections": Figure("The process's own connections.", ("state",)),
    "database_pool_waiting": Figure("Who waits for one of these connections."),
    "log_available": Figure("1 unless log rows go to files because PostgreSQL does not take them."),
    "log_rows_waiting": Figure("Log rows in memory that are to be written."),
    "log_rows_written_total": Figure("Log rows that PostgreSQL has."),
    "log_rows_spooled_total": Figure("Log rows that went to files for the time being."),
    "log_rows_dropped_total": Figure("Log rows that are lost, for want of room."),
    "log_rows_refused_total": Figure("Log rows that PostgreSQL refused."),
}


def own_samples(plane: DataPlane, *, log: Status) -> list[Sample]:
    """This process's figures. For the event loop that the plane belongs to."""
    upstreams = plane.upstreams.all()
    stats = plane.pool.get_stats()
    open_, idle = stats.get("pool_size", 0), stats.get("pool_available", 0)
    return [
        ("process_start_time_seconds", (), plane.began),
        ("calls_in_progress", (), plane.in_progress),
        ("calls_ended_total", (), plane.ended),
        ("upstream_connections", ("active",), sum(one.active for one in upstreams)),
        ("upstream_connections", ("idle",), sum(one.idle for one in upstreams)),
        ("upstream_streams", (), sum(one.streams.active for one in upstreams)),
        ("upstream_waiting", (), sum(one.gate.waiting for one in upstreams)),
        *_memories(plane),
        *_local_breakers(plane),
        ("listening", (), float(plane.contact.era is not None)),
        ("database_pool_connections", ("used",), max(0, open_ - idle)),
        ("database_pool_connections", ("idle",), idle),
        ("database_pool_waiting", (), stats.get("requests_waiting", 0)),
        ("log_available", (), float(log.available)),
        ("log_rows_waiting", (), log.waiting),
        ("log_rows_written_total", (), log.written),
        ("log_rows_spooled_total", (), log.spooled),
        ("log_rows_dropped_total", (), log.dropped),
        ("log_rows_refused_total", (), log.refused),
    ]


def _memories(plane: DataPlane) -> Iterator[Sample]:
    for name, memory in (("keys", plane.keys), ("routes", plane.routes)):
        yield "memory_entries", (name,), len(memory)
        yield "memory_hits_total", (name,), memory.hits
        yield "memory_reads_total", (name,), memory.reads


def _local_breakers(plane: DataPlane) -> Iterator[Sample]:
    states = Counter(plane.breaker.local_states())
    for state in ("closed", "half_open", "open"):
        yield "local_breakers", (state,), states[state]


class Board:
    """A folder of this machine in which a server's processes leave their figures.

    Processes of one server have the same parent. All of this is blocking file work.
    """

    def __init__(self, folder: Path, *, name: str) -> None:
        self._folder = folder
        self._group = f"{os.getppid()}@{socket.gethostname()}:"
        self._mine = folder / f"{os.getppid()}@{name}.json"
        self._name = name
        self._complained = False

    def write(self, samples: list[Sample]) -> None:
        """Replace this process's figures; a folder that cannot be used is told once."""
        text = json.dumps({"process": self._name, "samples": samples})
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft = self._mine.with_suffix(".draft")
            draft.write_text(text)
            draft.replace(self._mine)
        except OSError as error:
            if not self._complained:
                logger.warning("/metrics shows the process that answers alone: %s", error)
            self._complained = True

    def others(self) -> dict[str, list[Sample]]:
        """The last figures of the server's other processes that are alive, by process."""
        found = {}
        for path in self._files():
            if path == self._mine:
                continue
            age = _age(path)
            if age > FORGOTTEN_SECONDS:
                path.unlink(missing_ok=True)
            elif age <= GONE_SECONDS and path.name.startswith(self._group):
                found.update(_read(path))
        return found

    def leave(self) -> None:
        with suppress(OSError):
            self._mine.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        try:
            return sorted(self._folder.glob("*.json"))
        except OSError:
            return []


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:  # it has just left
        return GONE_SECONDS + 1


def _read(path: Path) -> dict[str, list[Sample]]:
    """Nothing, of a file that has gone or that another version wrote."""
    try:
        said = json.loads(path.read_text())
        samples = [(name, tuple(labels), float(value)) for name, labels, value in said["samples"]]
        return {said["process"]: [sample for sample in samples if _is_known(sample)]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _is_known(sample: Sample) -> bool:
    name, labels, _ = sample
    return name in FIGURES and len(labels) == len(FIGURES[name].labels)
