"""What alerts can watch: the metrics of the view `performance_monitoring`, as the code knows them.

The view measures; this says what a rule over a metric may be, so that one that can never fire is
refused when it is written and not found out when it is missed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import groupby

from monitoring.alerts.rules import Rule
from registry.figures import number

__all__ = [
    "LEAST_CALLS",
    "METRICS",
    "RECENT_CALLS",
    "Metric",
    "choices",
    "metric_of",
    "rule_faults",
    "rule_remark",
    "unknown",
]

RECENT_CALLS = "recent_calls"
# What fewer calls say of a share or a percentile is chance: one that fails among five is 20 %.
LEAST_CALLS = 20


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric; of bounds both ends can be reached."""

    name: str
    group: str
    about: str
    unit: str  # as the view gives it
    of_servers: bool = False  # has a row for each server that has something to count
    least_calls: int = 0  # of the window: with fewer there is nothing to judge
    lowest: float = 0.0
    highest: float = math.inf

    @property
    def ceiling(self) -> float | None:
        return self.highest if math.isfinite(self.highest) else None


CALLS, SERVERS, DATABASE, ITSELF = "Calls", "Servers", "Database", "The gateway itself"

METRICS = {
    metric.name: metric
    for metric in (
        Metric("error_rate", CALLS, "share of the last minutes' calls that failed, 0 to 1", "ratio",
               least_calls=LEAST_CALLS, highest=1.0),
        Metric("p95_duration_ms", CALLS, "what 95 % of the last minutes' calls are faster than",
               "ms", least_calls=LEAST_CALLS),
        Metric(RECENT_CALLS, CALLS, "the last minutes' calls that error_rate is made of",
               "calls"),
        Metric("requests_per_minute", CALLS, "calls a minute in the last minutes", "requests/min"),
        Metric("open_breakers", SERVERS, "circuit breakers that let no call through", "breakers",
               of_servers=True),
        Metric("pool_utilisation_percent", SERVERS, "upstream connections in use", "percent",
               highest=100.0, of_servers=True),
        Metric("queue_depth", SERVERS, "calls that wait for a connection", "requests",
               of_servers=True),
        Metric("cache_hit_ratio", DATABASE, "reads of blocks that needed no disk, 0 to 1", "ratio",
               highest=1.0),
        Metric("database_connections", DATABASE, "sessions of the database server", "connections"),
        Metric("database_size_bytes", DATABASE, "size of the database", "bytes"),
        Metric("dead_rows", DATABASE, "rows that vacuum has to remove", "rows"),
        Metric("index_hit_ratio", DATABASE, "as cache_hit_ratio, of indexes alone", "ratio",
               highest=1.0),
        Metric("index_usage_percent", DATABASE, "rows of large tables that an index found",
               "percent", highest=100.0),
        Metric("invalid_indexes", DATABASE, "indexes whose build was cut off", "indexes"),
        Metric("longest_transaction_seconds", DATABASE, "age of the oldest open transaction", "s"),
        Metric("partition_days_ahead", DATABASE, "days for which the logs have partitions", "days"),
        Metric("replication_lag_seconds", DATABASE, "how far a standby is behind", "s"),
        Metric("slow_statement_ms", DATABASE, "mean duration of the slowest statement", "ms"),
        Metric("table_growth_percent", DATABASE, "growth of a large table in thirty days",
               "percent", lowest=-100.0),
        Metric("wraparound_percent", DATABASE, "transaction ids that are used up", "percent",
               highest=100.0),
        Metric("failed_tasks", ITSELF, "periodic tasks whose last run failed", "tasks"),
        Metric("task_late_seconds", ITSELF, "how long the most overdue task has been due", "s"),
        Metric("rollup_lag_seconds", ITSELF, "age of the oldest calls that are not added up", "s"),
        Metric("spooled_log_rows", ITSELF, "log rows that wait in files", "rows"),
        Metric("lost_log_rows", ITSELF, "log rows of processes that lost some in the last hour",
               "rows"),
    )
}  # fmt: skip


def metric_of(name: str) -> Metric:
    """The metric; of a name that none has, one about which nothing is known."""
    return METRICS.get(name) or Metric(name, group="", about="", unit="")


def choices() -> list[tuple[str, list[tuple[str, str]]]]:
    """(group, (name, words) each), for forms."""
    return [
        (group, [(one.name, f"{one.name}: {one.about}") for one in metrics])
        for group, metrics in groupby(METRICS.values(), key=lambda one: one.group)
    ]


def unknown(name: str) -> str:
    """What to say of a name that no metric has; empty for one that there is."""
    if name in METRICS:
        return ""
    typed = "_".join(name.lower().replace("-", " ").split())
    near = get_close_matches(typed, METRICS, n=3)
    hint = f" Did you mean {_either(near)}?" if near else ""
    return f"There is no metric '{name}'.{hint} docs/alerts.md and the API's schema list them all."


def rule_faults(name: str, rule: Rule, *, of_server: bool) -> dict[str, str]:
    """Why a rule over a known metric can never fire, by the alert's field; empty when it can."""
    faults: dict[str, str] = {}
    if (metric := METRICS.get(name)) is None:
        return faults
    if of_server and not metric.of_servers:
        known = [one.name for one in METRICS.values() if one.of_servers]
        faults["server"] = (
            f"{name} is measured of the whole gateway only: leave the server out, "
            f"or watch {_either(known)}."
        )
    if not rule.can_hold(metric.lowest, metric.highest):
        faults["threshold_value"] = f"{name} {_range(metric)}, so {_condition(rule)} never holds."
    return faults


def rule_remark(name: str, rule: Rule) -> str:
    """What to say of a rule that fires whatever is measured; empty of any other."""
    metric = METRICS.get(name)
    if metric is None or not rule.always_holds(metric.lowest, metric.highest):
        return ""
    return f"{name} {_range(metric)}, so {_condition(rule)} always holds: it fires all the time."


def _condition(rule: Rule) -> str:
    return f"{rule.operator} {number(rule.threshold, in_full=True)}"


def _range(metric: Metric) -> str:
    if metric.ceiling is None:
        return f"is never below {metric.lowest:g}"
    return f"lies between {metric.lowest:g} and {metric.highest:g}"


def _either(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
