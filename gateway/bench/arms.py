"""The three arms: the same rows in three schemas, which differ in their indexes alone.

C is what the migrations made and is never described here. A and B are C's columns, without its
partitions: A with primary keys alone; B with what a Django project has without thinking, which is
every unique constraint and an index on every id that names a row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
from django.apps import apps
from django.db import models
from psycopg import sql

from monitoring.optimize.state import our_labels

__all__ = [
    "ARMS",
    "BARE",
    "DJANGO",
    "OPTIMISED",
    "Arm",
    "Build",
    "arms_make",
    "columns",
    "enter",
    "indexes_build",
    "indexes_drop",
    "key_of",
    "tables",
]

Connection = psycopg.Connection[Any]
Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Arm:
    name: str
    letter: str
    title: str
    schema: str


BARE = Arm("bare", "A", "bare (primary keys)", "arm_bare")
DJANGO = Arm("django", "B", "Django's defaults", "arm_django")
OPTIMISED = Arm("optimised", "C", "optimised (as migrated)", "public")
ARMS = (BARE, DJANGO, OPTIMISED)


@dataclass(frozen=True, slots=True)
class Build:
    """One index that was built, with the seconds that took."""

    table: str
    index: str
    seconds: float


def tables() -> dict[str, type[models.Model]]:
    """The tables that the gateway's own models manage, by name."""
    labels = set(our_labels())
    return {
        model._meta.db_table: model
        for model in apps.get_models()
        if model._meta.app_label in labels and model._meta.managed and not model._meta.proxy
    }


def columns(model: type[models.Model]) -> dict[str, models.Field[Any, Any]]:
    """A table's columns; a composite key is none."""
    return {field.column: field for field in model._meta.concrete_fields if field.column}


def enter(connection: Connection, arm: Arm) -> None:
    """Let unqualified names mean this arm's tables; functions are found in the public schema."""
    path = ", ".join(dict.fromkeys([arm.schema, OPTIMISED.schema]))
    connection.execute("SELECT set_config('search_path', %s, false)", [path])


# --------------------------------------------------------------------------- C, while it is filled

_SECONDARY = """
    SELECT t.relname, i.relname, replace(pg_get_indexdef(i.oid), ' ON ONLY ', ' ON ')
      FROM pg_index x
      JOIN pg_class i ON i.oid = x.indexrelid
      JOIN pg_class t ON t.oid = x.indrelid
     WHERE t.relnamespace = 'public'::regnamespace AND NOT t.relispartition
       AND NOT x.indisunique AND t.relname = ANY (%s)
     ORDER BY t.relname, i.relname
"""


def indexes_drop(connection: Connection) -> list[tuple[str, str, str]]:
    """Drop C's secondary indexes, so that filling is quick; (table, index, definition) of each.

    The definitions are PostgreSQL's own words for what the migrations made.
    """
    found = connection.execute(_SECONDARY, [list(tables())]).fetchall()
    for _, index, _ in found:
        connection.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(OPTIMISED.schema, index)))
    return found


def indexes_build(
    connection: Connection, definitions: list[tuple[str, str, str]]
) -> Iterator[Build]:
    for table, index, definition in definitions:
        yield _build(connection, table, index, sql.SQL(definition))


def _build(
    connection: Connection, table: str, index: str, statement: sql.SQL | sql.Composed
) -> Build:
    began = time.perf_counter()
    connection.execute(statement)
    return Build(table, index, time.perf_counter() - began)


# --------------------------------------------------------------------------- A and B, from C


def arms_make(connection: Connection, *, told: Told) -> dict[str, list[Build]]:
    """Make A and B from C's rows; the indexes that each arm got, primary keys left out."""
    builds: dict[str, list[Build]] = {}
    for arm in (BARE, DJANGO):
        told(f"Copying the rows for {arm.letter}, {arm.title}")
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(arm.schema)))
        for table, model in tables().items():
            _copy_table(connection, arm, table, model)
        builds[arm.name] = []
    builds[DJANGO.name] = [
        *_build_uniques(connection),
        *_build_ids(connection),
    ]
    return builds


def _copy_table(connection: Connection, arm: Arm, table: str, model: type[models.Model]) -> None:
    ours, theirs = sql.Identifier(arm.schema, table), sql.Identifier(OPTIMISED.schema, table)
    connection.execute(
        sql.SQL(
            "CREATE TABLE {} (LIKE {} INCLUDING ALL EXCLUDING INDEXES EXCLUDING STATISTICS"
            " EXCLUDING COMMENTS)"
        ).format(ours, theirs)
    )
    connection.execute(sql.SQL("INSERT INTO {} SELECT * FROM {}").format(ours, theirs))
    key = sql.SQL(", ").join(map(sql.Identifier, key_of(model)))
    connection.execute(sql.SQL("ALTER TABLE {} ADD PRIMARY KEY ({})").format(ours, key))


def key_of(model: type[models.Model]) -> list[str]:
    """The id alone: that a partitioned table's key holds its time too is C's affair."""
    columns = [field.column for field in model._meta.pk_fields if field.column]
    return ["id"] if "id" in columns else columns


_UNIQUES = """
    SELECT t.relname, i.relname, replace(pg_get_indexdef(i.oid), ' ON ONLY ', ' ON ')
      FROM pg_index x
      JOIN pg_class i ON i.oid = x.indexrelid
      JOIN pg_class t ON t.oid = x.indrelid
     WHERE t.relnamespace = 'public'::regnamespace AND NOT t.relispartition
       AND x.indisunique AND NOT x.indisprimary AND t.relname = ANY (%s)
"""


def _build_uniques(connection: Connection) -> Iterator[Build]:
    for table, index, definition in connection.execute(_UNIQUES, [list(tables())]).fetchall():
        moved = definition.replace(f" ON {OPTIMISED.schema}.", f" ON {DJANGO.schema}.", 1)
        yield _build(connection, table, index, sql.SQL(moved))


def _build_ids(connection: Connection) -> Iterator[Build]:
    """What ForeignKey(db_index=True), Django's default, gives each column that names a row."""
    for table, model in tables().items():
        for column, field in columns(model).items():
            if _names_a_row(column, field):
                index = f"{table}_{column}"[:63]
                statement = sql.SQL("CREATE INDEX {} ON {} ({})").format(
                    sql.Identifier(index),
                    sql.Identifier(DJANGO.schema, table),
                    sql.Identifier(column),
                )
                yield _build(connection, table, index, statement)


def _names_a_row(column: str, field: models.Field[Any, Any]) -> bool:
    is_id = isinstance(field, models.UUIDField) and column.endswith("_id")
    return bool(field.is_relation or is_id)
