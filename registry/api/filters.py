"""Filters of the query string. A parameter that nobody reads is an error, not a silence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import django_filters
from django.core.validators import ProhibitNullCharactersValidator
from django.db.models import Q, QuerySet
from django.utils.text import capfirst
from django_filters.rest_framework import DjangoFilterBackend, FilterSet
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema_field
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.views import APIView

from registry.models import HealthStatus, MCPServer, ServerTool, Transport

__all__ = [
    "ChoicesFilter",
    "ExactFilter",
    "IdFilter",
    "StrictFilterBackend",
    "TenantFilter",
    "TruthFilter",
    "refuse_empty",
    "refuse_unknown",
    "text_of",
]

PAGING = frozenset({"cursor", "page_size"})
TEXTS = (django_filters.CharFilter,)
CONTAINING = "A part of the name or of the description; case does not count."


class StrictFilterBackend(DjangoFilterBackend):  # type: ignore[misc]
    """django-filter's, which also names the parameters that a list does not have.

    Filters are a list's: one row is addressed by its id alone. What a view reads by itself it
    names as `parameters`.
    """

    def filter_queryset(
        self, request: Request, queryset: QuerySet[Any], view: APIView
    ) -> QuerySet[Any]:
        if getattr(view, "detail", False):
            refuse_unknown(request, known=frozenset())
            return queryset
        found = self.get_filterset_class(view, queryset)
        names = frozenset(found.base_filters) if found else frozenset()
        names |= PAGING if getattr(view, "paginator", None) else frozenset()
        refuse_unknown(request, known=names | getattr(view, "parameters", frozenset()))
        if found:
            refuse_empty(request, _with_a_value(found.base_filters))
        filtered: QuerySet[Any] = super().filter_queryset(request, queryset, view)
        return filtered


def refuse_unknown(request: Request, *, known: frozenset[str]) -> None:
    """400 that names each query parameter outside of `known` (and what there is instead)."""
    hint = f"There are: {', '.join(sorted(known))}." if known else "None can be given here."
    unknown = set(request.query_params) - known
    if unknown:
        raise ValidationError({name: [f"No such parameter. {hint}"] for name in sorted(unknown)})


def refuse_empty(request: Request, names: Iterable[str]) -> None:
    """400 for each parameter of `names` without a value: the libraries would pass over it."""
    given = request.query_params
    empty = [name for name in names if name in given and not given[name].strip()]
    if empty:
        raise ValidationError(
            {name: ["Write a value, or leave the parameter out."] for name in empty}
        )


def text_of(request: Request, name: str) -> str | None:
    """What a parameter says, for a view without a list's filters; 400 as theirs is."""
    refuse_empty(request, [name])
    text = request.query_params.get(name)
    if text is not None and "\0" in text:
        raise ValidationError({name: [ProhibitNullCharactersValidator.message]})
    return text and text.strip()


def _with_a_value(filters: Mapping[str, django_filters.Filter]) -> Iterator[str]:
    """The filters that an empty text is no value of."""
    return (name for name, filter_ in filters.items() if not isinstance(filter_, TEXTS))


@extend_schema_field(OpenApiTypes.BOOL)
class TruthFilter(django_filters.TypedChoiceFilter):  # type: ignore[misc]
    """`true` or `false`; the library's own takes any other word for no filter at all."""

    def __init__(self, **kwargs: Any) -> None:
        choices = [(word, word) for word in ("true", "false")]
        errors = {"invalid_choice": "Write true or false."}
        super().__init__(
            choices=choices, coerce=lambda word: word == "true", error_messages=errors, **kwargs
        )


class ChoicesFilter(django_filters.MultipleChoiceFilter):  # type: ignore[misc]
    """Rows with one of these words; the parameter may be given several times."""

    def __init__(self, *, choices: Sequence[tuple[str, Any]], **kwargs: Any) -> None:
        known = ", ".join(word for word, _ in choices)
        errors = {"invalid_choice": f"“%(value)s” is none of: {known}."}
        super().__init__(choices=choices, error_messages=errors, **kwargs)


class IdFilter(django_filters.UUIDFilter):  # type: ignore[misc]
    """Rows that carry an id; `of` says whose, such as "a server's"."""

    def __init__(self, field: str, *, of: str, help_text: str = "", **kwargs: Any) -> None:
        errors = {"invalid": f"Write {of} id: a UUID, no name."}
        text = help_text or f"{capfirst(of)} id."
        super().__init__(field_name=field, error_messages=errors, help_text=text, **kwargs)


class ExactFilter(django_filters.CharFilter):  # type: ignore[misc]
    """Rows with exactly this text."""

    def __init__(self, field: str | None = None, *, help_text: str = "", **kwargs: Any) -> None:
        text = f"{help_text} Matches the whole text; case counts.".strip()
        super().__init__(field_name=field, help_text=text, **kwargs)


class TenantFilter(ExactFilter):
    """Rows of one tenant, by its slug."""

    def __init__(self, field: str = "tenant__slug", **kwargs: Any) -> None:
        super().__init__(field, help_text="A tenant's slug; of use to operators.", **kwargs)


class MCPServerFilter(FilterSet):  # type: ignore[misc]
    tenant = TenantFilter()
    slug = ExactFilter()
    endpoint_url = ExactFilter(help_text="The address.")
    search = django_filters.CharFilter(method="containing", help_text=CONTAINING)
    tag = ExactFilter(method="tagged", help_text="One tag.")
    health_status = ChoicesFilter(choices=HealthStatus.choices)
    transport_type = ChoicesFilter(choices=Transport.choices)
    is_enabled = TruthFilter()

    class Meta:
        model = MCPServer
        fields: list[str] = []

    def containing(self, rows: QuerySet[Any], _: str, text: str) -> QuerySet[Any]:
        return rows.filter(Q(name__icontains=text) | Q(description__icontains=text))

    def tagged(self, rows: QuerySet[Any], _: str, tag: str) -> QuerySet[Any]:
        return rows.filter(tags__contains=[tag])


class ServerToolFilter(FilterSet):  # type: ignore[misc]
    tenant = TenantFilter("server__tenant__slug")
    server = IdFilter("server_id", of="a server's")
    name = ExactFilter()
    search = django_filters.CharFilter(method="containing", help_text=CONTAINING)
    is_enabled = TruthFilter()

    class Meta:
        model = ServerTool
        fields: list[str] = []

    def containing(self, rows: QuerySet[Any], _: str, text: str) -> QuerySet[Any]:
        return rows.filter(Q(name__icontains=text) | Q(description__icontains=text))
