"""What metrics were like, five minutes at a time, and what a rule would have made of it.

A pass over the alerts keeps the lowest and the highest value of each metric over all its subjects,
and those of servers that a rule names: a rule that is written later, or changed, can then be held
against the past.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from django.db import connection

from monitoring.alerts.events import server_subject
from monitoring.alerts.figures import EVERYTHING, Extremes
from monitoring.alerts.metrics import RECENT_CALLS, metric_of
from monitoring.alerts.rules import Change, Rule, Standing, step
from monitoring.alerts.units import written
from monitoring.models import MetricSnapshot, PerformanceAlert

__all__ = [
    "BUCKET",
    "LOOK_BACK",
    "Firing",
    "Point",
    "Preview",
    "alert_preview",
    "history_keep",
    "would_have_fired",
]

BUCKET = timedelta(minutes=5)
LOOK_BACK = timedelta(days=7)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# What is within the bounds already is not written again.
_KEEP = """
INSERT INTO metric_snapshots AS kept (metric, subject, bucket, lowest, highest)
SELECT given.metric, given.subject, %(bucket)s, given.lowest, given.highest
FROM unnest(%(metrics)s::text[], %(subjects)s::text[], %(lowest)s::float8[], %(highest)s::float8[])
    AS given (metric, subject, lowest, highest)
ORDER BY given.metric, given.subject
ON CONFLICT (metric, subject, bucket) DO UPDATE SET
    lowest = least(kept.lowest, excluded.lowest), highest = greatest(kept.highest, excluded.highest)
WHERE excluded.lowest < kept.lowest OR excluded.highest > kept.highest
"""


@dataclass(frozen=True, slots=True)
class Point:
    """Between which values a metric was in the five minutes from `at` on."""

    at: datetime
    lowest: float
    highest: float
    counts: bool = True  # False: of too few calls to say anything


@dataclass(frozen=True, slots=True)
class Firing:
    """`until` is None when it would fire still; `worst` is the value furthest along the rule."""

    since: datetime
    until: datetime | None
    worst: float


@dataclass(frozen=True, slots=True)
class Preview:
    """`known_since` is None when nothing is remembered of the metric and the server."""

    known_since: datetime | None
    firings: tuple[Firing, ...]
    unit: str = ""

    def __str__(self) -> str:
        if self.known_since is None:
            return "Nothing is remembered of this metric yet."
        count = len(self.firings)
        since = f"since {self.known_since:%Y-%m-%d %H:%M} UTC"
        if not count:
            return f"Would not have fired {since}."
        times = "once" if count == 1 else f"{count} times"
        return f"Would have fired {times} {since}: {', '.join(map(self._told, self.firings))}."

    def _told(self, firing: Firing) -> str:
        if firing.until is None:
            length = "to now"
        else:
            length = f"for {int((firing.until - firing.since).total_seconds() / 60)} min"
        return f"{firing.since:%m-%d %H:%M} {length} (up to {written(firing.worst, self.unit)})"


def history_keep(extremes: Iterable[Extremes], *, at: datetime) -> None:
    """Widen the bounds of the five minutes that `at` is in, in one statement."""
    rows = list(extremes)
    if not rows:
        return
    metrics, subjects, lowest, highest = (list(column) for column in zip(*rows, strict=True))
    columns = {"metrics": metrics, "subjects": subjects, "lowest": lowest, "highest": highest}
    with connection.cursor() as cursor:
        cursor.execute(_KEEP, {**columns, "bucket": at - (at - EPOCH) % BUCKET})


def alert_preview(alert: PerformanceAlert, *, at: datetime) -> Preview:
    """What the alert's rule, as it is now, would have made of the last week."""
    subject = server_subject(alert.server) if alert.server else EVERYTHING
    metric = metric_of(alert.metric_name)
    least, calls = metric.least_calls, dict[datetime, float]()
    if least:
        kept = _kept(RECENT_CALLS, EVERYTHING, at)
        calls = {bucket: highest for bucket, _, highest in kept}
    points = [
        # Of before calls were counted everything counts.
        Point(bucket, lowest, highest, calls.get(bucket, least) >= least)
        for bucket, lowest, highest in _kept(alert.metric_name, subject, at)
    ]
    firings = tuple(would_have_fired(alert.rule(), points))
    return Preview(points[0].at if points else None, firings, metric.unit)


def _kept(metric: str, subject: str, at: datetime) -> Iterable[tuple[datetime, float, float]]:
    """(Beginning, lowest, highest) of each five minutes of the last week."""
    rows = MetricSnapshot.objects.filter(
        metric=metric, subject=subject, bucket__gt=at - LOOK_BACK, bucket__lte=at
    )
    return rows.order_by("bucket").values_list("bucket", "lowest", "highest")


def would_have_fired(rule: Rule, points: Iterable[Point]) -> list[Firing]:
    """The firings that a rule would have had over these five minutes, in order of time.

    Of each five minutes the value furthest along the rule's operator counts, so it may have fired
    a little less; five minutes without a point break off what was not for long enough.
    """
    standing, firings = Standing(), list[Firing]()
    for at, point in _without_gaps(points):
        value = None if point is None else _furthest(rule, point)
        held = replace(rule, counts=point is None or point.counts)
        standing, changes = step(held, standing, value=value, at=at)
        if value is None:
            continue
        if Change.TRIGGERED in changes:
            firings.append(Firing(at, None, value))
        elif Change.RESOLVED in changes:
            firings[-1] = Firing(firings[-1].since, at, firings[-1].worst)
        elif standing.is_triggered and held.counts:
            firings[-1] = Firing(firings[-1].since, None, _worse(rule, firings[-1].worst, value))
    return firings


def _without_gaps(points: Iterable[Point]) -> Iterator[tuple[datetime, Point | None]]:
    """Each point with its time, and a None where one or more are missing."""
    known = list(points)
    if known:
        yield known[0].at, known[0]
    for before, point in pairwise(known):
        if point.at - before.at > BUCKET:
            yield before.at + BUCKET, None
        yield point.at, point


def _furthest(rule: Rule, point: Point) -> float:
    if rule.operator == "==":
        holds = point.lowest <= rule.threshold <= point.highest
        return rule.threshold if holds else point.highest
    return _worse(rule, point.lowest, point.highest)


def _worse(rule: Rule, one: float, other: float) -> float:
    return min(one, other) if rule.operator in ("<", "<=") else max(one, other)
