"""How the OpenAPI document shows this API."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from drf_spectacular.utils import inline_serializer
from rest_framework import serializers

__all__ = [
    "bodies_closed",
    "ids_documented",
    "paths_without_slash",
    "refusals_documented",
    "table_of",
]

Endpoint = tuple[str, str, str, Callable[..., Any]]

_TEXT = {"type": "string"}
# The bodies that `registry.api.errors` makes.
_SHAPES = {
    "Refusal": {
        "type": "object",
        "description": "Why the request was not carried out.",
        "required": ["detail"],
        "properties": {
            "detail": {**_TEXT, "description": "What happened, and what to do."},
            "reason": {**_TEXT, "description": "For programs, where refusals differ."},
            "request_id": {**_TEXT, "format": "uuid"},
        },
        "additionalProperties": False,
    },
    "InputFaults": {
        "description": "What is wrong with the input: sentences by field, or a Refusal when it "
        "cannot be read at all.",
        "anyOf": [
            {"$ref": "#/components/schemas/Refusal"},
            {
                "type": "object",
                "description": "`request_id` is the request's, or tells of the filter so named.",
                "properties": {"request_id": {"$ref": "#/components/schemas/Faults"}},
                "additionalProperties": {"$ref": "#/components/schemas/Faults"},
            },
        ],
    },
    "Faults": {
        "description": "Sentences; for what has parts, faults by the part's name or number.",
        "anyOf": [
            _TEXT,
            {"type": "array", "items": {"$ref": "#/components/schemas/Faults"}},
            {
                "type": "object",
                "additionalProperties": {"$ref": "#/components/schemas/Faults"},
            },
        ],
    },
}
_REFUSALS = {
    "400": "The input does not fit.",
    "401": "No valid credentials were sent.",
    "403": "These credentials may not do this.",
    "404": "There is no such row, or none that the caller may see.",
    "406": "JSON is the only form that answers have.",
    "409": "It conflicts with what is stored.",
    "413": "The body is too large.",
    "415": "The body is not JSON.",
    "503": "The database did not answer in time; try again after `Retry-After` seconds.",
}


def paths_without_slash(endpoints: list[Endpoint]) -> list[Endpoint]:
    """The slash at the end is optional (see `Router`); the documented path goes without."""
    return [
        (path.rstrip("/"), regex.rstrip("/"), method, view)
        for path, regex, method, view in endpoints
    ]


def ids_documented(result: dict[str, Any], **_context: Any) -> dict[str, Any]:
    """The id in a path is a UUID, rather than a text with a pattern."""
    for operations in result["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path":
                    parameter["schema"] = {"type": "string", "format": "uuid"}
    return result


def refusals_documented(result: dict[str, Any], **_context: Any) -> dict[str, Any]:
    """Each operation with the refusals that it may answer with, besides what it says itself."""
    result["components"]["schemas"].update(_SHAPES)
    for path, operations in result["paths"].items():
        for method, operation in operations.items():
            for status in _refusals_of(path, method, operation):
                operation["responses"].setdefault(status, _refusal(status))
    return result


def _refusals_of(path: str, method: str, operation: dict[str, Any]) -> Iterator[str]:
    yield from ("400", "401", "403")
    if "{id}" in path:
        yield "404"
    yield "406"
    if method != "get":
        yield "409"
    if "requestBody" in operation:
        yield from ("413", "415")
    yield "503"


def _refusal(status: str) -> dict[str, Any]:
    shape = "InputFaults" if status == "400" else "Refusal"
    reference = {"schema": {"$ref": f"#/components/schemas/{shape}"}}
    return {"description": _REFUSALS[status], "content": {"application/json": reference}}


def bodies_closed(result: dict[str, Any], **_context: Any) -> dict[str, Any]:
    """No body has a field that it does not name."""
    for name, shape in result["components"]["schemas"].items():
        if name.endswith("Request") and shape.get("type") == "object":
            shape["additionalProperties"] = False
    return result


def table_of(row: type[serializers.Serializer[Any]]) -> serializers.Serializer[Any]:
    """The envelope of a list, for views that make their rows themselves."""
    name = row.__name__.removesuffix("Serializer") + "Table"
    link = serializers.URLField(allow_null=True)
    fields = {"next": link, "previous": link, "results": row(many=True)}
    return inline_serializer(name, fields=fields)
