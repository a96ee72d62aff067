"""The one boundary between our errors and HTTP.

Bodies are the REST framework's: `{"detail": …}` with `reason` where programs may want to tell
refusals apart, or `{field: [sentence, …]}` for input that does not fit. Each has the `request_id`
too, unless a filter of that name is what does not fit.
"""

from __future__ import annotations

from typing import Any

from django.core import exceptions as django
from django.db import (
    DatabaseError,
    DataError,
    IntegrityError,
    OperationalError,
    connection,
    transaction,
)
from rest_framework import exceptions as rest
from rest_framework.response import Response
from rest_framework.serializers import as_serializer_error
from rest_framework.views import exception_handler

from registry.api.parsers import TooLarge
from registry.db.partitions import NOWHERE, is_about_partitions

__all__ = ["Busy", "Conflict", "Nowhere", "handle"]


class Conflict(rest.APIException):
    """Somebody else was faster, or something else depends on the row."""

    status_code = 409
    default_code = "conflict"
    default_detail = (
        "This conflicts with what is stored: such a row exists already, or one that is named here "
        "was removed meanwhile. Read it again and retry."
    )


class Busy(rest.APIException):
    """PostgreSQL gave up on a lock or a statement, or cannot be reached."""

    status_code = 503
    default_code = "busy"
    default_detail = "The database could not answer in time. Try again in a few seconds."
    wait = 5  # seconds; becomes Retry-After


class Nowhere(Busy):
    """A log has no partition for the row, because no worker has made one for AHEAD."""

    default_code = "partitions_missing"
    default_detail = NOWHERE
    wait = 60


def handle(error: Exception, context: dict[str, Any]) -> Response | None:
    """The answer to an exception of a view; None lets the server's own 500 happen."""
    if isinstance(error, DatabaseError) and connection.in_atomic_block:
        transaction.set_rollback(True)  # PostgreSQL takes no more statements in this transaction
    known = _translate(error)
    response = exception_handler(known, context)
    if response is not None and response.status_code == 400:
        response.data = _printable(response.data)
    if response is not None and isinstance(response.data, dict):
        reason = getattr(known, "reason", None)
        if reason and "detail" in response.data:
            response.data["reason"] = str(reason)
        if request_id := getattr(context["request"], "request_id", None):
            response.data.setdefault("request_id", str(request_id))
    return response


def _printable(data: Any) -> Any:
    """Without lone halves of characters, which a sentence may repeat and UTF-8 cannot say."""
    match data:
        case dict():
            return {_printable(name): _printable(value) for name, value in data.items()}
        case list():
            return [_printable(value) for value in data]
        case str():
            return data.encode("utf-8", "replace").decode()
    return data


def _translate(error: Exception) -> Exception:
    match error:
        case django.ValidationError():
            return rest.ValidationError(as_serializer_error(error))
        case django.RequestDataTooBig():
            return TooLarge()
        case django.ObjectDoesNotExist():
            return rest.NotFound()
        case IntegrityError():
            return Nowhere() if is_about_partitions(error) else Conflict()
        case DataError():
            return rest.ValidationError(
                {"detail": "A value is outside of what its column can hold. Check the numbers."}
            )
        case OperationalError():
            return Busy()
    return error
