"""SVG for the docs: bars on a logarithmic scale. Written by hand: it is rectangles and text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from gateway.bench.arms import ARMS
from gateway.bench.reads import EXECUTION
from gateway.bench.run import Result

__all__ = ["bar_chart", "write_charts"]

COLOURS = ("#94a3b8", "#f59e0b", "#0d9488")  # A, B, C; readable on light and dark pages
INK = "#64748b"
LEFT, WIDTH, BAR, GAP, TOP = 250, 560, 14, 16, 58
ROOM = 110  # for the figure after the longest bar

Bars = Sequence[tuple[str, Sequence[float]]]


def write_charts(result: Result, folder: Path) -> list[Path]:
    """Two files: time and buffers of every query in the three arms."""
    folder.mkdir(parents=True, exist_ok=True)
    times: list[tuple[str, list[float]]] = []
    buffers: list[tuple[str, list[float]]] = []
    for finding in result.findings:
        arms = [finding.arms[arm.name] for arm in ARMS]
        times.append((finding.query.title, [arm.median(EXECUTION) for arm in arms]))
        buffers.append((finding.query.title, [arm.explained.buffers_median for arm in arms]))
    size = f"{result.sizes.requests:,} request log rows, {result.sizes.servers:,} servers"
    charts = {
        "bench-times.svg": bar_chart(f"Median milliseconds of execution ({size})", times),
        "bench-buffers.svg": bar_chart(f"Median buffers of 8 kB ({size})", buffers),
    }
    for name, chart in charts.items():
        (folder / name).write_text(chart, encoding="utf-8")
    return [folder / name for name in charts]


def bar_chart(title: str, groups: Bars) -> str:
    """One group of bars a label, one bar an arm."""
    largest = max((value for _, values in groups for value in values), default=1.0)
    positive = [value for _, values in groups for value in values if value > 0]
    smallest = min(positive, default=1.0)
    low, high = math.floor(math.log10(smallest)), math.ceil(math.log10(max(largest, smallest * 10)))
    group = len(ARMS) * BAR + GAP
    height = TOP + len(groups) * group + 26
    parts = [*_frame(title, height), *_legend(), *_grid(low, high, height)]
    for place, (label, values) in enumerate(groups):
        top = TOP + place * group
        parts.append(_text(LEFT - 8, top + len(ARMS) * BAR / 2 + 4, label, anchor="end"))
        parts += _bars(values, top, low, high)
    return "\n".join([*parts, "</svg>", ""])


def _frame(title: str, height: int) -> list[str]:
    width = LEFT + WIDTH + ROOM
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"'
        f' font-family="system-ui, sans-serif" font-size="12" fill="{INK}">',
        f"<title>{escape(title)}</title>",
        _text(12, 22, title, size=15),
    ]


def _legend() -> list[str]:
    parts = []
    for place, arm in enumerate(ARMS):
        left = LEFT + place * 190
        parts.append(f'<rect x="{left}" y="32" width="11" height="11" fill="{COLOURS[place]}"/>')
        parts.append(_text(left + 16, 42, f"{arm.letter}: {arm.title}"))
    return parts


def _grid(low: int, high: int, height: int) -> list[str]:
    """A line for each power of ten, with its figure below."""
    parts = []
    for step in range(high - low + 1):
        x, bottom = LEFT + WIDTH * step / (high - low), height - 22
        parts.append(
            f'<path d="M{x:.1f} {TOP - 8}V{bottom}" stroke="{INK}" stroke-opacity="0.25"/>'
        )
        parts.append(_text(x, bottom + 15, _figure(10.0 ** (low + step)), anchor="middle", size=11))
    return parts


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _bars(values: Sequence[float], top: float, low: int, high: int) -> list[str]:
    parts = []
    for place, value in enumerate(values):
        share = (math.log10(value) - low) / (high - low) if value > 0 else 0.0
        length, y = WIDTH * share, top + place * BAR
        parts.append(
            f'<rect x="{LEFT}" y="{y}" width="{max(1.0, length):.1f}" height="{BAR - 2}"'
            f' fill="{COLOURS[place]}"/>'
        )
        parts.append(_text(LEFT + length + 5, y + BAR - 4, _figure(value), size=11))
    return parts


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">'
        f"{escape(text)}</text>"
    )
