"""The admin's lists of what only grows: keyset pages instead of OFFSET and COUNT(*)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar
from uuid import UUID

from django.contrib import messages
from django.db.models import QuerySet
from django.http import HttpRequest
from unfold.views import ChangeList

from registry.db.keyset import Order
from registry.db.search import search

__all__ = ["KeysetList", "Place"]


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


@dataclass(frozen=True, slots=True)
class Searched:
    """How far a search came that stopped before its page was full; `since` None: from now."""

    since: datetime | None
    reached: datetime
    further: str  # the address that goes on
    newer: bool  # towards newer rows, else towards older ones


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Addresses of the pages one can turn to; None where there is none."""

    newest: str | None
    newer: str | None
    older: str | None
    searched: Searched | None = None
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
        fields = tuple(name.removeprefix("-") for name in self.get_ordering(request, self.queryset))
        order = Order(fields, self._time_field)
        found = search(
            self.queryset,
            order=order,
            place={self._time_field: place.time, "id": place.id} if place else None,
            newer=newer,
            size=self.list_per_page + 1,
            walked=self.model_admin.walked(request, self),
        )
        shown = found.rows[: self.list_per_page][:: -1 if newer else 1]
        more = len(found.rows) > len(shown)
        reached = self._place_of(found.reached) if found.reached else None
        self.paginator = self._neighbours(shown, place, newer=newer, more=more, reached=reached)
        self._say_nothing_of_counts(shown)

    @property
    def _time_field(self) -> str:
        return str(self.model_admin.time_field)

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
        self,
        shown: list[Any],
        place: Place | None,
        *,
        newer: bool,
        more: bool,
        reached: Place | None,
    ) -> Neighbours:
        turned = place is not None
        # Where one came from there is a page; whether there is one ahead, the extra row told.
        has_newer, has_older = turned and (more or not newer), newer or more
        ends = [self._place_of(vars(row)) for row in (shown[0], shown[-1])] if shown else None
        searched = None
        if reached:
            further = self._link("after" if newer else "before", reached)
            since = place.time if place else None
            searched = Searched(since, reached.time, further, newer=newer)
        return Neighbours(
            newest=self.get_query_string() if turned else None,
            newer=self._link("after", ends[0]) if ends and has_newer else None,
            older=self._link("before", ends[1]) if ends and has_older else None,
            searched=searched,
        )

    def _place_of(self, values: Mapping[str, Any]) -> Place:
        return Place(values[self._time_field], values["id"])

    def _link(self, name: str, place: Place) -> str:
        return str(self.get_query_string({name: str(place)}))

    def _say_nothing_of_counts(self, shown: list[Any]) -> None:
        """Equal counts, neither of which the head of Django's list then names."""
        self.result_list = shown
        self.result_count = self.full_result_count = len(shown)
        self.show_full_result_count = self.can_show_all = self.multi_page = False
        self.show_admin_actions = True
