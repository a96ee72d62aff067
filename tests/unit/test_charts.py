"""What the dashboard's charts hand to the drawing script."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from gateway.dashboard.charts import latency_chart
from gateway.dashboard.window import chosen_window

START = datetime(2026, 1, 1, tzinfo=UTC)
PERCENTILES = ("p50_duration_ms", "p95_duration_ms", "p99_duration_ms")


@pytest.mark.parametrize(
    ("durations", "points"),
    [
        ([5.0], [0]),
        ([5.0, None, 6.0, None], [0, 2]),
        ([5.0, 6.0, None, 7.0], [3]),
        ([0.0, None], [0]),
        ([None, 5.0, 6.0], []),
    ],
)
def test_a_duration_without_a_neighbour_is_drawn_as_a_point(
    durations: list[float | None], points: list[int]
) -> None:
    series = [
        {
            "bucket": START + n * timedelta(minutes=5),
            "requests": int(value is not None),
            **dict.fromkeys(PERCENTILES, value),
        }
        for n, value in enumerate(durations)
    ]
    for line in json.loads(latency_chart(series, chosen_window({"window": "1"})).data)["datasets"]:
        assert [n for n, style in enumerate(line["pointStyle"]) if style] == points
