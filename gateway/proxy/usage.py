"""Counters of keys, rules and tools: summed in memory, written a few rows at a time.

A counter that were written at each call would make one hot row of every popular key and tool.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from registry.db.pool import Pool

__all__ = ["Usage"]

MAX_TOOLS = 10_000
# A tool's row that another process has written is left alone for so long, or the writes of a row
# would grow with the number of processes.
FRESH_SECONDS = 50.0


@dataclass(slots=True)
class _Sum:
    calls: int = 0
    errors: int = 0
    milliseconds: float = 0.0
    last: datetime | None = None

    def add(self, *, at: datetime, failed: bool, milliseconds: float = 0.0) -> None:
        self.calls += 1
        self.errors += failed
        self.milliseconds += milliseconds
        self.last = at


def _sums() -> dict[Any, _Sum]:
    return defaultdict(_Sum)


class Usage:
    """What calls used since the last flush."""

    def __init__(self) -> None:
        self.keys: dict[UUID, _Sum] = _sums()
        self.failed_attempts: dict[UUID, _Sum] = _sums()
        self.rules: dict[UUID, _Sum] = _sums()
        self.tools: dict[tuple[UUID, str], _Sum] = _sums()

    def count_tool(
        self, server_id: UUID, name: str, *, at: datetime, failed: bool, milliseconds: float
    ) -> None:
        """Names come from callers: past a bound, unknown ones are not counted until the flush."""
        if len(self.tools) < MAX_TOOLS or (server_id, name) in self.tools:
            sums = self.tools[server_id, name]
            sums.add(at=at, failed=failed, milliseconds=milliseconds)

    async def flush(self, pool: Pool) -> None:
        """Add the sums of keys and rules to their rows."""
        keys, attempts, rules = self.keys, self.failed_attempts, self.rules
        self.keys, self.failed_attempts, self.rules = _sums(), _sums(), _sums()
        try:
            await _write(pool, ((_KEYS, keys), (_FAILED_ATTEMPTS, attempts), (_RULES, rules)))
        except BaseException:
            _merge(self.keys, keys)
            _merge(self.failed_attempts, attempts)
            _merge(self.rules, rules)
            raise

    async def flush_tools(self, pool: Pool, *, at_last: bool = False) -> None:
        """Add the sums of tools to their rows: seldom, as indexes cover what changes.

        Sums of rows that were just written are kept for the next time; `at_last` there is none.
        """
        tools, self.tools = self.tools, _sums()
        try:
            kept = await _write_tools(pool, tools, fresh=0.0 if at_last else FRESH_SECONDS)
        except BaseException:
            _merge(self.tools, tools)
            raise
        _merge(self.tools, kept)


async def _write(pool: Pool, work: Iterable[tuple[str, dict[Any, _Sum]]]) -> None:
    """All of it or nothing; what cannot be written is the caller's to keep for the next time."""
    due = [(statement, sums) for statement, sums in work if sums]
    if not due:
        return
    async with pool.connection() as connection:
        for statement, sums in due:
            await connection.execute(statement, _columns(sums))


async def _write_tools(pool: Pool, tools: dict[Any, _Sum], *, fresh: float) -> dict[Any, _Sum]:
    """Write what is due; returns the rest. Names that are no tool's are forgotten."""
    if not tools:
        return {}
    async with pool.connection() as connection:
        cursor = await connection.execute(_TOOLS, _columns(tools) | {"fresh": fresh})
        places = {place for (place,) in await cursor.fetchall()}
    return {key: sums for place, (key, sums) in enumerate(tools.items(), 1) if place in places}


def _merge(into: dict[Any, _Sum], kept: dict[Any, _Sum]) -> None:
    for key, old in kept.items():
        new = into[key]
        new.calls += old.calls
        new.errors += old.errors
        new.milliseconds += old.milliseconds
        new.last = new.last or old.last


