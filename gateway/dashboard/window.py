"""The stretch of time that a page of figures shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from monitoring.queries import SERIES_STEPS

__all__ = ["WINDOWS", "Window", "chosen_window"]


@dataclass(frozen=True, slots=True)
class Window:
    """The last `hours`. Its value in the address is their number."""

    hours: int
    title: str
    label: str  # how a step's beginning is written, for strftime

    @property
    def value(self) -> str:
        return str(self.hours)

    @property
    def step(self) -> timedelta:
        return SERIES_STEPS[self.hours]

    def whole_hours(self, at: datetime) -> datetime:
        """Where the hours begin that figures kept by the hour are added up from."""
        return (at - timedelta(hours=self.hours)).replace(minute=0, second=0, microsecond=0)


WINDOWS = (
    Window(1, "Last hour", "%H:%M"),
    Window(24, "Last 24 hours", "%H:%M"),
    Window(168, "Last 7 days", "%a %H:%M"),
)
USUAL = WINDOWS[1]


def chosen_window(query: Mapping[str, str]) -> Window:
    """What ?window= asks for; a day for anything else."""
    return next((one for one in WINDOWS if one.value == query.get("window")), USUAL)
