"""Searching a log for what no index leads to: so many rows at a time, and for so long only."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.db.models import QuerySet

from registry.db.keyset import Order, Place

__all__ = ["Found", "Indexed", "search"]

SECONDS = 0.15  # half of what a page may take
# Rows of the first stretch and of the longest; how much longer the next one may be.
FIRST, LONGEST, GROWTH = 5_000, 100_000, 4
MOST = 7  # stretches, of two statements each
OUTERMOST = {False: UUID(int=0), True: UUID(int=2**128 - 1)}  # ids, towards older and newer


@dataclass(frozen=True, slots=True)
class Indexed:
    """What a log's indexes find, by the columns that a list may be narrowed to.

    `in_order`: columns that lead an index which goes on with the time; the narrowest come first,
    the tenant comes last. `few`: columns whose index finds a few rows, in no order.
    """

    in_order: tuple[tuple[str, ...], ...]
    few: frozenset[str] = frozenset()

    def leading(self, given: Collection[str]) -> frozenset[str]:
        """Those of the given columns by whose index the log is read; none: by the primary key."""
        known = set(given)
        return next((frozenset(led) for led in self.in_order if known.issuperset(led)), frozenset())


@dataclass(frozen=True, slots=True)
class Found:
    """Rows, and where the search stopped before it had enough of them or came to an end."""

    rows: list[Any]
    reached: Place | None = None


def search(
    rows: QuerySet[Any],
    *,
    order: Order,
    place: Place | None,
    newer: bool,
    size: int,
    walked: QuerySet[Any] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Found:
    """The next `size` of `rows` beyond a place, in the order of the walk.

    `walked` are the rows that one index gives in this order, of which `rows` are the wanted ones;
    None where that index, or another, gives these by themselves. They are looked through by
    stretches of a known number of rows, so that no statement can be a long one, until SECONDS are
    over by the clock. The search goes on from `reached`, as from a row's place.
    """

    def ahead(which: QuerySet[Any]) -> QuerySet[Any]:
        return which.filter(order.beyond(place, newer=newer)) if place else which

    if walked is None or rows.query.is_empty():
        return Found(list(order.sort(ahead(rows), newer=newer)[:size]))
    found: list[Any] = []
    deadline, length = clock() + SECONDS, FIRST
    for _ in range(MOST):
        began = clock()
        end = _end_of_stretch(ahead(walked), order, newer=newer, length=length)
        stretch = ahead(rows).filter(order.up_to(end, newer=newer)) if end else ahead(rows)
        found += order.sort(stretch, newer=newer)[: size - len(found)]
        if end is None or len(found) == size:
            return Found(found)
        place, ended = end, clock()
        length = _next_length(length, took=ended - began, left=deadline - ended)
        if length < FIRST:
            break
    return Found(found, reached=place)


def _end_of_stretch(
    walked: QuerySet[Any], order: Order, *, newer: bool, length: int
) -> Place | None:
    """The place `length` rows ahead, None beyond the last row: read from the index alone.

    Rows that share the first field's value with it lie within the stretch.
    """
    first, *others = order.fields
    columns = {first, order.time_field or first}
    row = walked.order_by(first if newer else f"-{first}").values(*columns)[length : length + 1]
    return next(({**dict.fromkeys(others, OUTERMOST[newer]), **end} for end in row), None)


def _next_length(length: int, *, took: float, left: float) -> int:
    """As many rows as should take what is left of the time, by what the last stretch took."""
    return min(LONGEST, int(length * min(GROWTH, left / max(took, 1e-6))))
