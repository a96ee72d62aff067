"""What we let into `jsonb`: what it can hold, and no deeper than people write."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["UNSTORABLE", "is_storable"]

DEEPEST = 32  # of what people write; ours is three deep
UNSTORABLE = (
    "Leave out NUL characters, unpaired surrogates, infinite numbers and what is nested more than "
    f"{DEEPEST} deep."
)
# A backslash and "ud800" in JSON is a lone half of a character: jsonb and UTF-8 know no such thing.
SURROGATES = range(0xD800, 0xE000)


def is_storable(value: Any) -> bool:
    """Whether a value that was read from JSON may be stored."""
    level = [value]
    for _ in range(DEEPEST + 1):
        if not all(map(_is_storable_alone, level)):
            return False
        level = [part for one in level for part in _parts(one)]
        if not level:
            return True
    return False


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return value if isinstance(value, list) else []


def _is_storable_alone(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" not in value and not any(ord(character) in SURROGATES for character in value)
    return not isinstance(value, float) or math.isfinite(value)
