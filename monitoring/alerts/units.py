"""Values of metrics in words, by the units of the view `performance_monitoring`."""

from __future__ import annotations

from decimal import Decimal
from typing import Protocol

from registry.figures import NOTHING, byte_size, duration, number, percentage

__all__ = ["written"]


class _Writer(Protocol):
    def __call__(self, value: float, /, *, in_full: bool) -> str: ...


def _seconds(value: float, /, *, in_full: bool) -> str:
    return duration(float(Decimal(str(value)) * 1000), in_full=in_full)


def _percent(value: float, /, *, in_full: bool) -> str:
    return percentage(float(Decimal(str(value)) / 100), in_full=in_full)


def _bytes(value: float, /, *, in_full: bool) -> str:
    return byte_size(value, in_full=in_full).replace("\xa0", " ")


_WRITTEN: dict[str, _Writer] = {
    "ms": duration,
    "s": _seconds,
    "ratio": percentage,
    "percent": _percent,
    "bytes": _bytes,
}
# What is counted, one and many. The name of such a metric says it already, but for days.
_ONE_OF = {
    "breakers": "breaker",
    "calls": "call",
    "connections": "connection",
    "days": "day",
    "indexes": "index",
    "requests": "request",
    "rows": "row",
    "tasks": "task",
}


def written(
    value: float | None, unit: str, *, is_named: bool = False, in_full: bool = False
) -> str:
    """(0.363636, 'ratio') → '36.4 %', (1, 'breakers') → '1 breaker'; None → '–'.

    `is_named`: the metric's name stands beside it, so that what is counted goes without saying.
    `in_full`: every digit, for a threshold.
    """
    if value is None:
        return NOTHING
    if write := _WRITTEN.get(unit):
        return write(value, in_full=in_full)
    counted = number(value, in_full=in_full)
    if is_named and unit in _ONE_OF and unit != "days":
        return counted
    return f"{counted} {_ONE_OF.get(unit, unit) if value == 1 else unit}".strip()
