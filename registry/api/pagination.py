"""Pages that stay right while rows arrive, and that cost the same however far one reads."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError as DjangoValidationError
from django.db.models import Model, QuerySet
from rest_framework.exceptions import ValidationError
from rest_framework.pagination import BasePagination
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.settings import api_settings
from rest_framework.utils.urls import remove_query_param, replace_query_param
from rest_framework.views import APIView

from registry.db.ids import time_of
from registry.db.keyset import Order, Place
from registry.db.search import search

__all__ = [
    "CURSOR",
    "PAGE_SIZE",
    "PAGE_SIZE_SCHEMA",
    "Keyset",
    "NewestFirst",
    "envelope_schema",
]

MAX_PAGE_SIZE = 500
# Of the parameters, in OpenAPI.
CURSOR = "The place to go on from: use `next` and `previous` as they are."
PAGE_SIZE = "Rows a page."
PAGE_SIZE_SCHEMA = {
    "type": "integer",
    "minimum": 1,
    "maximum": MAX_PAGE_SIZE,
    "default": api_settings.PAGE_SIZE,
}
SEARCHED = (
    "A page of a log may be short or empty and have one, where a search stopped for the time being:"
    " null alone means the end."
)


class Keyset(BasePagination):
    """Keyset pages, descending: no OFFSET, no COUNT(*).

    A cursor is opaque to clients: a direction and the place of the row at the page's end. The
    fields of `ordering` are never null, and the last of them is unique.
    """

    ordering: tuple[str, ...]
    walked: QuerySet[Any] | None = None  # see registry.db.search

    def __init__(self, *, time_field: str | None = None) -> None:
        """`time_field`: the time of the rows of a log, whose ids tell about it."""
        self.order = Order(self.ordering, time_field)

    @classmethod
    def first_page(cls, rows: QuerySet[Any]) -> QuerySet[Any]:
        """What a list without parameters reads: a page, and the row that tells of another."""
        size = api_settings.PAGE_SIZE or MAX_PAGE_SIZE
        return Order(cls.ordering).sort(rows)[: size + 1]

    def paginate_queryset(  # type: ignore[override]  # lists cannot be asked for what follows
        self, queryset: QuerySet[Any], request: Request, view: APIView | None = None
    ) -> list[Any]:
        size = _page_size(request)
        self.url = request.build_absolute_uri()
        cursor = request.query_params.get("cursor")
        backwards, place = self._decode(cursor, queryset.model) if cursor else (False, None)
        found = search(
            queryset,
            order=self.order,
            place=place,
            newer=backwards,
            size=size + 1,
            walked=self.walked,
        )
        more, rows = len(found.rows) > size, found.rows[:size][:: -1 if backwards else 1]
        # Where one came from there is a page; whether there is one ahead, the extra row told.
        following = self._place_of(rows[-1]) if rows and (backwards or more) else None
        turned = more if backwards else place is not None
        preceding = self._place_of(rows[0]) if rows and turned else None
        ends = {"next": following, "previous": preceding}
        if place and not rows:  # the way back is from where this page begins, that row included
            ends["next" if backwards else "previous"] = self._just_past(place, newer=backwards)
        if found.reached:  # the search goes on there, however many rows it found
            ends["previous" if backwards else "next"] = found.reached
        self.links = {name: end and self._link(name, end) for name, end in ends.items()}
        return rows

    def get_paginated_response(self, data: Any) -> Response:
        return Response({**self.links, "results": data})

    def get_paginated_response_schema(self, schema: dict[str, Any]) -> dict[str, Any]:
        return envelope_schema(schema)

    def get_schema_operation_parameters(self, view: APIView) -> list[dict[str, Any]]:
        return [
            {
                "name": "cursor",
                "in": "query",
                "description": CURSOR,
                "schema": {"type": "string"},
            },
            {
                "name": "page_size",
                "in": "query",
                "description": PAGE_SIZE,
                "schema": PAGE_SIZE_SCHEMA,
            },
        ]

    def _place_of(self, row: Any) -> Place:
        values = row if isinstance(row, dict) else vars(row)
        return {name: values[name] for name in self.ordering}

    def _just_past(self, place: Place, *, newer: bool) -> Place:
        """The place next to one, so that what lies beyond it on the other side has that one too."""
        name = self.ordering[-1]
        beside = place[name].int + (1 if newer else -1)
        return {**place, name: UUID(int=min(max(beside, 0), 2**128 - 1))}

    def _link(self, direction: str, place: Place) -> str:
        values = [str(place[name]) for name in self.ordering]
        text = json.dumps([direction, *values], separators=(",", ":"))
        cursor = urlsafe_b64encode(text.encode()).decode().rstrip("=")
        return replace_query_param(remove_query_param(self.url, "cursor"), "cursor", cursor)

    def _decode(self, cursor: str, model: type[Model]) -> tuple[bool, Place]:
        try:
            padded = cursor + "=" * (-len(cursor) % 4)
            direction, *values = map(_text, json.loads(urlsafe_b64decode(padded)))
            backwards = {"next": False, "previous": True}[direction]
            place = {
                name: _in_utc(model._meta.get_field(name).to_python(value))  # type: ignore[union-attr]
                for name, value in zip(self.ordering, values, strict=True)
            }
        except (
            LookupError, ValueError, TypeError, AttributeError, RecursionError, OverflowError,
            DjangoValidationError,
        ):  # fmt: skip
            message = "No cursor of this list: use `next` and `previous` of an answer as they are."
            raise ValidationError({"cursor": [message]}) from None
        time_field = self.order.time_field
        if time_field and time_field not in place:
            place[time_field] = time_of(place["id"])
        return backwards, place


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _in_utc(value: Any) -> Any:
    """A time as every cursor has it; PostgreSQL takes no offset of 16 hours and more."""
    if not isinstance(value, datetime):
        return value
    if value.tzinfo is None:
        raise ValueError(value)
    return value.astimezone(UTC)


class NewestFirst(Keyset):
    """By id, which is ordered by time."""

    ordering = ("id",)


def envelope_schema(items: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI schema of a list's answer around the schema of its array."""
    link = {"type": "string", "format": "uri", "nullable": True}
    return {
        "type": "object",
        "required": ["next", "previous", "results"],
        "properties": {
            "next": {**link, "description": f"The page of older rows. {SEARCHED}"},
            "previous": {**link, "description": f"The page of newer rows. {SEARCHED}"},
            "results": items,
        },
    }


def _page_size(request: Request) -> int:
    text = request.query_params.get("page_size")
    if text is None:
        return api_settings.PAGE_SIZE or MAX_PAGE_SIZE
    is_number = text.isascii() and text.isdigit() and len(text) < 10
    if not (is_number and 0 < int(text) <= MAX_PAGE_SIZE):
        raise ValidationError({"page_size": [f"Write a whole number from 1 to {MAX_PAGE_SIZE}."]})
    return int(text)
