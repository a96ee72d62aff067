"""How the OpenAPI document shows this API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from drf_spectacular.utils import inline_serializer
from rest_framework import serializers

__all__ = ["paths_without_slash", "table_of"]

Endpoint = tuple[str, str, str, Callable[..., Any]]


def paths_without_slash(endpoints: list[Endpoint]) -> list[Endpoint]:
    """The slash at the end is optional (see `Router`); the documented path goes without."""
    return [
        (path.rstrip("/"), regex.rstrip("/"), method, view)
        for path, regex, method, view in endpoints
    ]


def table_of(row: type[serializers.Serializer[Any]]) -> serializers.Serializer[Any]:
    """The envelope of a list, for views that make their rows themselves."""
    name = row.__name__.removesuffix("Serializer") + "Table"
    link = serializers.URLField(allow_null=True)
    fields = {"next": link, "previous": link, "results": row(many=True)}
    return inline_serializer(name, fields=fields)
