"""How long the logs are kept: partitions made ahead of time, and dropped as policies say."""

from __future__ import annotations

import time
from datetime import datetime, timedelta

from django.db import connection, transaction
from django.db.models import F

from monitoring.audit import Actor, audit_write
from monitoring.averages import moving_average
from monitoring.models import DataRetentionPolicy, RequestLog
from monitoring.retention.archive import archive_obstacle, archive_partition
from monitoring.rollups import log_kept_since
from registry.db.partitions import (
    Dropped,
    PartitionsError,
    partition_size,
    partitioned_tables,
    partitions_drop,
    partitions_make,
    plan_expired,
    plan_missing,
    read_partitions,
)
from registry.periodic import Stop, never

__all__ = [
    "expiring_policy",
    "partitions_expired",
    "partitions_missing",
    "partitions_prepare",
    "partitions_retire",
]

ACTOR = Actor(service_name="worker")
LONGEST = 100 * 365  # days; more leaves the range of times, and means "for ever" all the same


def partitions_prepare(*, at: datetime, back_to: datetime | None = None) -> int:
    """Make the partitions that rows of the next days need, and those back to a time; how many."""
    return partitions_make(at=at, keep=_ages(), back_to=back_to)


def partitions_retire(*, at: datetime, stop: Stop = never) -> int:
    """Drop the partitions that are older than their table's policy; how many.

    A policy with conditions asks for some of the rows, which no partition can answer.
    PartitionsError, once every table has had its turn.
    """
    dropped, failures = 0, list[str]()
    for table, policy in _policies().items():
        if stop():
            break
        began = time.monotonic()
        gone = _retire(table, policy, at=at)
        _note(policy, gone, at=at, milliseconds=(time.monotonic() - began) * 1000)
        dropped += gone.partitions
        if gone.error:
            failures.append(str(gone.error))
    if failures:
        raise PartitionsError(" ".join(failures))
    return dropped


def _retire(table: str, policy: DataRetentionPolicy, *, at: datetime) -> Dropped:
    if policy.archive and (obstacle := archive_obstacle()):
        return Dropped(error=PartitionsError(f"{table}: nothing is dropped. {obstacle}"))
    if table == RequestLog._meta.db_table:
        _tell_readers(at, _age(policy))
    before_drop = archive_partition if policy.archive else None
    return partitions_drop(at=at, keep={table: _age(policy)}, before_drop=before_drop)[table]


def _tell_readers(at: datetime, age: timedelta) -> None:
    """Before the drop: a summary that is read meanwhile is to find its figures elsewhere."""
    table = RequestLog._meta.db_table
    found = read_partitions(connection, table)
    expired = plan_expired(found, table=table, at=at, keep=age)
    if expired:
        log_kept_since(max(step.span.until for step in expired))


def partitions_missing(at: datetime) -> int:
    """How many partitions `partitions_prepare` would make."""
    ages, size = _ages(), partition_size()
    return sum(
        len(plan_missing(found, table=table, at=at, size=size, keep=ages.get(table)))
        for table in partitioned_tables()
        for found in [read_partitions(connection, table)]
    )


def partitions_expired(at: datetime) -> int:
    """How many partitions `partitions_retire` would drop."""
    return sum(
        len({step.name for step in plan_expired(found, table=table, at=at, keep=age)})
        for table, age in _ages().items()
        for found in [read_partitions(connection, table)]
    )


def expiring_policy(*, table: str, until: datetime, at: datetime) -> DataRetentionPolicy | None:
    """The policy that drops a partition of the table which ends then; None: it stays."""
    policy = _policies().get(table)
    return policy if policy is not None and until <= at - _age(policy) else None


def _policies() -> dict[str, DataRetentionPolicy]:
    """By table the policy that drops partitions: of several the one that keeps least."""
    active = DataRetentionPolicy.objects.filter(
        is_active=True, conditions={}, table_name__in=partitioned_tables()
    )
    return {policy.table_name: policy for policy in active.order_by("-retention_days", "id")}


def _ages() -> dict[str, timedelta]:
    return {table: _age(policy) for table, policy in _policies().items()}


def _age(policy: DataRetentionPolicy) -> timedelta:
    return timedelta(days=min(policy.retention_days, LONGEST))


@transaction.atomic
def _note(policy: DataRetentionPolicy, gone: Dropped, *, at: datetime, milliseconds: float) -> None:
    DataRetentionPolicy.objects.filter(pk=policy.pk).update(
        last_run=at,
        next_run=at + timedelta(days=1),
        total_deleted=F("total_deleted") + gone.rows,
        last_deleted_count=gone.rows,
        avg_execution_time_ms=moving_average("avg_execution_time_ms", milliseconds),
        last_error=str(gone.error or ""),
        updated_at=at,
    )
    if gone.partitions:
        audit_write(
            actor=ACTOR,
            action="retention_policy.apply",
            resource=policy,
            details={"name": policy.name, "partitions": gone.partitions, "rows": gone.rows},
        )
