"""Identifiers ordered by time, so that new rows land at the end of their indexes."""

import secrets
import time
import uuid
from datetime import UTC, datetime

__all__ = ["time_of", "uuid7", "uuid_or_none"]


def uuid7() -> uuid.UUID:
    """A version 7 UUID: 48 bits of Unix milliseconds, 12 of sub-millisecond time, 62 random.

    Source: RFC 9562, section 5.7 with method 3 of section 6.2. (Python has its own from 3.14.)
    """
    milliseconds, nanoseconds = divmod(time.time_ns(), 1_000_000)
    fraction = (nanoseconds << 12) // 1_000_000
    value = milliseconds << 80 | 0x7 << 76 | fraction << 64 | 0b10 << 62 | secrets.randbits(62)
    return uuid.UUID(int=value)


def uuid_or_none(text: str | None) -> uuid.UUID | None:
    """What was typed or linked as an id, if it is one."""
    try:
        return uuid.UUID((text or "").strip())
    except ValueError:
        return None


def time_of(identifier: uuid.UUID) -> datetime | None:
    """When a version 7 UUID was made, to the millisecond; None for other versions.

    None, too, for a time so far ahead that a day more might leave what a datetime can hold.
    """
    if identifier.version != 7:
        return None
    try:
        at = datetime.fromtimestamp((identifier.int >> 80) / 1000, tz=UTC)
    except (OverflowError, ValueError, OSError):
        return None
    return at if at.year < 9000 else None
