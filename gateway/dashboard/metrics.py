"""Rows of `performance_monitoring` in words: what is measured, how much, and where its rows are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from django.urls import reverse

from monitoring.alerts.units import written

__all__ = ["Measured", "Problem", "problems"]

WORST_FIRST = ("critical", "warning", "ok")
# Where the rows behind a metric are listed, by the admin's names of pages.
ROWS = {
    "requests_per_minute": ("admin:monitoring_requestlogentry_changelist", "?window=1"),
    "error_rate": ("admin:monitoring_requestlogentry_changelist", "?window=1&outcome=bad"),
    "p95_duration_ms": ("admin:monitoring_requestlogentry_changelist", "?window=1&slower=1000"),
    "open_breakers": ("admin:gateway_circuitbreaker_changelist", "?state__exact=open"),
    "pool_utilisation_percent": ("admin:gateway_connectionpool_changelist", ""),
    "queue_depth": ("admin:gateway_requestqueue_changelist", ""),
    "slow_statement_ms": ("admin:database", "#slowest-statements"),
    "index_usage_percent": ("admin:database", "#indexes"),
    "table_growth_percent": ("admin:database", "#tables"),
    "dead_rows": ("admin:database", "#tables"),
    "failed_tasks": ("admin:monitoring_scheduledtask_changelist", ""),
    "task_late_seconds": ("admin:monitoring_scheduledtask_changelist", ""),
}
ELSEWHERE = ("admin:database", "#measured-now")
NAMES = {
    "p95_duration_ms": "95th percentile of durations",
    "slow_statement_ms": "slowest statement",
    "index_usage_percent": "index usage",
    "table_growth_percent": "table growth in 30 days",
    "pool_utilisation_percent": "pool utilisation",
    "replication_lag_seconds": "replication lag",
    "longest_transaction_seconds": "longest transaction",
    "task_late_seconds": "most overdue task",
    "database_size_bytes": "database size",
}


@dataclass(frozen=True, slots=True)
class Measured:
    """One row of the view."""

    metric: str
    subject: str
    value: float | None
    unit: str
    threshold: float | None
    status: str
    measured_at: datetime

    @property
    def title(self) -> str:
        name = NAMES.get(self.metric, self.metric.replace("_", " "))
        return f"{name[0].upper()}{name[1:]}"

    @property
    def written(self) -> str:
        return written(self.value, self.unit, is_named=True)

    @property
    def limit(self) -> str:
        return written(self.threshold, self.unit, is_named=True, in_full=True)

    @property
    def url(self) -> str:
        name, rest = ROWS.get(self.metric, ELSEWHERE)
        return f"{reverse(name)}{rest}"


@dataclass(frozen=True, slots=True)
class Problem:
    """A metric that is out of bounds, told by the subject that is furthest out."""

    words: str
    status: str
    url: str


def problems(figures: Iterable[Measured]) -> list[Problem]:
    """The critical ones first; one a metric. Late tasks are told by the tasks themselves."""
    out = [one for one in figures if one.status != "ok" and one.metric != "task_late_seconds"]
    by_metric: dict[str, list[Measured]] = {}
    for one in out:
        by_metric.setdefault(one.metric, []).append(one)
    worst = sorted(by_metric.values(), key=lambda rows: _rank(rows[0]))
    return [_problem(rows) for rows in worst]


def _rank(one: Measured) -> int:
    return WORST_FIRST.index(one.status)


def _problem(rows: Sequence[Measured]) -> Problem:
    worst = min(rows, key=lambda one: (_rank(one), one.subject == "all"))
    of_whom = "" if worst.subject == "all" else f" ({worst.subject})"
    others = sum(one.subject != "all" for one in rows) - 1
    more = f" and {others} more" if others > 0 else ""
    words = f"{worst.title}: {worst.written}{of_whom}{more}; the bound is {worst.limit}"
    return Problem(words, worst.status, worst.url)
