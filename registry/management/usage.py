"""What commands say of arguments that do not fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from django.core.exceptions import ValidationError
from django.core.management.base import CommandError

__all__ = ["usage_error"]


def usage_error(error: ValidationError, *, arguments: Mapping[str, str]) -> CommandError:
    """Wrong usage, status 2: each message behind the argument that gives the field."""
    return CommandError(" ".join(_sentences(error, arguments)), returncode=2)


def _sentences(error: ValidationError, arguments: Mapping[str, str]) -> Iterator[str]:
    if not hasattr(error, "error_dict"):
        yield from error.messages
        return
    for field, messages in error.message_dict.items():
        name = arguments.get(field)
        yield from (f"{name}: {message}" if name else message for message in messages)
