"""Keyset pages: a page begins after a row, so what lies before it is not read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db.models import Q, QuerySet

__all__ = ["SLACK", "Order", "Place", "beyond"]

# Between the making of an id and the time column: the longest call, and clocks that differ.
SLACK = timedelta(days=1)

Place = Mapping[str, Any]  # a row's values of the fields that a list is ordered by, and its time


def beyond(
    fields: Sequence[str], place: Sequence[Any], *, newer: bool, inclusive: bool = False
) -> Q:
    """Rows on one side of a place: (a, b) < (x, y), or > for newer ones; `inclusive`: <= or >=.

    Written so that an index on `a` bounds the scan. `place` holds one row's values of `fields`,
    which are never null; the last is unique.
    """
    side = "gt" if newer else "lt"
    *firsts, last = zip(fields, place, strict=True)
    condition = Q(**{f"{last[0]}__{side}{'e' if inclusive else ''}": last[1]})
    for name, value in reversed(firsts):
        ahead = Q(**{f"{name}__{side}": value})
        condition = Q(**{f"{name}__{side}e": value}) & (ahead | condition)
    return condition


@dataclass(frozen=True, slots=True)
class Order:
    """Newest first by `fields`, which are never null and the last of which is unique.

    `time_field` is the time of a row whose id tells about it, such as the key of partitions.
    """

    fields: tuple[str, ...]
    time_field: str | None = None

    def sort(self, rows: QuerySet[Any], *, newer: bool = False) -> QuerySet[Any]:
        """As one walks them: towards older rows, or towards newer ones."""
        sign = "" if newer else "-"
        return rows.order_by(*(sign + name for name in self.fields))

    def beyond(self, place: Place, *, newer: bool) -> Q:
        """The rows that follow a place, as one walks them."""
        return self._side(place, newer=newer)

    def up_to(self, place: Place, *, newer: bool) -> Q:
        """The rows that do not: those before the place and the one at it."""
        return self._side(place, newer=not newer, inclusive=True)

    def _side(self, place: Place, *, newer: bool, inclusive: bool = False) -> Q:
        values = [place[name] for name in self.fields]
        condition = beyond(self.fields, values, newer=newer, inclusive=inclusive)
        at = place.get(self.time_field) if self.time_field else None
        if at is None or self.time_field in self.fields:
            return condition
        # An id tells about its time, which PostgreSQL cannot know: it would open each partition.
        near = {"gte": at - SLACK} if newer else {"lte": at + SLACK}
        return condition & Q(**{f"{self.time_field}__{side}": end for side, end in near.items()})
