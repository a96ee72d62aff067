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
        (0.9996, "ratio", "99.96 %"),
        (0.99999999, "ratio", "99.99 %"),
        (99.97, "percent", "99.97 %"),
        (99.94, "percent", "99.9 %"),
        (100.04, "percent", "100 %"),
        (0.0000004, "ratio", "0.00004 %"),
        (0.0, "ratio", "0 %"),
        (-12.34, "percent", "-12.3 %"),
        (0.00001, "requests/min", "0.00001 requests/min"),
        (None, "rows", "–"),
        (float("nan"), "ratio", "–"),
    ],
)
def test_a_value_is_told_with_its_unit(value: float | None, unit: str, words: str) -> None:
    assert written(value, unit) == words


@pytest.mark.parametrize(
    ("threshold", "unit", "words"),
    [
        (85.5, "percent", "85.5 %"),
        (85.555, "percent", "85.555 %"),
        (99.97, "percent", "99.97 %"),
        (0.05, "ratio", "5 %"),
        (0.07, "ratio", "7 %"),
        (0.98765, "ratio", "98.765 %"),
        (0.999999, "ratio", "99.9999 %"),
        (0.05, "requests/min", "0.05 requests/min"),
        (1234.5, "requests/min", "1,234.5 requests/min"),
        (1000000, "rows", "1,000,000 rows"),
        (1e-7, "calls", "0.0000001 calls"),
        (1e30, "calls", f"1{',000' * 10} calls"),
        (8.64e31, "ms", f"1{',000' * 8} days"),
        (1234, "ms", "1.234 s"),
        (1234.5, "ms", "1,234.5 ms"),
        (0.0625, "ms", "0.0625 ms"),
        (300, "s", "5 min"),
        (301, "s", "301 s"),
        (90000, "s", "25 h"),
        (5 * 1024**3, "bytes", "5.0 GB"),
        (5 * 1024**3 + 1, "bytes", "5,368,709,121 bytes"),
        (None, "ratio", "–"),
    ],
)
def test_a_threshold_is_told_in_full(threshold: float | None, unit: str, words: str) -> None:
    assert written(threshold, unit, in_full=True) == words


def test_beside_the_name_of_the_metric_what_is_counted_goes_without_saying() -> None:
    assert written(5, "breakers", is_named=True) == "5"
    assert written(0.05, "ratio", is_named=True) == "5 %"
    assert written(3, "days", is_named=True) == "3 days"
