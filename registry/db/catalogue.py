"""The catalogue of indexes: which query each one serves, who runs it and how often.

An app lists its entries as `CATALOGUE` in its `indexes.py`; this module finds them by that name,
so that no room imports another one above it. A schema test seeds a database and holds every entry
to its word with EXPLAIN.
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

__all__ = ["IndexEntry", "catalogue", "sample"]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry:
    """One index and one query that it serves."""

    index: str
    query: Callable[[], QuerySet[Any, Any]]  # with parameters drawn from the rows that there are
    caller: str
    rate: str
    # In whose transaction the program asks, behind the walls; None: across tenants, as operators.
    tenant: Callable[[], UUID | None] | None = None
    loses: str = ""  # why it helps this query little or not at all; empty: it serves it well


def catalogue() -> Iterator[IndexEntry]:
    """The entries of all installed apps."""
    for app in apps.get_app_configs():
        if module_has_submodule(app.module, "indexes"):
            yield from getattr(import_module(f"{app.name}.indexes"), "CATALOGUE", ())


def sample(model: type[Model], *fields: str, **conditions: Any) -> dict[str, Any]:
    """Values that occur together in one row, as filter() takes them; all None without rows.

    The row is the middle one of the first hundred by primary key: skewed data tends to have
    its giants at the ends.
    """
    rows = model._default_manager.filter(**conditions).order_by("pk").values(*fields)
    found = list(rows.exclude(**{f"{fields[0]}__isnull": True})[:100])
    return found[len(found) // 2] if found else dict.fromkeys(fields)
