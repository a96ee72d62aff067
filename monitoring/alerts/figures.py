"""The figures of `performance_monitoring`, read once for all rules, and the one that a rule means.

A rule for one server means that server's row. A rule without a server means every row of its
metric: the one furthest along its operator decides, so that one bad table among a hundred good
ones is seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import NamedTuple

from django.db import connection

from monitoring.alerts.metrics import RECENT_CALLS, metric_of
from monitoring.alerts.rules import Rule

__all__ = [
    "ALL",
    "EVERYTHING",
    "Extremes",
    "Figures",
    "Reading",
    "Row",
]

ALL = "all"
EVERYTHING = ""  # stands for every subject together in the history
NOTHING = "there is nothing to measure now"
MOST_PARTS = 5

_READ = "SELECT metric, subject, value, unit FROM performance_monitoring"


class Row(NamedTuple):
    """One row of the view: a figure of one subject."""

    subject: str
    value: float
    unit: str


class Extremes(NamedTuple):
    """Between which values a metric is, over every subject or of one."""

    metric: str
    subject: str
    lowest: float
    highest: float


@dataclass(frozen=True, slots=True)
class Reading:
    """What a rule is held against; `why` says why there is no value, or none that counts."""

    value: float | None
    unit: str = ""
    subject: str = ""
    why: str = ""
    counts: bool = True  # False: it was measured, of too little to say anything
    parts: tuple[Row, ...] = ()  # single subjects beyond the threshold, the worst first


@dataclass(slots=True)
class _Metric:
    """The values of one metric by their subjects; None where there is nothing to measure."""

    unit: str
    values: dict[str, float | None] = field(default_factory=dict)
    _ascending: list[tuple[float, str]] = field(default_factory=list)  # sorted once for all rules

    def along(self, rule: Rule) -> Iterator[Row]:
        """The rows that have a value, the one furthest along the rule's operator first."""
        if not self._ascending:
            measured = self.values.items()
            self._ascending = sorted((value, name) for name, value in measured if value is not None)
        if rule.operator == "==":
            found = iter(sorted(self._ascending, key=lambda row: not rule.holds(row[0])))
        elif rule.operator in ("<", "<="):
            found = iter(self._ascending)
        else:
            found = reversed(self._ascending)
        return (Row(subject, value, self.unit) for value, subject in found)

    def row(self, subject: str) -> Row | None:
        value = self.values.get(subject)
        return None if value is None else Row(subject, value, self.unit)


class Figures:
    """All rows of the view, as they were at one moment."""

    def __init__(self, rows: Iterable[tuple[str, str | None, float | None, str | None]]) -> None:
        """Rows of (metric, subject, value, unit)."""
        self._metrics: dict[str, _Metric] = {}
        for metric, subject, value, unit in rows:
            found = self._metrics.get(metric)
            if found is None:
                found = self._metrics[metric] = _Metric(unit or "")
            is_number = value is not None and math.isfinite(value)
            found.values[subject or ""] = value if is_number else None

    @classmethod
    def read(cls) -> Figures:
        """The view's rows, in one statement."""
        with connection.cursor() as cursor:
            cursor.execute(_READ)
            return cls(cursor.fetchall())

    def calls(self) -> float | None:
        """How many calls the figures of calls are made of."""
        found = self._metrics.get(RECENT_CALLS)
        return found.values.get(ALL) if found else None

    def extremes(self) -> Iterator[Extremes]:
        """Of each metric that is measured, over every subject."""
        for name, metric in self._metrics.items():
            if values := [value for value in metric.values.values() if value is not None]:
                yield Extremes(name, EVERYTHING, min(values), max(values))

    def reading(self, *, metric: str, server: str | None, rule: Rule) -> Reading:
        """The value for a rule; `server` is its subject in the view, None: everything."""
        found = self._metrics.get(metric)
        if found is None:
            return Reading(None, why=f"performance_monitoring has no metric '{metric}' now")
        calls, least = self.calls(), metric_of(metric).least_calls
        if calls is not None and calls < least:
            why = f"only {calls:g} calls came in lately, and less than {least} say nothing"
            return Reading(None, found.unit, server or ALL, why, counts=False)
        return _furthest(found, rule) if server is None else _of_server(found, metric, server)


def _of_server(found: _Metric, metric: str, server: str) -> Reading:
    if row := found.row(server):
        return Reading(row.value, row.unit, server)
    if server in found.values:
        return Reading(None, found.unit, server, NOTHING)
    # Of such a metric the view lists a server only while there is something to count.
    if metric_of(metric).of_servers:
        return Reading(0.0, found.unit, server)
    return Reading(None, found.unit, server, f"'{metric}' is not measured for this server now")


def _furthest(found: _Metric, rule: Rule) -> Reading:
    first, whole = next(found.along(rule), None), found.row(ALL)
    if first is None:
        return Reading(None, found.unit, ALL, NOTHING)
    worst = whole if whole and _as_far(whole, first, rule) else first
    beyond = takewhile(lambda row: rule.holds(row.value), found.along(rule))
    parts = islice((row for row in beyond if row.subject != ALL), MOST_PARTS)
    return Reading(worst.value, worst.unit, worst.subject, parts=tuple(parts))


def _as_far(whole: Row, first: Row, rule: Rule) -> bool:
    """Of rows that are equally far the whole decides."""
    if rule.operator == "==":
        return rule.holds(whole.value) == rule.holds(first.value)
    return whole.value == first.value
