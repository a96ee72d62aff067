"""Averages that a row carries along."""

from __future__ import annotations

from django.db.models import F, FloatField, Value
from django.db.models.expressions import Combinable
from django.db.models.functions import Coalesce

__all__ = ["moving_average"]

WEIGHT = 0.2  # of the newest value: what was ten runs ago counts a tenth of it


def moving_average(field: str, newest: float) -> Combinable:
    """What the column becomes; a moving one, so that it follows a table that grows."""
    moved = F(field) * Value(1 - WEIGHT) + Value(newest * WEIGHT)
    return Coalesce(moved, Value(newest), output_field=FloatField())