def _columns(sums: dict[Any, _Sum]) -> dict[str, list[Any]]:
    keys = list(sums)
    pairs = [key if isinstance(key, tuple) else (key, "") for key in keys]
    rows = [sums[key] for key in keys]
    return {
        "ids": [id_ for id_, _ in pairs],
        # A name that PostgreSQL cannot store is no tool's.
        "names": [name.replace("\0", "").encode("utf-8", "replace").decode() for _, name in pairs],
        "calls": [row.calls for row in rows],
        "errors": [row.errors for row in rows],
        "milliseconds": [row.milliseconds for row in rows],
        "last": [row.last for row in rows],
    }


# Rows are locked in the order of their ids, so that two processes never wait for each other.
_KEYS = """
WITH used AS (
    SELECT * FROM unnest(%(ids)s::uuid[], %(calls)s::bigint[], %(errors)s::bigint[],
                         %(last)s::timestamptz[]) AS u(id, calls, errors, last)),
locked AS (SELECT k.id FROM enhanced_api_keys k JOIN used USING (id) ORDER BY k.id FOR UPDATE OF k)
UPDATE enhanced_api_keys k
   SET total_requests = k.total_requests + u.calls, total_errors = k.total_errors + u.errors,
       last_used = greatest(k.last_used, u.last)
  FROM locked JOIN used u USING (id) WHERE k.id = locked.id
"""
_FAILED_ATTEMPTS = """
WITH used AS (
    SELECT * FROM unnest(%(ids)s::uuid[], %(calls)s::bigint[], %(last)s::timestamptz[])
                  AS u(id, calls, last)),
locked AS (SELECT k.id FROM enhanced_api_keys k JOIN used USING (id) ORDER BY k.id FOR UPDATE OF k)
UPDATE enhanced_api_keys k
   SET failed_attempts = k.failed_attempts + u.calls,
       last_failed_attempt = greatest(k.last_failed_attempt, u.last)
  FROM locked JOIN used u USING (id) WHERE k.id = locked.id
"""
_RULES = """
WITH used AS (
    SELECT * FROM unnest(%(ids)s::uuid[], %(calls)s::bigint[], %(last)s::timestamptz[])
                  AS u(id, calls, last)),
locked AS (
    SELECT r.id FROM server_access_control r JOIN used USING (id) ORDER BY r.id FOR UPDATE OF r)
UPDATE server_access_control r
   SET access_count = r.access_count + u.calls, last_access = greatest(r.last_access, u.last)
  FROM locked JOIN used u USING (id) WHERE r.id = locked.id
"""
# Returns the places of those left alone. A row that somebody writes just now is looked at again
# when its lock is free, so that what is not locked in the end is what is left.
_TOOLS = """
WITH used AS (
    SELECT * FROM unnest(%(ids)s::uuid[], %(names)s::text[], %(calls)s::bigint[],
                         %(errors)s::bigint[], %(milliseconds)s::float8[],
                         %(last)s::timestamptz[]) WITH ORDINALITY
                  AS u(server_id, name, calls, errors, ms, last, place)),
locked AS (
    SELECT t.id, u.* FROM server_tools t JOIN used u USING (server_id, name)
     WHERE abs(extract(epoch FROM now() - t.last_used_at)) < %(fresh)s IS NOT TRUE
     ORDER BY t.id FOR UPDATE OF t),
written AS (
    UPDATE server_tools t
       SET total_calls = t.total_calls + l.calls,
           success_count = t.success_count + l.calls - l.errors,
           error_count = t.error_count + l.errors,
           avg_execution_time = (coalesce(t.avg_execution_time, 0) * t.total_calls + l.ms)
                                / (t.total_calls + l.calls),
           last_used_at = greatest(t.last_used_at, l.last)
      FROM locked l WHERE t.id = l.id)
SELECT u.place FROM server_tools t JOIN used u USING (server_id, name)
 WHERE u.place NOT IN (SELECT l.place FROM locked l)
"""
