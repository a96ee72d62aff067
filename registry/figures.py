"""Figures in words, for people: three digits, and a unit that fits the size.

So is told what was measured. What somebody set, such as a threshold, is told `in_full`: with every
digit, and in a smaller unit where the usual one would need more than three of them after the point.
"""

from __future__ import annotations

import math
from decimal import ROUND_DOWN, Decimal

from django.template.defaultfilters import filesizeformat

__all__ = ["NOTHING", "byte_size", "counted", "duration", "number", "percentage"]

NOTHING = "–"
# Name, length and the first duration that is told in the next unit; all in milliseconds.
_UNITS: tuple[tuple[str, int, float], ...] = (
    ("ms", 1, 1000),
    ("s", 1000, 120_000),
    ("min", 60_000, 2 * 3_600_000),
    ("h", 3_600_000, 48 * 3_600_000),
    ("days", 24 * 3_600_000, float("inf")),
)
_ROUNDED_TO_ALL = Decimal("99.95")  # per cent that three digits would tell as 100


def number(value: float | Decimal, *, in_full: bool = False) -> str:
    """0.363636 → '0.364', 12.34 → '12.3', 12345.6 → '12,346'; in full '12,345.6'.

    Never with an exponent, and nothing above 0 is told as 0.
    """
    if in_full:
        text = f"{_exactly(value):,f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{Decimal(f'{value:.3g}'):f}" if -99.95 < value < 99.95 else f"{value:,.0f}"


def counted(count: int, many: str) -> str:
    """(1, 'rows') → '1 row', (1234, 'rows') → '1,234 rows'; for plurals that add an s alone."""
    return f"{count:,} {many.removesuffix('s') if count == 1 else many}"


def duration(milliseconds: float | None, *, in_full: bool = False) -> str:
    """12.34 → '12.3 ms', 1500 → '1.5 s', 300000 → '5 min'; 301000 → '5.02 min', in full '301 s'."""
    if milliseconds is None:
        return NOTHING
    usual = next(place for place, (_, _, end) in enumerate(_UNITS) if milliseconds < end)
    if not in_full:
        unit, length, _ = _UNITS[usual]
        return f"{number(milliseconds / length)} {unit}"
    exactly = _exactly(milliseconds)
    units = [(unit, exactly / length) for unit, length, _ in _UNITS[: usual + 1]]
    unit, value = next((one for one in reversed(units) if _is_short(one[1])), units[0])
    return f"{number(value, in_full=True)} {unit}"


def percentage(share: float | None, *, in_full: bool = False) -> str:
    """0.987 → '98.7 %'; what is less than all is never '100 %': 0.999999 → '99.99 %'."""
    if share is None or math.isnan(share):
        return NOTHING
    percent = _exactly(share) * 100
    if in_full:
        return f"{number(percent, in_full=True)} %"
    if _ROUNDED_TO_ALL <= percent < 100:
        return f"{percent.quantize(Decimal('0.01'), ROUND_DOWN)} %"
    return f"{number(float(percent))} %"


def byte_size(count: float | None, *, in_full: bool = False) -> str:
    """5368709120 → '5.0 GB'; where that is not all of it, in full '5,368,709,121 bytes'."""
    if count is None:
        return NOTHING
    powers = [power for power in range(10, 51, 10) if abs(count) >= 1 << power]
    if in_full and powers and not _is_short(_exactly(count) / (1 << powers[-1]), places=1):
        return f"{number(count, in_full=True)} bytes"
    return filesizeformat(count)


def _exactly(value: float | Decimal) -> Decimal:
    """The digits that were written, which a float of 0.07 is not quite."""
    return Decimal(str(value))


def _is_short(value: Decimal, *, places: int = 3) -> bool:
    return -int(value.normalize().as_tuple().exponent) <= places
