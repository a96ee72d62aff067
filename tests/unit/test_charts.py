"""What the dashboard's charts hand to the drawing script."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gateway.dashboard.charts import latency_chart
from gateway.dashboard.window import chosen_window

START = datetime(2026, 1, 1, tzinfo=UTC)
PERCENTILES = ("p50_duration_ms", "p95_duration_ms", "p99_duration_ms")
HOUR = chosen_window({"window": "1"})


def series(durations: list[float | None]) -> list[dict[str, Any]]:
    """One step each, with a call unless None, whose percentiles are all alike."""
    return [
        {
            "bucket": START + n * timedelta(minutes=5),
            "requests": int(value is not None),
            **dict.fromkeys(PERCENTILES, value),
        }
        for n, value in enumerate(durations)
    ]


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
    for line in json.loads(latency_chart(series(durations), HOUR).data)["datasets"]:
        assert [n for n, style in enumerate(line["pointStyle"]) if style] == points
        assert "stack" not in line, "the drawing would add the lines up"


def test_one_long_call_is_marked_beyond_a_scale_that_shows_the_others() -> None:
    chart = latency_chart(series([100.0] * 11 + [60_000.0]), HOUR)
    *lines, beyond = json.loads(chart.data)["datasets"]
    assert all(line["data"] == [100] * 11 + [None] for line in lines)
    assert beyond["data"] == [None] * 11 + [200]
    assert "The scale ends at 200 ms: 1 of the 12 steps with calls went beyond" in chart.summary
    assert "up to 60 s" in chart.summary
    assert chart.legend[-1][1] == beyond["label"] == "beyond 200 ms"
    assert chart.table[-1][1:] == ["60 s"] * 3, "the figures are whole"


@pytest.mark.parametrize(
    "durations",
    [
        [100.0] * 11 + [350.0],  # high, and seen beside the others
        [100.0] * 6 + [60_000.0] * 6,  # not the exception
        [0.0] * 11 + [60_000.0],
        [None, None],
    ],
)
def test_other_durations_are_all_on_the_scale(durations: list[float | None]) -> None:
    chart = latency_chart(series(durations), HOUR)
    assert len(json.loads(chart.data)["datasets"]) == 3
    assert "scale" not in chart.summary
