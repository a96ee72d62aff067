"""Values of metrics in words, by the units of the view `performance_monitoring`."""

from __future__ import annotations

from collections.abc import Callable

from registry.figures import NOTHING, byte_size, duration, number, percentage

__all__ = ["written"]

_WRITTEN: dict[str, Callable[[float], str]] = {
    "ms": duration,
    "s": lambda value: duration(value * 1000),
    "ratio": percentage,
    "percent": lambda value: percentage(value / 100),
    "bytes": lambda value: byte_size(value).replace("\xa0", " "),
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


def written(value: float | None, unit: str, *, is_named: bool = False) -> str:
    """(0.363636, 'ratio') → '36.4 %', (1, 'breakers') → '1 breaker'; None → '–'.

    `is_named`: the metric's name stands beside it, so that what is counted goes without saying.
    """
    if value is None:
        return NOTHING
    if write := _WRITTEN.get(unit):
        return write(value)
    if is_named and unit in _ONE_OF and unit != "days":
        return number(value)
    return f"{number(value)} {_ONE_OF.get(unit, unit) if value == 1 else unit}".strip()
