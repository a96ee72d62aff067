"""The admin's lists of what only grows: keyset pages instead of OFFSET and COUNT(*)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from uuid import UUID

from django.contrib import messages
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from unfold.views import ChangeList

from registry.db.keyset import beyond

__all__ = ["SLACK", "KeysetList", "Place"]

# Between the making of an id and the time column: the longest call, and clocks that differ.
SLACK = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page begins or ends: a row's time and id, in an address `<time>~<id>`."""

    time: datetime
    id: UUID

    @classmethod
    def parse(cls, text: str) -> Place:
        """ValueError for anything but a time with a zone and an id."""
        moment, _, row_id = text.partition("~")
        time = datetime.fromisoformat(moment)
        # Outside, SLACK more or less leaves what a datetime can hold.
        if time.tzinfo is None or not 1970 <= time.year < 9000:
            raise ValueError(text)
        return cls(time.astimezone(UTC), UUID(row_id))  # PostgreSQL refuses far zones

    def __str__(self) -> str:
        return f"{self.time.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}~{self.id}"

    def beyond(self, time_field: str, ordering: Sequence[str], *, newer: bool) -> Q:
        """The rows on one side of it, in an order by (time, id) or by the id alone."""
        values = {time_field: self.time, "id": self.id}
        fields = [name.removeprefix("-") for name in ordering]
        condition = beyond(fields, [values[name] for name in fields], newer=newer)
        if time_field in fields:
            return condition
        # An id tells about its time, which PostgreSQL cannot know: it would open each partition.
        near = {"gte": self.time - SLACK} if newer else {"lte": self.time + SLACK}
        return condition & Q(**{f"{time_field}__{side}": at for side, at in near.items()})


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Addresses of the pages one can turn to; None where there is none."""

    newest: str | None
    newer: str | None
    older: str | None
    template_name: ClassVar[str] = "registry/admin_pagination.html"


class KeysetList(ChangeList):  # type: ignore[misc]
    """Newest first, from the row that `?before=` or `?after=` names, or from the newest one.

    Nothing is counted and no row before the page is read: one row more than the page holds says
    whether another page follows. The order is the admin's, whatever `?o=` asks for.
    """

    TURNS: ClassVar[dict[str, bool]] = {"before": False, "after": True}  # is it towards newer rows?

    def __init__(self, request: HttpRequest, *args: Any, **kwargs: Any) -> None:
        self.turned = {name: request.GET[name] for name in self.TURNS if name in request.GET}
        super().__init__(request, *args, **kwargs)

    def get_queryset(self, request: HttpRequest, *args: Any, **kwargs: Any) -> QuerySet[Any]:
        # Django has noted the whole address for the way back from a row. From here on the place is
        # no part of it: another filter or search begins at the newest rows.
        asked = request.GET.copy()
        for params in (asked, self.params, self.filter_params):
            for name in self.TURNS:
                params.pop(name, None)
        request.GET = asked  # type: ignore[assignment]
        rows: QuerySet[Any] = super().get_queryset(request, *args, **kwargs)
        return rows

    def get_ordering(self, request: HttpRequest, _queryset: QuerySet[Any]) -> list[str]:
        return list(self.model_admin.get_ordering(request))

    def get_results(self, request: HttpRequest) -> None:
        place, newer = self._place(request)
        rows = self.queryset
        if place is not None:
            ordering = self.get_ordering(request, rows)
            rows = rows.filter(place.beyond(self.model_admin.time_field, ordering, newer=newer))
        found = list((rows.reverse() if newer else rows)[: self.list_per_page + 1])
        shown = found[: self.list_per_page][:: -1 if newer else 1]
        self.paginator = self._neighbours(shown, place, newer=newer, more=len(found) > len(shown))
        self._say_nothing_of_counts(shown)

    def _place(self, request: HttpRequest) -> tuple[Place | None, bool]:
        """Where the page begins, and whether it leads to newer rows."""
        for name, text in self.turned.items():
            try:
                return Place.parse(text), self.TURNS[name]
            except ValueError:
                messages.warning(
                    request,
                    f"“{name}” names no place in this list; it begins at the newest rows.",
                )
        return None, False

    def _neighbours(
        self, shown: list[Any], place: Place | None, *, newer: bool, more: bool
    ) -> Neighbours:
        turned = place is not None
        # Where one came from there is a page; whether there is one ahead, the extra row told.
        has_newer, has_older = turned and (more or not newer), newer or more
        return Neighbours(
            newest=self.get_query_string() if turned else None,
            newer=self._link("after", shown[0]) if shown and has_newer else None,
            older=self._link("before", shown[-1]) if shown and has_older else None,
        )

    def _link(self, name: str, row: Any) -> str:
        place = Place(getattr(row, self.model_admin.time_field), row.pk)
        return str(self.get_query_string({name: str(place)}))

    def _say_nothing_of_counts(self, shown: list[Any]) -> None:
        """Equal counts, neither of which the head of Django's list then names."""
        self.result_list = shown
        self.result_count = self.full_result_count = len(shown)
        self.show_full_result_count = self.can_show_all = self.multi_page = False
        self.show_admin_actions = True
