"""Reading JSON that nobody has vouched for."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import IO, Any

from django.conf import settings
from rest_framework import parsers
from rest_framework.exceptions import APIException, ParseError

from registry.db.jsonb import levels

__all__ = ["JSONParser", "TooLarge"]

DEEPEST = 100


class TooLarge(APIException):
    """The body is longer than DATA_UPLOAD_MAX_MEMORY_SIZE, a setting of Django's."""

    status_code = 413
    default_code = "too_large"
    default_detail = "The body is too large. Send less at once."


class JSONParser(parsers.JSONParser):
    """JSON of bounded size and depth."""

    def parse(
        self,
        stream: IO[Any],
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> Any:
        limit = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
        body = stream.read(limit + 1)
        if len(body) > limit:
            raise TooLarge
        try:
            found = super().parse(BytesIO(body), media_type, parser_context)
            is_deep = any(depth > DEEPEST for depth, _ in enumerate(levels(found)))
        except RecursionError:
            is_deep = True
        if is_deep:  # whoever walks through it, if only for a message, would be lost
            raise ParseError(f"JSON parse error - nested more than {DEEPEST} deep.")
        return found
