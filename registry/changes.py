"""Changing a row by its fields, in one way for every noun that people may edit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from django.core.serializers.json import DjangoJSONEncoder
from django.db import models, transaction

from registry.db.encryption import Sealed

__all__ = ["row_change"]

Row = TypeVar("Row", bound=models.Model)


def row_change(*, row: Row, changes: Mapping[str, Any]) -> tuple[Row, dict[str, Any]]:
    """Write the fields that differ; returns the row as it is now and what changed.

    What changed is `{field: {"from": old, "to": new}}` in values that JSON can hold, made for an
    audit entry; empty when nothing differed, and then nothing is written. The row is locked from
    reading to the end of the transaction, so that two editors cannot undo each other.
    ValidationError names the field that does not fit; DoesNotExist: somebody deleted the row.
    """
    with transaction.atomic():
        # "self" alone: the rows that a join brings along stay free.
        current = type(row)._default_manager.select_for_update(of=("self",)).get(pk=row.pk)
        changed = {}
        for name, new in changes.items():
            old = getattr(current, name)
            if old != new:
                changed[name] = {"from": _plain(old), "to": _plain(new)}
                setattr(current, name, new)
        if changed:
            _check(current, changed)
            current.save(update_fields=[*changed, "updated_at"])
    return current, changed


def _check(row: models.Model, changed: Mapping[str, Any]) -> None:
    """What was stored under a milder rule stays as it is while other fields are changed."""
    row.clean_fields(exclude={field.name for field in row._meta.fields} - changed.keys())
    row.clean()
    row.validate_unique()
    row.validate_constraints()


def _plain(value: Any) -> Any:
    if isinstance(value, Sealed):
        return "not shown"
    if isinstance(value, models.Model):
        value = value.pk
    return json.loads(json.dumps(value, cls=DjangoJSONEncoder))
