"""The stretch of time that a page of figures shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from monitoring.queries import SERIES_STEPS, begun

__all__ = ["WINDOWS", "Window", "chosen_window"]

HOUR = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Window:
    """The last `hours`, the one that goes on included. Its value in the address is their number."""

    hours: int
    title: str
    label: str  # how a step's beginning is written, for strftime
    moment: str = "%a %H:%M"  # the same of the window's own

    @property
    def value(self) -> str:
        return str(self.hours)

    @property
    def step(self) -> timedelta:
        return SERIES_STEPS[self.hours]

    def since(self, at: datetime) -> datetime:
        """From where on every figure of the page counts, so that they agree.

        A full hour, as some figures are kept by the hour, so "Last 24 hours" are the hour that goes
        on and the 23 before it: never more than 24. Of a single hour that would be too much: those
        are the five minutes that go on and the 55 before them. The lists that the figures link to
        begin at the same moment, which their address names.
        """
        unit = HOUR if self.hours > 1 else self.step
        return begun(at, unit) - timedelta(hours=self.hours) + unit

    def written(self, moment: datetime) -> str:
        """A moment at which figures of this window begin, in words."""
        return f"{moment:{self.moment}} UTC"

    def whole_hours(self, at: datetime) -> datetime:
        """The same for figures that are kept by the hour."""
        return begun(self.since(at), HOUR)


WINDOWS = (
    Window(1, "Last hour", "%H:%M"),
    Window(24, "Last 24 hours", "%H:%M"),
    Window(168, "Last 7 days", "%a %H:%M", "%Y-%m-%d %H:%M"),
)
USUAL = WINDOWS[1]


def chosen_window(query: Mapping[str, str]) -> Window:
    """What ?window= asks for; a day for anything else."""
    return next((one for one in WINDOWS if one.value == query.get("window")), USUAL)
