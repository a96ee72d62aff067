"""The figures of `performance_monitoring`, read once for all rules, and the one that a rule means.

A rule for one server means that server's row. A rule without a server means every row of its
metric: the one furthest along its operator decides, so that one bad table among a hundred good
ones is seen.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from monitoring.alerts.rules import Rule
from monitoring.queries import fetch_rows

__all__ = ["ALL", "Figures", "Reading", "Row"]

ALL = "all"
# Of these the view lists a server only while there is something to count: no row is a zero.
ZERO_WHEN_ABSENT = frozenset({"open_breakers", "pool_utilisation_percent", "queue_depth"})
CEILINGS = {"ratio": 1.0, "percent": 100.0}
MOST_PARTS = 5

# Metrics that no rule names cost nothing: the planner drops their branches of the view.
_READ = """
SELECT metric, subject, value, unit
FROM performance_monitoring
WHERE metric = ANY(%(metrics)s::text[])
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the view: a figure of one subject."""

    subject: str
    value: float | None
    unit: str

    @property
    def is_measured(self) -> bool:
        return self.value is not None and math.isfinite(self.value)


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


class Figures:
    """All rows of some metrics, as they were at one moment."""

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._rows: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            figure = Row(row["subject"] or "", row["value"], row["unit"] or "")
            self._rows[row["metric"]].append(figure)

    @classmethod
    def read(cls, metrics: Collection[str]) -> Figures:
        """The metrics' rows, in one statement."""
        return cls(fetch_rows(_READ, {"metrics": sorted(metrics)}))

    def reading(self, *, metric: str, server: str | None, rule: Rule) -> Reading:
        """The value for a rule; `server` is its subject in the view, None: everything."""
        rows = self._rows.get(metric, [])
        if not rows:
            return Reading(None, why=f"performance_monitoring has no metric '{metric}' now")
        if server is not None:
            return _of_server(rows, metric, server)
        return _furthest([row for row in rows if row.is_measured], rule, unit=rows[0].unit)


def _of_server(rows: list[Row], metric: str, server: str) -> Reading:
    found = next((row for row in rows if row.subject == server), None)
    unit = rows[0].unit
    if found is None and metric in ZERO_WHEN_ABSENT:
        return Reading(0.0, unit, server)
    if found is None:
        return Reading(None, unit, server, f"'{metric}' is not measured for this server now")
    if not found.is_measured:
        return Reading(None, unit, server, "there is nothing to measure now")
    return Reading(found.value, unit, server)


def _furthest(rows: list[Row], rule: Rule, *, unit: str) -> Reading:
    if not rows:
        return Reading(None, unit, ALL, "there is nothing to measure now")
    ordered = sorted(rows, key=lambda row: (*_distance(rule, row), row.subject != ALL))
    worst = ordered[0]
    beyond = [row for row in ordered if row.subject != ALL and rule.holds(_value(row))]
    return Reading(worst.value, worst.unit, worst.subject, parts=tuple(beyond[:MOST_PARTS]))


def _distance(rule: Rule, row: Row) -> tuple[bool, float]:
    """Smallest for the row that the rule should look at."""
    value = _value(row)
    if rule.operator == "==":
        return not rule.holds(value), 0.0 if row.subject == ALL else 1.0
    return False, value if rule.operator in ("<", "<=") else -value


def _value(row: Row) -> float:
    return row.value if row.value is not None else math.nan
