"""Serializer fields that refuse what PostgreSQL cannot store."""

from __future__ import annotations

import math
from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.fields import empty

from registry.db.jsonb import UNSTORABLE, is_storable

__all__ = ["FiniteFloatField", "LocalTimeField", "NamesARow", "RoundedField", "SafeJSONField"]


class FiniteFloatField(serializers.FloatField):
    """A number that JSON can show again: neither infinite nor NaN."""

    default_error_messages = {"finite": "Write a finite number."}

    def to_internal_value(self, data: Any) -> float:
        number = super().to_internal_value(data)
        if not math.isfinite(number):
            self.fail("finite")
        return number


class RoundedField(serializers.FloatField):
    """A measured figure without the digits that nobody measured."""

    def __init__(self, *, places: int, **kwargs: Any) -> None:
        super().__init__(read_only=True, **kwargs)
        self.places = places

    def to_representation(self, value: Any) -> Any:
        return round(float(value), self.places)


@extend_schema_field(
    {"type": "string", "pattern": r"^([01]\d|2[0-3]):[0-5]\d(:[0-5]\d(\.\d{1,6})?)?$"}
)
class LocalTimeField(serializers.TimeField):
    """A time of day in a zone that stands elsewhere; OpenAPI's `time` has its own."""


class NamesARow(serializers.RelatedField[Any, Any, Any]):
    """Does not take an empty text for null, which may mean every tenant or every server."""

    default_error_messages = {"empty": "Name one, or write null for none."}

    def run_validation(self, data: Any = empty) -> Any:
        if data == "":
            self.fail("empty")
        return super().run_validation(data)


class SafeJSONField(serializers.JSONField):
    """Any JSON that may be stored: see `registry.db.jsonb`."""

    default_error_messages = {"unstorable": UNSTORABLE}

    def to_internal_value(self, data: Any) -> Any:
        value = super().to_internal_value(data)
        if not is_storable(value):
            self.fail("unstorable")
        return value
