"""What a policy means in SQL, once it is known to fit this database."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from django.core.exceptions import ValidationError
from psycopg import sql

from monitoring.retention.conditions import Compiled, ConditionError, compile_conditions
from monitoring.retention.tables import RETAINED, Relation, relation_of

__all__ = ["LARGEST_BATCH", "LONGEST_DAYS", "Target", "target_of"]

LARGEST_BATCH = 50_000  # rows that are locked together
LONGEST_DAYS = 36_500
TIMES = ("timestamp with time zone", "date")


class Policy(Protocol):
    """The columns of `data_retention_policies` that say what goes."""

    table_name: str
    date_column: str
    retention_days: int
    batch_size: int
    conditions: Any
    archive: bool


@dataclass(frozen=True, slots=True)
class Target:
    """The rows that a policy means. `is_partitioned`: they go by whole partitions, not here."""

    table: sql.Identifier
    column: sql.Identifier
    conditions: Compiled
    retention: timedelta
    is_partitioned: bool

    def before(self, at: datetime) -> datetime:
        """Rows whose column lies before this are too old at that time."""
        return at - self.retention


def target_of(policy: Policy) -> Target:
    """Check a policy against the catalogue; ValidationError names the field and what to write."""
    relation = _relation(policy)
    if policy.archive and not relation.is_partitioned:
        raise ValidationError(
            {"archive": f"Only partitioned logs are archived; {relation.name} loses single rows."}
        )
    _within(policy, "batch_size", LARGEST_BATCH)
    return Target(
        table=sql.Identifier(policy.table_name),
        column=sql.Identifier(policy.date_column),
        conditions=_conditions(policy, relation),
        retention=timedelta(days=_within(policy, "retention_days", LONGEST_DAYS)),
        is_partitioned=relation.is_partitioned,
    )


def _relation(policy: Policy) -> Relation:
    column = RETAINED.get(policy.table_name)
    if column is None:
        raise ValidationError({"table_name": f"Choose one of {', '.join(RETAINED)}."})
    relation = relation_of(policy.table_name)
    if relation is None:
        raise ValidationError(
            {"table_name": f"{policy.table_name} is not in this database: run init_db first."}
        )
    if policy.date_column != column or relation.columns.get(column) not in TIMES:
        raise ValidationError({"date_column": f"The age of {policy.table_name} is its {column}."})
    return relation


def _conditions(policy: Policy, relation: Relation) -> Compiled:
    try:
        compiled = compile_conditions(policy.conditions, columns=relation.columns)
    except ConditionError as error:
        raise ValidationError({"conditions": str(error)}) from None
    if relation.is_partitioned and policy.conditions:
        raise ValidationError(
            {
                "conditions": f"{relation.name} is trimmed by whole partitions, whatever is in"
                " their rows: write {}."
            }
        )
    return compiled


def _within(policy: Policy, field: str, most: int) -> int:
    value = getattr(policy, field)
    if not isinstance(value, int) or not 1 <= value <= most:
        raise ValidationError({field: f"Write a whole number from 1 to {most:,}."})
    return value
