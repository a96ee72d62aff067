"""A table of figures on a page: heads, rows of cells, and words for when there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from django.utils.html import format_html
from django.utils.safestring import SafeString

from registry.admin_base import NOTHING

__all__ = ["Table", "chip", "date_and_time", "link"]

CHIPS = {"ok": "gw-ok", "warning": "gw-warning", "critical": "gw-critical"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Cells are text, or HTML where they are links. `more` leads to all of the rows."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str | SafeString]]
    empty: str
    note: str = ""
    more: str = ""
    numbers: frozenset[int] = frozenset()  # the columns that are aligned as figures
    long: frozenset[int] = frozenset()  # those of running text
    whole: frozenset[int] = frozenset()  # those of times, which no line breaks

    @property
    def slug(self) -> str:
        return self.title.lower().replace(" ", "-")

    @property
    def columns(self) -> list[tuple[str, str]]:
        """(head, class) by column."""
        return [(head, self._class(place)) for place, head in enumerate(self.heads)]

    @property
    def cells(self) -> list[list[tuple[str, str, str]]]:
        """(cell, class, head) by row; a narrow screen shows the head beside the cell."""
        return [
            [(cell, self._class(place), self.heads[place]) for place, cell in enumerate(row)]
            for row in self.rows
        ]

    def _class(self, place: int) -> str:
        if place in self.numbers:
            return "gw-figure"
        if place in self.whole:
            return "gw-whole"
        return "gw-long" if place in self.long else ""


def link(url: str, text: object) -> SafeString:
    return format_html('<a href="{}" class="text-link">{}</a>', url, text)


def chip(words: str, status: str) -> SafeString:
    """A word with the colour of a status: ok, warning or critical; else without one."""
    return format_html('<span class="gw-chip {}">{}</span>', CHIPS.get(status, ""), words)


def date_and_time(moment: datetime | None) -> str:
    """2026-11-25 07:30:00, in UTC."""
    return NOTHING if moment is None else f"{moment:%Y-%m-%d %H:%M:%S}"
