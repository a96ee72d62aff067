"""Filters of the admin's lists: what does not fit is told, and lists nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from django.contrib import messages
from django.contrib.admin import ChoicesFieldListFilter
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.text import Truncator, capfirst
from django.utils.timezone import now
from unfold.contrib.filters.admin import DropdownFilter, TextFilter
from unfold.views import ChangeList

__all__ = ["OneOfFilter", "TimeWindowFilter", "TypedFilter", "refused", "say_unknown_choices"]

OFFERED = "Choose one of those that the filter offers."


def refused(
    request: HttpRequest, rows: QuerySet[Any], *, title: str, text: str, wanted: str
) -> QuerySet[Any]:
    """No rows, and a message about the text that the filter of this title cannot take."""
    _say(request, title=title, text=text, wanted=wanted)
    return rows.none()


def _say(request: HttpRequest, *, title: str, text: str, wanted: str) -> None:
    said = Truncator(text).chars(60)
    messages.warning(request, f"{capfirst(title)}: “{said}” does not fit. {wanted}")


def say_unknown_choices(request: HttpRequest, changelist: ChangeList) -> None:
    """A message for each field's choices of which the address names one that there is not."""
    for spec in changelist.filter_specs:
        if isinstance(spec, ChoicesFieldListFilter):
            known = {str(choice) for choice, _ in spec.field.flatchoices or ()}
            for text in {*(spec.lookup_val or ())} - known - {""}:
                _say(request, title=str(spec.title), text=text, wanted=OFFERED)


class OneOfFilter(DropdownFilter):  # type: ignore[misc]
    """Rows by one of the choices that `lookups` offers."""

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        choice = self.value()
        if not choice:
            return queryset
        if choice not in dict(self.lookup_choices):
            return refused(request, queryset, title=self.title, text=choice, wanted=OFFERED)
        return self.chosen(queryset, choice)

    def chosen(self, rows: QuerySet[Any], choice: str) -> QuerySet[Any]:
        raise NotImplementedError


class TypedFilter(TextFilter):  # type: ignore[misc]
    """Rows by what was typed, when `parsed` makes something of it; `wanted` says what it takes."""

    wanted: ClassVar[str]
    lookup: ClassVar[str] = "exact"

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        text = (self.value() or "").strip()
        if not text:
            return queryset
        value = self.parsed(text)
        if value is None:
            return refused(request, queryset, title=self.title, text=text, wanted=self.wanted)
        return queryset.filter(**{f"{self.parameter_name}__{self.lookup}": value})

    def parsed(self, text: str) -> Any:
        raise NotImplementedError


class TimeWindowFilter(OneOfFilter):
    """Which stretch of a log is read; never all of it, so that old partitions stay closed.

    ?window= is a number of hours, or the time since when: what a count links to begins where the
    count does, however late somebody follows the link.
    """

    title = "time"
    parameter_name = "window"
    all_option = None
    field: ClassVar[str]
    AHEAD = timedelta(hours=1)  # clocks differ; without an end all later partitions are read
    HOURS: ClassVar[dict[str, int]] = {"1": 1, "24": 24, "168": 7 * 24, "720": 30 * 24}
    LONGEST = timedelta(hours=max(HOURS.values()))

    @classmethod
    def over(cls, field: str) -> type[TimeWindowFilter]:
        return type("TimeWindowFilter", (cls,), {"field": field})

    @classmethod
    def beginning(cls, since: datetime) -> str:
        """The value for all rows since a full minute."""
        return f"{since.astimezone(UTC):%Y-%m-%dT%H:%MZ}"

    def lookups(self, *_: Any) -> list[tuple[str, str]]:
        since = self._since(self.value(), at=now())
        return [
            *([(self.value(), f"Since {since:%Y-%m-%d %H:%M} UTC")] if since else []),
            ("24", "Last 24 hours"),
            ("1", "Last hour"),
            ("168", "Last 7 days"),
            ("720", "Last 30 days"),
        ]

    def value(self) -> str:
        return super().value() or "24"

    def chosen(self, rows: QuerySet[Any], choice: str) -> QuerySet[Any]:
        at = now()
        since, until = self._since(choice, at=at), at + self.AHEAD
        since = since or at - timedelta(hours=self.HOURS.get(choice, 720))
        return rows.filter(**{f"{self.field}__gte": since, f"{self.field}__lt": until})

    def _since(self, choice: str, *, at: datetime) -> datetime | None:
        """The time that was asked for, where it is one of the last 30 days."""
        try:
            since = datetime.fromisoformat(choice).astimezone(UTC)
        except (ValueError, OverflowError):
            return None
        return since if at - self.LONGEST <= since <= at else None
