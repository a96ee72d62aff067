"""What a rule would have made of the past. No database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from monitoring.alerts.history import BUCKET, Point, would_have_fired
from monitoring.alerts.rules import Rule

AT = datetime(2026, 6, 15, 12, tzinfo=UTC)


def rule(operator: str = ">", threshold: float = 10.0, *, minutes: int = 0, **fields) -> Rule:
    return Rule(operator, threshold, timedelta(minutes=minutes), timedelta(0), **fields)


def points(*highest: float | None, lowest: float = 0.0) -> list[Point]:
    """One each five minutes; None: nothing was measured."""
    found = [(AT + number * BUCKET, value) for number, value in enumerate(highest)]
    return [Point(at, min(lowest, value), value) for at, value in found if value is not None]


def spans(found) -> list[tuple[int, int | None, float]]:
    """(first, last + 1, worst) in numbers of five minutes."""
    return [
        ((each.since - AT) // BUCKET, each.until and (each.until - AT) // BUCKET, each.worst)
        for each in found
    ]


@pytest.mark.parametrize(
    ("minutes", "values", "wanted"),
    [
        (0, [], []),
        (0, [5, 10], []),
        (0, [5, 11, 30, 12, 0, 0], [(1, 5, 30)]),
        (0, [11], [(0, None, 11)]),
        (10, [11, 11, 0, 11, 11, 11, 0, 0, 0, 0], [(5, 8, 11)]),
        (0, [11, 9.8, 9.8, 0, 0, 11], [(0, 4, 11), (5, None, 11)]),  # not clear, then clear
        (10, [11, 11, None, 11, 11], []),  # a gap breaks off what was not for long enough
        (0, [11, None, None, 20, 0, 0], [(0, 5, 20)]),  # and ends nothing
    ],
)
def test_firings(minutes, values, wanted) -> None:
    assert spans(would_have_fired(rule(minutes=minutes), points(*values))) == wanted


def test_five_minutes_of_too_few_calls_fire_nothing_and_end_a_firing() -> None:
    quiet = [Point(AT + number * BUCKET, 0.0, 99.0, counts=False) for number in range(2, 5)]
    assert would_have_fired(rule(), quiet) == []
    assert spans(would_have_fired(rule(), [*points(11, 12), *quiet])) == [(0, 3, 12)]


def test_of_each_five_minutes_the_value_furthest_along_counts() -> None:
    low = [Point(AT, 0.95, 0.99), Point(AT + BUCKET, 0.5, 0.99), Point(AT + 2 * BUCKET, 1.0, 1.0)]
    found = would_have_fired(rule("<", 0.9, ceiling=1.0), low)
    assert spans(found) == [(1, None, 0.5)]
    between = [Point(AT, 0.0, 4.0)]
    assert spans(would_have_fired(rule("==", 2.0), between)) == [(0, None, 2.0)]
    assert would_have_fired(rule("==", 5.0), between) == []
