"""Partitions for tests that need rows older than those of the last two days.

Made on the test's own connection, so a test's transaction takes them back with the rows.
"""

from __future__ import annotations

from datetime import timedelta

from django.db import connection
from django.utils.timezone import now

from registry.db.partitions import (
    Span,
    Step,
    Verb,
    partition_name,
    partitioned_tables,
    plan_missing,
    read_partitions,
    statement,
)


def run(step: Step) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement(step))


def no_partitions(table: str) -> None:
    """As if every worker had been down for longer than partitions are made ahead."""
    for partition in read_partitions(connection, table):
        run(Step(verb=Verb.DROP, table=table, name=partition.name, span=partition.span))


def one_old_partition(*, days: int) -> None:
    """In each log one wide partition, from so many days ago to the oldest that there is."""
    for table in partitioned_tables():
        oldest = read_partitions(connection, table)[0].span.since
        if (since := now() - timedelta(days=days + 1)) < oldest:
            span = Span(since, oldest)
            name = partition_name(table, span)
            run(Step(verb=Verb.CREATE, table=table, name=name, span=span))


def daily_partitions(*, days: int) -> None:
    """In each log one partition a day, so many days back."""
    for table in partitioned_tables():
        at, found = now(), read_partitions(connection, table)
        back_to = at - timedelta(days=days)
        size = timedelta(days=1)
        for step in plan_missing(found, table=table, at=at, size=size, back_to=back_to):
            run(step)
