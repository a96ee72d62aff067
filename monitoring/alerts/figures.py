"""The figures of `performance_monitoring`, read once for all rules, and the one that a rule means.

A rule for one server means that server's row. A rule without a server means every row of its
metric: the one furthest along its operator decides, so that one bad table among a hundred good
ones is seen.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from django.db import connection

from monitoring.alerts.rules import Rule

__all__ = ["ALL", "Figures", "Reading", "Row"]

ALL = "all"
NOTHING = "there is nothing to measure now"
# Of these the view lists a server only while there is something to count: no row is a zero.
ZERO_WHEN_ABSENT = frozenset({"open_breakers", "pool_utilisation_percent", "queue_depth"})
CEILINGS = {"ratio": 1.0, "percent": 100.0}
MOST_PARTS = 5

_READ = """
SELECT metric, subject, value, unit
FROM performance_monitoring
WHERE metric = ANY(%(metrics)s::text[])
"""


class Row(NamedTuple):
    """One row of the view: a figure of one subject."""

    subject: str
    value: float
    unit: str


@dataclass(frozen=True, slots=True)
class Reading:
    """What a rule is held against; `why` says why there is no value."""

    value: float | None
    unit: str = ""
    subject: str = ""
    why: str = ""
    parts: tuple[Row, ...] = ()  # single subjects beyond the threshold, the worst first

    @property
    def ceiling(self) -> float | None:
        return CEILINGS.get(self.unit)


@dataclass(slots=True)
class _Metric:
    """The rows of one metric by their subjects; `measured` are those that have a value."""

    unit: str
    subjects: set[str] = field(default_factory=set)
    measured: dict[str, Row] = field(default_factory=dict)


class Figures:
    """All rows of some metrics, as they were at one moment."""

    def __init__(self, rows: Iterable[tuple[str, str | None, float | None, str | None]]) -> None:
        """Rows of (metric, subject, value, unit)."""
        self._metrics: dict[str, _Metric] = {}
        for metric, subject, value, unit in rows:
            found = self._metrics.get(metric)
            if found is None:
                found = self._metrics[metric] = _Metric(unit or "")
            found.subjects.add(subject or "")
            if value is not None and math.isfinite(value):
                found.measured[subject or ""] = Row(subject or "", value, unit or "")

    @classmethod
    def read(cls, metrics: Collection[str]) -> Figures:
        """The metrics' rows, in one statement."""
        with connection.cursor() as cursor:
            cursor.execute(_READ, {"metrics": sorted(metrics)})
            return cls(cursor.fetchall())

    def reading(self, *, metric: str, server: str | None, rule: Rule) -> Reading:
        """The value for a rule; `server` is its subject in the view, None: everything."""
        found = self._metrics.get(metric)
        if found is None:
            return Reading(None, why=f"performance_monitoring has no metric '{metric}' now")
        return _furthest(found, rule) if server is None else _of_server(found, metric, server)


def _of_server(found: _Metric, metric: str, server: str) -> Reading:
    if row := found.measured.get(server):
        return Reading(row.value, row.unit, server)
    if server in found.subjects:
        return Reading(None, found.unit, server, NOTHING)
    if metric in ZERO_WHEN_ABSENT:
        return Reading(0.0, found.unit, server)
    return Reading(None, found.unit, server, f"'{metric}' is not measured for this server now")


def _furthest(found: _Metric, rule: Rule) -> Reading:
    if not found.measured:
        return Reading(None, found.unit, ALL, NOTHING)
    worst = min(found.measured.values(), key=partial(_place, rule))
    beyond = (
        row for row in found.measured.values() if row.subject != ALL and rule.holds(row.value)
    )
    parts = heapq.nsmallest(MOST_PARTS, beyond, key=partial(_place, rule))
    return Reading(worst.value, worst.unit, worst.subject, parts=tuple(parts))


def _place(rule: Rule, row: Row) -> tuple[float, bool]:
    """Smallest for the row that decides; of equal ones that is the whole."""
    if rule.operator == "==":
        return not rule.holds(row.value), row.subject != ALL
    return row.value if rule.operator in ("<", "<=") else -row.value, row.subject != ALL
