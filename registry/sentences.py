"""Errors of libraries as parts of sentences."""

from __future__ import annotations

__all__ = ["first_line"]


def first_line(error: BaseException | str) -> str:
    """libpq explains itself over several lines, of which the first one says what is the matter."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")
