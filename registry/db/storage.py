"""How a table keeps its rows, and what the planner learns of them, beyond PostgreSQL's defaults.

An app declares both as `STORAGE` and `STATISTICS` in its `storage.py`; this module finds them by
those names, so that no room imports another one above it. A migration makes them and `optimize_db`
makes them again where they were lost. What each of them gains: docs/statistics-and-storage.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, LiteralString

from django.apps import apps
from django.utils.module_loading import module_has_submodule
from psycopg import sql

__all__ = [
    "Statistics",
    "Storage",
    "create_statistics",
    "extended_statistics",
    "set_parameters",
    "storages",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """One table's storage parameters, by their PostgreSQL names, and why it has them."""

    table: str
    parameters: Mapping[str, float]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Extended statistics of one kind: of several, one can undo what another one gains.

    A partitioned table's are on its parent and on every partition. The planner asks a partition
    for its own; the parent's are there for LIKE, which gives each new partition the same.
    """

    name: str
    table: str
    columns: tuple[str, ...]
    kind: LiteralString
    reason: str


def storages() -> Iterator[Storage]:
    """The storage parameters of all installed apps."""
    return _declared("STORAGE")


def extended_statistics() -> Iterator[Statistics]:
    """The extended statistics of all installed apps."""
    return _declared("STATISTICS")


def _declared(name: str) -> Iterator[Any]:
    for app in apps.get_app_configs():
        if app.module is not None and module_has_submodule(app.module, "storage"):
            yield from getattr(import_module(f"{app.name}.storage"), name, ())


def set_parameters(table: str, parameters: Mapping[str, float]) -> sql.Composed:
    """The statement that sets them; it takes SHARE UPDATE EXCLUSIVE, so reads and writes go on."""
    pairs = [
        sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(value))
        for name, value in parameters.items()
    ]
    return sql.SQL("ALTER TABLE {} SET ({})").format(
        sql.Identifier(table), sql.SQL(", ").join(pairs)
    )


def create_statistics(wanted: Statistics) -> sql.Composed:
    """The statement that makes them, under the same lock; the next ANALYZE fills them."""
    return sql.SQL("CREATE STATISTICS {} ({}) ON {} FROM {}").format(
        sql.Identifier(wanted.name),
        sql.SQL(wanted.kind),
        sql.SQL(", ").join(map(sql.Identifier, wanted.columns)),
        sql.Identifier(wanted.table),
    )
