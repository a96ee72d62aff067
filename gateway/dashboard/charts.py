"""Series as charts: what the drawing script takes, and the same figures as a table."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.dashboard.window import Window
from registry.admin_base import duration, percentage

__all__ = ["Chart", "failed_share", "latency_chart", "traffic_chart"]

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart: a column of the series, and how its figures are written."""

    column: str
    title: str
    colour: str  # a variable of the admin's stylesheet, or a colour
    written: Callable[[Any], str]


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture with its words: `summary` says in a sentence what a look at it says."""

    title: str
    summary: str
    data: str  # JSON as the drawing script takes it
    legend: list[tuple[str, str]]  # colour, title
    heads: list[str]
    table: list[list[str]]
    is_empty: bool


def _count(value: int) -> str:
    return f"{value:,}"


# Each call in one of them: they stand on each other, from the bottom.
TRAFFIC = (
    Line("errors", "failed", "#dc2626", _count),
    Line("strangers", "refused without a known key", "#9ca3af", _count),
    Line("well", "answered well", "var(--color-primary-600)", _count),
)
LATENCY = (
    Line("p50_duration_ms", "half within", "var(--color-primary-600)", duration),
    Line("p95_duration_ms", "95 % within", "#d97706", duration),
    Line("p99_duration_ms", "99 % within", "#dc2626", duration),
)
BEYOND = "#7c3aed"


def failed_share(series: Sequence[Row]) -> float | None:
    """Of the calls with a known key; None without any."""
    names = ("requests", "errors", "strangers")
    requests, errors, strangers = (sum(row[name] for row in series) for name in names)
    return errors / (requests - strangers) if requests > strangers else None


def traffic_chart(series: Sequence[Row], window: Window) -> Chart:
    """Calls, failures, and refused calls without a known key."""
    requests, strangers = (sum(row[name] for row in series) for name in ("requests", "strangers"))
    busiest = max(series, key=lambda row: row["requests"], default=None)
    summary = "No calls."
    if requests and busiest:
        summary = (
            f"{requests:,} calls, {percentage(failed_share(series))} failed; most,"
            f" {busiest['requests']:,}, in the {_length(window)} from"
            f" {busiest['bucket']:{window.label}} UTC."
        )
        if strangers:
            summary += f" {strangers:,} without a known key were refused, which is no failure."
    told = [row | {"well": row["requests"] - row["errors"] - row["strangers"]} for row in series]
    return _chart("Calls", TRAFFIC, told, window, summary, fill="bar")


def latency_chart(series: Sequence[Row], window: Window) -> Chart:
    """Percentiles of durations. A few that would flatten all others are beyond the scale."""
    timed = [row for row in series if row["p95_duration_ms"] is not None]
    summary = "No calls."
    if timed:
        slowest = max(timed, key=lambda row: row["p95_duration_ms"])
        summary = (
            f"At the slowest, in the {_length(window)} from {slowest['bucket']:{window.label}} UTC,"
            f" 95 % of the calls took up to {duration(slowest['p95_duration_ms'])}."
        )
    longest = max((row["p99_duration_ms"] for row in timed), default=0)
    if end := _scale_end(timed):
        beyond = sum(_is_beyond(row, end) for row in timed)
        summary += (
            f" The scale ends at {duration(end)}: {beyond} of the {len(timed)} steps with calls"
            f" went beyond it, up to {duration(longest)}; the figures tell."
        )
    unit = ("s", 1000) if (end or longest) >= 10_000 else ("ms", 1)
    return _chart("Duration", LATENCY, series, window, summary, fill="line", unit=unit, end=end)


def _scale_end(timed: Sequence[Row]) -> float | None:
    """Where to cut a scale on which most points would lie at the bottom; None: nowhere.

    Not by the 99th percentile: in a step of few calls one long call lifts all three lines.
    """
    points = sorted(row[line.column] for row in timed for line in LATENCY)
    if not points:
        return None
    end: float = 2 * points[(len(points) - 1) * 9 // 10]
    return end if 0 < 2 * end < points[-1] else None


def _is_beyond(row: Row, end: float) -> bool:
    return any((row[line.column] or 0) > end for line in LATENCY)


def _length(window: Window) -> str:
    return duration(window.step.total_seconds() * 1000)


def _chart(
    title: str,
    lines: Sequence[Line],
    series: Sequence[Row],
    window: Window,
    summary: str,
    *,
    fill: str,
    unit: tuple[str, int] = ("", 1),
    end: float | None = None,
) -> Chart:
    labels = [f"{row['bucket']:{window.label}}" for row in series]
    datasets = [_dataset(line, series, fill=fill, unit=unit, end=end) for line in lines]
    legend = [(line.colour, line.title) for line in lines]
    if end is not None:
        datasets.append(_beyond(series, unit=unit, end=end))
        legend.append((BEYOND, datasets[-1]["label"]))
    shown = [row for row in series if row["requests"]]
    return Chart(
        title=title,
        summary=summary,
        data=json.dumps({"labels": labels, "datasets": datasets}),
        legend=legend,
        heads=["from (UTC)", *(line.title for line in lines)],
        table=[
            [f"{row['bucket']:{window.label}}", *(line.written(row[line.column]) for line in lines)]
            for row in shown
        ],
        is_empty=not shown,
    )


def _dataset(
    line: Line, series: Sequence[Row], *, fill: str, unit: tuple[str, int], end: float | None
) -> dict[str, Any]:
    suffix, divisor = unit
    figures = [_within(row[line.column], end) for row in series]
    return {
        "label": line.title,
        "type": fill,
        "data": [value if value is None else round(value / divisor, 3) for value in figures],
        "borderColor": line.colour,
        "backgroundColor": line.colour,
        "displayYAxis": True,
        "suffixYAxis": suffix,
        "maxTicksXLimit": 8,
        "spanGaps": False,
        "pointStyle": ["circle" if alone else False for alone in _alone(figures)],
        "pointRadius": 3,
        **({"stack": "calls"} if fill == "bar" else {}),  # lines would be added up, too
    }


def _within(value: float | None, end: float | None) -> float | None:
    return None if value is not None and end is not None and value > end else value


def _beyond(series: Sequence[Row], *, unit: tuple[str, int], end: float) -> dict[str, Any]:
    """A mark at the scale's end for each step that went beyond it."""
    place = round(end / unit[1], 3)
    return {
        "label": f"beyond {duration(end)}",
        "type": "line",
        "data": [place if _is_beyond(row, end) else None for row in series],
        "borderColor": BEYOND,
        "backgroundColor": BEYOND,
        "showLine": False,
        "pointStyle": "triangle",
        "pointRadius": 5,
    }


def _alone(figures: Sequence[float | None]) -> list[bool]:
    """Which figures have no neighbour to draw a line to: they show as points or not at all."""
    padded = [None, *figures, None]
    return [
        value is not None and before is None and after is None
        for before, value, after in zip(padded, figures, padded[2:], strict=False)
    ]
