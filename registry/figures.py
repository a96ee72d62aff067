"""Figures in words, for people: three digits, and a unit that fits the size."""

from __future__ import annotations

from django.template.defaultfilters import filesizeformat

__all__ = ["NOTHING", "byte_size", "counted", "duration", "number", "percentage"]

NOTHING = "–"
# Name, length and the first duration that is told in the next unit; all in milliseconds.
_UNITS = (
    ("ms", 1, 1000),
    ("s", 1000, 120_000),
    ("min", 60_000, 2 * 3_600_000),
    ("h", 3_600_000, 48 * 3_600_000),
    ("days", 24 * 3_600_000, float("inf")),
)


def number(value: float) -> str:
    """0.363636 → '0.364', 12.34 → '12.3', 12345.6 → '12,346'."""
    return f"{value:.3g}" if abs(value) < 99.95 else f"{value:,.0f}"


def counted(count: int, many: str) -> str:
    """(1, 'rows') → '1 row', (1234, 'rows') → '1,234 rows'; for plurals that add an s alone."""
    return f"{count:,} {many.removesuffix('s') if count == 1 else many}"


def duration(milliseconds: float | None) -> str:
    """12.34 → '12.3 ms', 1500 → '1.5 s', 300000 → '5 min', 86400000 → '24 h'."""
    if milliseconds is None:
        return NOTHING
    unit, length = next((unit, length) for unit, length, end in _UNITS if milliseconds < end)
    return f"{number(milliseconds / length)} {unit}"


def percentage(share: float | None) -> str:
    """0.987 → '98.7 %'."""
    return NOTHING if share is None else f"{number(share * 100)} %"


def byte_size(count: float | None) -> str:
    return NOTHING if count is None else filesizeformat(count)
