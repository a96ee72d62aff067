"""What a policy would delete now, before it does: rows and bytes, at a bounded cost."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from django.core.exceptions import ValidationError
from django.db import Error, OperationalError, connection, transaction
from django.template.defaultfilters import filesizeformat
from psycopg import errors, sql

from monitoring.retention.target import Policy, Target, target_of
from registry.db.partitions import PartitionsError, plan_expired, read_partitions
from registry.figures import counted
from registry.sentences import first_line

__all__ = ["MOST_COUNTED", "Preview", "preview", "preview_in_words"]

MOST_COUNTED = 100_000  # rows; above that the planner's estimate is told
COUNTING_MS = 2_000

_LIMITS = "SELECT set_config('statement_timeout', %s, true)"
_COUNT = """
SELECT count(*) FROM (SELECT FROM {table} WHERE {column} < %s AND ({where}) LIMIT %s) AS old
"""
_ESTIMATE = "EXPLAIN (FORMAT JSON) SELECT FROM {table} WHERE {column} < %s AND ({where})"
# With its indexes and TOAST. A table that was never analysed has -1 rows; the statistics
# collector may know better.
_ROW_BYTES = """
SELECT pg_total_relation_size(c.oid)::double precision
       / nullif(greatest(c.reltuples, pg_stat_get_live_tuples(c.oid)), 0)
FROM pg_class AS c WHERE c.relname = %s AND pg_table_is_visible(c.oid)
"""
_SIZES = """
SELECT coalesce(sum(greatest(c.reltuples, pg_stat_get_live_tuples(c.oid))), 0)::bigint,
       coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint
FROM pg_class AS c WHERE c.relname = ANY (%s) AND pg_table_is_visible(c.oid)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What would go: `size_bytes` (with its share of indexes) is always about right, `rows` is
    exact unless `is_estimate`. `partitions` is None where rows go in batches."""

    table: str
    column: str
    before: datetime
    rows: int
    size_bytes: int
    is_estimate: bool
    partitions: int | None = None
    is_archived: bool = False

    def __str__(self) -> str:
        rows = f"{'about ' if self.is_estimate else ''}{counted(self.rows, 'rows')}"
        size = filesizeformat(self.size_bytes).replace("\xa0", " ")
        whole = (
            "" if self.partitions is None else f" in {counted(self.partitions, 'whole partitions')}"
        )
        return (
            f"{rows}{whole} (about {size}) of {self.table},"
            f" where {self.column} is before {self.before:%Y-%m-%d %H:%M} UTC"
            f"{'; archived first' if self.is_archived else ''}"
        )


def preview(policy: Policy, *, at: datetime) -> Preview:
    """What the policy would delete at that time; ValidationError for one that does not fit."""
    target = target_of(policy)
    before = target.before(at)
    if target.is_partitioned:
        partitions, rows, size = _of_partitions(policy.table_name, target, at)
        is_estimate = True
    else:
        counted = _counted(target, before)
        rows = _estimated(target, before) if counted is None else counted
        size = round(rows * _row_bytes(policy.table_name))
        partitions, is_estimate = None, counted is None
    return Preview(
        table=policy.table_name,
        column=policy.date_column,
        before=before,
        rows=rows,
        size_bytes=size,
        is_estimate=is_estimate,
        partitions=partitions,
        is_archived=policy.archive,
    )


def preview_in_words(policy: Policy, *, at: datetime) -> str:
    """The same as a sentence, or why it cannot be had: one bad policy must not hide the others."""
    try:
        with transaction.atomic():  # an outer transaction goes on after what PostgreSQL refuses
            return str(preview(policy, at=at))
    except ValidationError as error:
        return " ".join(error.messages)
    except Error as error:
        return f"PostgreSQL cannot tell: {first_line(error)}."


def _of_partitions(table: str, target: Target, at: datetime) -> tuple[int, int, int]:
    """How many partitions the very plan of their task drops, with their rows and bytes."""
    try:
        found = read_partitions(connection, table)
    except PartitionsError as error:
        raise ValidationError({"table_name": str(error)}) from None
    names = {step.name for step in plan_expired(found, table=table, at=at, keep=target.retention)}
    with connection.cursor() as cursor:
        cursor.execute(_SIZES, [sorted(names)])
        rows, size = cursor.fetchone()
    return len(names), rows, size


def _counted(target: Target, before: datetime) -> int | None:
    """None when there are more than MOST_COUNTED, or when finding them takes too long."""
    parameters = [before, *target.conditions.parameters, MOST_COUNTED + 1]
    try:
        # In a transaction of its own, for its time-out.
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SHOW statement_timeout")
            (outside,) = cursor.fetchone()
            cursor.execute(_LIMITS, [f"{COUNTING_MS}ms"])
            cursor.execute(_spelt(_COUNT, target), parameters)
            (rows,) = cursor.fetchone()
            cursor.execute(_LIMITS, [outside])  # an outer transaction goes on with its own
    except OperationalError as error:
        if isinstance(error.__cause__, errors.QueryCanceled):
            return None
        raise
    return int(rows) if rows <= MOST_COUNTED else None


def _estimated(target: Target, before: datetime) -> int:
    with connection.cursor() as cursor:
        cursor.execute(_spelt(_ESTIMATE, target), [before, *target.conditions.parameters])
        (plan,) = cursor.fetchone()
    return int(plan[0]["Plan"]["Plan Rows"])


def _row_bytes(table: str) -> float:
    with connection.cursor() as cursor:
        cursor.execute(_ROW_BYTES, [table])
        (size,) = cursor.fetchone()
    return float(size or 0)


def _spelt(statement: str, target: Target) -> sql.Composed:
    return sql.SQL(statement).format(
        table=target.table, column=target.column, where=target.conditions.where
    )
