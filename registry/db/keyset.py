"""Keyset pages: a page begins after a row, so what lies before it is not read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db.models import Q

__all__ = ["beyond"]


def beyond(fields: Sequence[str], place: Sequence[Any], *, newer: bool) -> Q:
    """Rows on one side of a place: (a, b) < (x, y), or > for newer ones.

    Written so that an index on `a` bounds the scan. `place` holds one row's values of `fields`,
    which are never null; the last is unique.
    """
    side = "gt" if newer else "lt"
    *firsts, last = zip(fields, place, strict=True)
    condition = Q(**{f"{last[0]}__{side}": last[1]})
    for name, value in reversed(firsts):
        ahead = Q(**{f"{name}__{side}": value})
        condition = Q(**{f"{name}__{side}e": value}) & (ahead | condition)
    return condition
