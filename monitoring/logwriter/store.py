"""How a batch gets into its table, and what PostgreSQL's refusals mean for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from monitoring.logwriter.rows import AUDIT_LOGS, Batch, Table, fields_of
from registry.db.partitions import BEHIND
from registry.db.pool import Pool

__all__ = ["Later", "NoPartition", "Refused", "Store", "Unavailable", "transaction"]

# Bytes that are handed over before other tasks of the event loop have their turn.
CHUNK_BYTES = 64 * 1024
# The same for rows that are inserted, whose fields are taken apart here.
INSERT_ROWS = 100
# Nobody makes a partition before the oldest one, but for what may still arrive late. NULL, as
# good as false, where there is no partition, or only one without a lower bound.
OLDER = r"""
    WITH batch AS (SELECT (%s::date + 1)::timestamp AT TIME ZONE 'UTC' AS ends)
    SELECT min(batch.ends) < now() - %s::interval AND min(batch.ends) <= min((regexp_match(
        pg_get_expr(leaf.relpartbound, leaf.oid), 'FROM \(''([^'']+)'''))[1]::timestamptz)
    FROM batch, pg_inherits AS inherits
    JOIN pg_class AS leaf ON leaf.oid = inherits.inhrelid
    WHERE inherits.inhparent = to_regclass(quote_ident(%s))
"""


class Refused(Exception):
    """PostgreSQL does not take some row of the batch, now or ever."""


class Later(Exception):
    """The table does not take the batch as things are; none of its rows is at fault."""


class NoPartition(Later):
    """There is no partition for the time of some row."""


class Unavailable(Exception):
    """PostgreSQL is away, or was not fast enough. Whether the batch is in is not known."""


@asynccontextmanager
async def transaction(pool: Pool, table: Table) -> AsyncIterator[AsyncConnection[TupleRow]]:
    """The one place that opens the writer's transactions.

    See Note [Waiting for the disk] in `monitoring.logwriter`.
    """
    wait = "on" if table is AUDIT_LOGS else "local"
    async with pool.connection() as connection:  # one transaction, as the operator's role
        await connection.execute("SELECT set_config('synchronous_commit', %s, true)", [wait])
        yield connection


class Store:
    """Writes batches, each in a transaction of its own; safe to repeat with the same rows."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._copies = True  # until PostgreSQL says that this role may not

    async def write(self, batch: Batch, *, seconds: float) -> None:
        """Have all rows of a batch in the table. Refused, Later or Unavailable if not."""
        try:
            async with asyncio.timeout(seconds):
                await self._write(batch)
        except psycopg.Error as error:
            raise _meaning(error) from error
        except (TimeoutError, OSError) as error:
            raise Unavailable(str(error) or type(error).__name__) from error

    async def is_too_old(self, batch: Batch, *, seconds: float) -> bool:
        """Whether the day of a batch lies before all partitions there are and will be."""
        try:
            async with asyncio.timeout(seconds), self._pool.connection() as connection:
                found = await connection.execute(OLDER, [batch.day, BEHIND, batch.table.name])
                row = await found.fetchone()
        except (psycopg.Error, TimeoutError, OSError) as error:
            raise Unavailable(str(error) or type(error).__name__) from error
        return bool(row and row[0])

    async def _write(self, batch: Batch) -> None:
        if self._copies:
            try:
                await self._copy(batch)
            except psycopg.errors.UniqueViolation:
                await self._insert(batch)  # some rows are there: it adds the others
            except psycopg.errors.FeatureNotSupported:
                self._copies = False  # COPY FROM, under row-level security
        if not self._copies:
            await self._insert(batch)

    async def _copy(self, batch: Batch) -> None:
        async with (
            transaction(self._pool, batch.table) as connection,
            connection.cursor() as cursor,
            cursor.copy(_copy_statement(batch.table.name, batch.columns)) as copy,
        ):
            for block in _blocks(batch.lines):
                await copy.write(block)

    async def _insert(self, batch: Batch) -> None:
        """One transaction, some statements: calls go on between them."""
        types = tuple(batch.table.columns[column] for column in batch.columns)
        statement = _insert_statement(batch.table.name, batch.columns, types)
        async with transaction(self._pool, batch.table) as connection:
            for at in range(0, len(batch.lines), INSERT_ROWS):
                lines = batch.lines[at : at + INSERT_ROWS]
                columns = zip(*map(fields_of, lines), strict=True)
                await connection.execute(statement, list(map(list, columns)))


@cache
def _copy_statement(table: str, columns: tuple[str, ...]) -> sql.Composed:
    return sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table), _names(columns))


@cache
def _insert_statement(table: str, columns: tuple[str, ...], types: tuple[str, ...]) -> sql.Composed:
    """A row that is there already is left alone; no conflict target, so any unique key counts."""
    arrays = [sql.SQL("%s::text[]::{}[]").format(sql.Identifier(type_)) for type_ in types]
    return sql.SQL("INSERT INTO {} ({}) SELECT * FROM unnest({}) ON CONFLICT DO NOTHING").format(
        sql.Identifier(table), _names(columns), sql.SQL(", ").join(arrays)
    )


def _names(columns: tuple[str, ...]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, columns))


def _blocks(lines: list[bytes]) -> list[bytes]:
    whole = b"".join(lines)
    return [whole[at : at + CHUNK_BYTES] for at in range(0, len(whole), CHUNK_BYTES)]


def _meaning(error: psycopg.Error) -> Exception:
    """Whose fault an error is; the SQLSTATE decides, because messages are translated."""
    state = error.sqlstate or ""
    # No partition of relation found for row: a check violation that names no constraint.
    if state == "23514" and error.diag.constraint_name is None:
        return NoPartition(str(error))
    if state[:2] in {"22", "23"} or state == "54000":  # 54000: too large for an index
        return Refused(str(error))
    # No such table, no such right, not supported: somebody has to change something first.
    if state[:2] in {"42", "0A"}:
        return Later(str(error))
    return Unavailable(str(error) or type(error).__name__)
