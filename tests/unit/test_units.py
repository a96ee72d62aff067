"""How values of metrics are told to people."""

from __future__ import annotations

import pytest

from monitoring.alerts.units import written


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        (0.363636363, "ratio", "36.4 %"),
        (1.0, "ratio", "100 %"),
        (1234.5, "percent", "1,234 %"),
        (1, "breakers", "1 breaker"),
        (2.0, "breakers", "2 breakers"),
        (1, "indexes", "1 index"),
        (1, "days", "1 day"),
        (0, "requests", "0 requests"),
        (1234567.0, "rows", "1,234,567 rows"),
        (99.96, "requests/min", "100 requests/min"),
        (0.0123456, "requests/min", "0.0123 requests/min"),
        (90, "s", "90 s"),
        (1500, "ms", "1.5 s"),
        (5 * 1024**3, "bytes", "5.0 GB"),
        (3, "", "3"),
        (None, "rows", "–"),
    ],
)
def test_a_value_is_told_with_its_unit(value: float | None, unit: str, words: str) -> None:
    assert written(value, unit) == words


def test_beside_the_name_of_the_metric_what_is_counted_goes_without_saying() -> None:
    assert written(5, "breakers", is_named=True) == "5"
    assert written(0.05, "ratio", is_named=True) == "5 %"
    assert written(3, "days", is_named=True) == "3 days"
