"""What we let into `jsonb`: what it can hold, and no deeper than people write."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

__all__ = ["UNSTORABLE", "is_storable", "levels"]

DEEPEST = 32  # of what people write; ours is three deep
UNSTORABLE = (
    "Leave out NUL characters, unpaired surrogates, infinite numbers and what is nested more than "
    f"{DEEPEST} deep."
)
# A backslash and "ud800" in JSON is a lone half of a character: jsonb and UTF-8 know no such thing.
SURROGATES = range(0xD800, 0xE000)


def is_storable(value: Any) -> bool:
    """Whether a value that was read from JSON may be stored."""
    return all(
        depth <= DEEPEST and all(map(_is_storable_alone, level))
        for depth, level in enumerate(levels(value))
    )


def levels(value: Any) -> Iterator[list[Any]]:
    """The value, what is in it, what is in that, and so on: no recursion, however deep."""
    level = [value]
    while level:
        yield level
        level = [part for one in level for part in _parts(one)]


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return value if isinstance(value, list) else []


def _is_storable_alone(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" not in value and not any(ord(character) in SURROGATES for character in value)
    return not isinstance(value, float) or math.isfinite(value)
