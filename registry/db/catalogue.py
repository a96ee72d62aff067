"""The catalogue of indexes: which query each one serves, who runs it and how often.

An app lists its entries as `CATALOGUE` in its `indexes.py`, and as `VOLATILE` the columns that
change all the time; this module finds both by their names, so that no room imports another one
above it. A schema test seeds a database and holds every entry to its word with EXPLAIN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from uuid import UUID

from django.apps import apps
from django.db.models import Model, QuerySet
from django.utils.module_loading import module_has_submodule

__all__ = ["IndexEntry", "catalogue", "left_out", "sample", "volatile_columns"]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry:
    """One index and one query that it serves.

    One of the performance guide's that is not worth what it costs stays declared, under its name,
    and says so: `loses`, `costs`, and as `sibling` the index that serves the program in its
    place; none where nobody asks.
    """

    index: str
    query: Callable[[], QuerySet[Any, Any]]  # with parameters drawn from the rows that there are
    caller: str
    rate: str
    # In whose transaction the program asks, behind the walls; None: across tenants, as operators.
    tenant: Callable[[], UUID | None] | None = None
    loses: str = ""  # why an expert would not have it; empty: it serves well
    sibling: str = ""
    costs: str = ""  # as measured, see docs/decisions/0014-the-guides-indexes-and-their-siblings.md
    accepted: str = ""  # why it may hold a volatile column


def catalogue() -> Iterator[IndexEntry]:
    """The entries of all installed apps."""
    for module in _modules():
        yield from getattr(module, "CATALOGUE", ())


def left_out(profile: str) -> frozenset[str]:
    """The declared indexes that a database does without: with the profile `expert` the losers."""
    if profile != "expert":
        return frozenset()
    return frozenset(entry.index for entry in catalogue() if entry.loses)


def volatile_columns() -> dict[type[Model], frozenset[str]]:
    """Field names by model: what an index on them makes every update of them dearer."""
    return {
        model: frozenset(names)
        for module in _modules()
        for model, names in getattr(module, "VOLATILE", {}).items()
    }


def _modules() -> Iterator[Any]:
    for app in apps.get_app_configs():
        if module_has_submodule(app.module, "indexes"):
            yield import_module(f"{app.name}.indexes")


def sample(model: type[Model], *fields: str, **conditions: Any) -> dict[str, Any]:
    """Values that occur together in one row, as filter() takes them; all None without rows.

    The row is the middle one of the first hundred by primary key: skewed data tends to have
    its giants at the ends.
    """
    rows = model._default_manager.filter(**conditions).order_by("pk").values(*fields)
    found = list(rows.exclude(**{f"{fields[0]}__isnull": True})[:100])
    return found[len(found) // 2] if found else dict.fromkeys(fields)
