"""Makes a plain table a partitioned one, with its rows, in one migration; and undoes it.

The rows are copied: ATTACH of the whole old table would leave one partition that no retention
could shrink. For that time the table is closed to everybody else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations import DeleteModel, RunPython, SeparateDatabaseAndState
from django.db.migrations.operations.base import Operation
from django.utils.timezone import now
from psqlextra.backend.migrations.operations import PostgresCreatePartitionedModel
from psycopg import sql

from registry.db.partitions import (
    Span,
    Step,
    Verb,
    partition_name,
    partition_size,
    plan_missing,
    read_partitions,
    statement,
)

__all__ = ["partition_table"]

PLAIN = "_plain"  # the suffix of the old table and of its indexes, while both tables exist
# Each partition of one transaction holds a dozen locks, and a server has some thousands: rows
# that are older share one partition, which goes when its youngest row does.
FINE = timedelta(days=100)

_INDEXES = """
    SELECT i.relname, x.indisprimary, pg_get_indexdef(i.oid)
    FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
    WHERE x.indrelid = to_regclass(quote_ident(%s))
"""
_VIEWS = """
    SELECT DISTINCT n.nspname, v.relname, pg_get_viewdef(v.oid),
           array_to_string(v.reloptions, ', ')
    FROM pg_depend d
    JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
    JOIN pg_class v ON v.oid = r.ev_class AND v.relkind = 'v'
    JOIN pg_namespace n ON n.oid = v.relnamespace
    WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = to_regclass(quote_ident(%s))
"""


def partition_table(
    *, table: str, column: str, create: PostgresCreatePartitionedModel
) -> list[Operation]:
    """The operations that put `create`'s partitioned table in the place of the plain one."""
    return [
        SeparateDatabaseAndState(
            database_operations=[
                RunPython(partial(_set_aside, table=table), partial(_put_back, table=table))
            ],
            state_operations=[DeleteModel(create.name)],
        ),
        create,
        RunPython(
            partial(_carry_over, table=table, column=column), partial(_carry_back, table=table)
        ),
    ]


def _set_aside(_apps: Any, editor: BaseDatabaseSchemaEditor, *, table: str) -> None:
    run = _Runner(editor.connection)
    for name, *_ in run.rows(_INDEXES, table):
        run("ALTER INDEX {} RENAME TO {}", name, name + PLAIN)
    run("ALTER TABLE {} RENAME TO {}", table, table + PLAIN)


def _put_back(_apps: Any, editor: BaseDatabaseSchemaEditor, *, table: str) -> None:
    run = _Runner(editor.connection)
    run("ALTER TABLE {} RENAME TO {}", table + PLAIN, table)
    for name, *_ in run.rows(_INDEXES, table):
        run("ALTER INDEX {} RENAME TO {}", name, name.removesuffix(PLAIN))


def _carry_over(_apps: Any, editor: BaseDatabaseSchemaEditor, *, table: str, column: str) -> None:
    run = _Runner(editor.connection)
    run("SET LOCAL statement_timeout = 0")
    ends = sql.SQL("SELECT min({c}), max({c}) FROM {t}").format(
        c=sql.Identifier(column), t=sql.Identifier(table + PLAIN)
    )
    [(oldest, newest)] = run.rows(ends)
    for step in _partitions_for(editor.connection, table, oldest, newest):
        run(statement(step))
    if oldest is not None:
        _copy(run, table + PLAIN, table, order_by=column)
        run("ANALYZE {}", table)
    _repoint_views(run, table + PLAIN, table)
    run("DROP TABLE {}", table + PLAIN)


def _carry_back(_apps: Any, editor: BaseDatabaseSchemaEditor, *, table: str) -> None:
    run, plain = _Runner(editor.connection), table + PLAIN
    run("SET LOCAL statement_timeout = 0")
    run(
        "CREATE TABLE {} (LIKE {} INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE)",
        plain,
        table,
    )
    _copy(run, table, plain, order_by="id")
    for name, is_primary, definition in run.rows(_INDEXES, table):
        if is_primary:
            run("ALTER TABLE {} ADD CONSTRAINT {} PRIMARY KEY (id)", plain, name + PLAIN)
        else:
            run(
                sql.SQL("CREATE INDEX {} ON {} USING {}").format(
                    sql.Identifier(name + PLAIN),
                    sql.Identifier(plain),
                    sql.SQL(definition.partition(" USING ")[2]),
                )
            )
    _repoint_views(run, table, plain)


def _partitions_for(
    connection: BaseDatabaseWrapper,
    table: str,
    oldest: datetime | None,
    newest: datetime | None,
) -> Iterator[Step]:
    """Partitions around now and for all rows, the very old and the mistaken future included."""
    at, size = now(), partition_size()
    fine_since = max(oldest, at - FINE) if oldest else None
    found = read_partitions(connection, table)
    steps = plan_missing(found, table=table, at=at, size=size, back_to=fine_since)
    yield from steps
    first = min(step.span.since for step in steps)
    last = max(step.span.until for step in steps)
    if oldest is not None and oldest < first:
        yield _wide(table, Span(oldest, first))
    if newest is not None and newest >= last:
        yield _wide(table, Span(last, newest + size))


def _wide(table: str, span: Span) -> Step:
    return Step(verb=Verb.CREATE, table=table, name=partition_name(table, span), span=span)


def _copy(run: _Runner, source: str, target: str, *, order_by: str) -> None:
    """In the order of time, so that neighbours on disk are neighbours in time."""
    columns = sql.SQL(", ").join(
        sql.Identifier(name)
        for (name,) in run.rows(
            "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(quote_ident(%s))"
            " AND attnum > 0 AND NOT attisdropped",
            source,
        )
    )
    run(
        sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {} ORDER BY {}").format(
            sql.Identifier(target),
            columns,
            columns,
            sql.Identifier(source),
            sql.Identifier(order_by),
        )
    )


def _repoint_views(run: _Runner, old: str, new: str) -> None:
    """Let views on one table read the other one; they keep their grants and comments."""
    for schema, name, definition, options in run.rows(_VIEWS, old):
        run(
            sql.SQL("CREATE OR REPLACE VIEW {}{} AS {}").format(
                sql.Identifier(schema, name),
                sql.SQL(f" WITH ({options})" if options else ""),
                sql.SQL(_renamed(definition, old, new)),
            )
        )


def _renamed(definition: str, old: str, new: str) -> str:
    """As a whole word: both are plain lower-case names, which PostgreSQL does not quote."""
    return re.sub(rf"\b{re.escape(old)}\b", new, definition)


class _Runner:
    """Runs statements on one connection; names are given as plain texts."""

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self._connection = connection

    def __call__(self, template: str | sql.Composed, *names: str) -> None:
        if isinstance(template, str):
            template = sql.SQL(template).format(*map(sql.Identifier, names))
        with self._connection.cursor() as cursor:
            cursor.execute(template)

    def rows(self, query: str | sql.Composed, *parameters: str) -> list[tuple[Any, ...]]:
        with self._connection.cursor() as cursor:
            cursor.execute(query, parameters or None)
            return list(cursor.fetchall())
