"""Tables partitioned by time: what there is, what is missing or expired, and how that is mended.

Two pure functions plan, one loop carries plans out. Every run starts from the catalogue, so a run
that was killed at any step is completed by the next one. Times are UTC, spans half-open.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import partial

from django.apps import apps
from django.conf import settings
from django.db import Error, IntegrityError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from psqlextra.models import PostgresPartitionedModel
from psqlextra.types import PostgresPartitioningMethod
from psycopg import errors, sql

from registry.db.crossing import acting_as_owner
from registry.db.direct import (
    BRIEF_LOCK_MS,
    direct_connections,
    is_about_locks,
    set_lock_timeout,
)
from registry.db.tenancy import APP_ROLE, OPERATOR_ROLE, READER_ROLE

__all__ = [
    "AHEAD",
    "BEHIND",
    "NOWHERE",
    "Dropped",
    "Partition",
    "PartitionedModel",
    "PartitionsBusy",
    "PartitionsError",
    "Place",
    "RangePartitioning",
    "Span",
    "Step",
    "Verb",
    "is_about_partitions",
    "partition_name",
    "partition_size",
    "partitioned_tables",
    "partitions_check",
    "partitions_drop",
    "partitions_make",
    "plan_expired",
    "plan_missing",
    "read_partitions",
    "statement",
]

logger = logging.getLogger(__name__)

AHEAD = timedelta(days=14)  # so long may every worker be down before rows have nowhere to go
BEHIND = timedelta(days=2)  # rows that arrive late, before there are older partitions
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST, LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)

APPLICATION_NAME = "mcp-gateway partitions"
ADVISORY_LOCK = int.from_bytes(b"mcp-part", "big")
# Waiting to detach holds up neither reads nor writes, so it may take as long as a report does.
PATIENT_LOCK_MS = 30_000
BACK_OFF_SECONDS = (0.5, 1.0, 2.0, 4.0)  # after the 1st, 2nd, … attempt
WAIT_SECONDS = 120.0  # for another run
POLL_SECONDS = 0.2


# For the pages and the API: what was asked is undone, since a change without its row in the audit
# log is none.
NOWHERE = (
    "The logs have no partition for now, so nothing can be recorded and nothing was saved: start "
    "a worker, or run: manage.py run_maintenance --task partitions_create"
)


def is_about_partitions(error: IntegrityError) -> bool:
    """Whether a row found no partition: PostgreSQL calls that a violated check without a name."""
    cause = error.__cause__
    return isinstance(cause, errors.CheckViolation) and cause.diag.constraint_name is None


class PartitionsError(Exception):
    """The partitions cannot be kept in order; the message says what to do."""


class PartitionsBusy(PartitionsError):
    """Others have been in the way for longer than one waits; nothing is half done."""


# Note [Two models of a log]
# A partitioned table's primary key holds the time, and Django's admin and the REST framework take
# no composite keys. So each log has an unmanaged model beside its own, on the same table with the
# id alone as the key: for pages that show rows. Ids are UUIDs, so they are unique all the same;
# who looks one up names its time too (an id tells it), or every partition is searched.


class PartitionedModel(PostgresPartitionedModel):
    """A log that is partitioned by its time column.

    Name the column in PartitioningMeta, and `pk = CompositePrimaryKey("id", <the column>)`: a
    unique index of a partitioned table must hold what it is partitioned by.
    """

    class Meta:
        abstract = True


class RangePartitioning:
    """The base of each PartitioningMeta."""

    method = PostgresPartitioningMethod.RANGE


# --------------------------------------------------------------------------- what there is


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """From `since` (included) to `until` (excluded)."""

    since: datetime
    until: datetime

    def overlaps(self, other: Span) -> bool:
        return self.since < other.until and other.since < self.until


class Place(Enum):
    ATTACHED = "attached"
    LEAVING = "leaving"  # a concurrent detach was cut off: queries do not see it any more
    LOOSE = "loose"  # detached, not dropped


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    name: str
    span: Span
    place: Place = Place.ATTACHED


# Times are read in the session's own zone and style, whatever these are.
_PARTITIONS = r"""
    SELECT leaf.relname, inherits.inhdetachpending, bound.text = 'DEFAULT',
           ends.found[1]::timestamptz, ends.found[2]::timestamptz
    FROM pg_inherits AS inherits
    JOIN pg_class AS leaf ON leaf.oid = inherits.inhrelid
    CROSS JOIN LATERAL (SELECT pg_get_expr(leaf.relpartbound, leaf.oid) AS text) AS bound
    CROSS JOIN LATERAL (SELECT regexp_match(bound.text,
        'FROM \((?:''([^'']+)''|MINVALUE)\) TO \((?:''([^'']+)''|MAXVALUE)\)') AS found) AS ends
    WHERE inherits.inhparent = to_regclass(quote_ident(%s))
"""
# Ours and nobody's: a detached table that an operator wants to keep is renamed or has another
# comment.
_LOOSE = """
    SELECT loose.relname, description.description
    FROM pg_class AS loose
    JOIN pg_description AS description ON description.objoid = loose.oid
        AND description.classoid = 'pg_class'::regclass AND description.objsubid = 0
    WHERE loose.relkind = 'r' AND NOT loose.relispartition
      AND loose.relnamespace = (
          SELECT relnamespace FROM pg_class WHERE oid = to_regclass(quote_ident(%s)))
      AND starts_with(description.description, %s)
"""


def partitioned_tables() -> list[str]:
    """The tables of all partitioned models, by name."""
    return sorted(
        model._meta.db_table
        for model in apps.get_models()
        if issubclass(model, PostgresPartitionedModel)
    )


def partition_size() -> timedelta:
    """How much time a new partition covers: GATEWAY_PARTITION_DAYS."""
    return timedelta(days=settings.GATEWAY_PARTITION_DAYS)


def read_partitions(connection: BaseDatabaseWrapper, table: str) -> list[Partition]:
    """The table's partitions, in the order of time, with what interrupted runs left behind.

    PartitionsError for a DEFAULT partition: beside one, partitions can be neither attached nor
    detached without keeping everybody waiting.
    """
    with connection.cursor() as cursor:
        cursor.execute(_PARTITIONS, [table])
        found = [_attached(table, *row) for row in cursor.fetchall()]
        cursor.execute(_LOOSE, [table, _remark_start(table)])
        found += [loose for row in cursor.fetchall() if (loose := _loose(table, *row))]
    return sorted(found, key=lambda partition: partition.span)


def _attached(
    table: str,
    name: str,
    is_leaving: bool,
    is_default: bool,
    since: datetime | None,
    until: datetime | None,
) -> Partition:
    if is_default:
        raise PartitionsError(
            f"{table} has a DEFAULT partition, {name}: move its rows to partitions of their time "
            f"and run ALTER TABLE {table} DETACH PARTITION {name}."
        )
    place = Place.LEAVING if is_leaving else Place.ATTACHED
    return Partition(name=name, span=Span(since or FIRST, until or LAST), place=place)


def _loose(table: str, name: str, remark: str) -> Partition | None:
    since, _, until = remark.removeprefix(_remark_start(table)).partition("/")
    try:
        span = Span(datetime.fromisoformat(since), datetime.fromisoformat(until))
    except ValueError:
        return None
    if name not in {partition_name(table, span), _longer_name(table, span)}:
        return None
    return Partition(name=name, span=span, place=Place.LOOSE)


def _remark_start(table: str) -> str:
    return f"Partition of {table}: "


def _remark(table: str, span: Span) -> str:
    """The table's comment: how a later run knows what it was, as an ISO 8601 interval."""
    return f"{_remark_start(table)}{span.since.isoformat()}/{span.until.isoformat()}"


def partition_name(table: str, span: Span) -> str:
    """request_logs_20261123; partitions never overlap, so none starts when another does."""
    since = span.since.astimezone(UTC)
    is_midnight = (since.hour, since.minute, since.second, since.microsecond) == (0, 0, 0, 0)
    return f"{table}_{since:%Y%m%d}" if is_midnight else _longer_name(table, span)


def _longer_name(table: str, span: Span) -> str:
    """For other times, and where something else has the day's name: a day that was kept apart."""
    return f"{table}_{span.since.astimezone(UTC):%Y%m%dt%H%M%S%f}"


# --------------------------------------------------------------------------- what is to be done


class Verb(Enum):
    MAKE = "make"  # alone, to be filled before it is attached; no plan does that
    CREATE = "create"  # make and attach
    ATTACH = "attach"
    DETACH = "detach"
    FINALIZE = "finalize"
    DROP = "drop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    verb: Verb
    table: str
    name: str
    span: Span


def plan_missing(
    partitions: Sequence[Partition],
    *,
    table: str,
    at: datetime,
    size: timedelta,
    keep: timedelta | None = None,
    back_to: datetime | None = None,
    ahead: timedelta = AHEAD,
) -> list[Step]:
    """What leaves no gap from the oldest partition to `ahead` of `at`.

    Loose tables of that time are attached again, the rest is created along a grid of `size` from
    1970 on. Partitions of another size stay as they are; new ones fill what they leave open.
    Nothing is made that `keep` would remove, unless `back_to` asks for it. What rows of now and
    later need comes first: the rest may have to wait for others, or fail.
    """
    kept = [partition for partition in partitions if not _is_expired(partition, at, keep)]
    steps = list(_attaching(kept, table))
    # What is expired stands in the way until it is dropped; what overlaps never will.
    ignored = {partition.name for partition in kept if partition.place is Place.LOOSE}
    ignored -= {step.name for step in steps}
    taken = [partition.span for partition in partitions if partition.name not in ignored]
    since = _oldest(kept, at=at, keep=keep, back_to=back_to)
    window = Span(_floor(since, size), _floor(at + ahead, size) + size)
    oldest = at - keep if keep is not None and back_to is None else FIRST
    made = [
        _step(Verb.CREATE, table, partition_name(table, span), span)
        for span in _cut(_gaps(window, taken), size)
        if span.until > oldest
    ]
    return [
        *(step for step in made if step.span.until > at),
        *steps,
        *(step for step in made if step.span.until <= at),
    ]


def plan_expired(
    partitions: Sequence[Partition], *, table: str, at: datetime, keep: timedelta
) -> list[Step]:
    """What removes the partitions that hold nothing younger than `keep`, oldest first."""
    first = {Place.ATTACHED: [Verb.DETACH], Place.LEAVING: [Verb.FINALIZE], Place.LOOSE: []}
    return [
        _step(verb, table, partition.name, partition.span)
        for partition in partitions
        if _is_expired(partition, at, keep)
        for verb in (*first[partition.place], Verb.DROP)
    ]


def _step(verb: Verb, table: str, name: str, span: Span) -> Step:
    return Step(verb=verb, table=table, name=name, span=span)


def _is_expired(partition: Partition, at: datetime, keep: timedelta | None) -> bool:
    return keep is not None and partition.span.until <= at - keep


def _attaching(partitions: Sequence[Partition], table: str) -> Iterator[Step]:
    taken = [found.span for found in partitions if found.place is Place.ATTACHED]
    for partition in partitions:
        if partition.place is Place.ATTACHED:
            continue
        if partition.place is Place.LEAVING:
            yield _step(Verb.FINALIZE, table, partition.name, partition.span)
        if not any(partition.span.overlaps(span) for span in taken):
            yield _step(Verb.ATTACH, table, partition.name, partition.span)
            taken.append(partition.span)


def _oldest(
    kept: Sequence[Partition], *, at: datetime, keep: timedelta | None, back_to: datetime | None
) -> datetime:
    """From when on there has to be a partition for every moment."""
    since = min([at - BEHIND, *(partition.span.until for partition in kept)])
    if keep is not None:
        since = max(since, at - keep)
    return since if back_to is None else min(since, back_to)


def _floor(moment: datetime, size: timedelta) -> datetime:
    return EPOCH + (moment - EPOCH) // size * size


def _gaps(window: Span, taken: Iterable[Span]) -> Iterator[Span]:
    open_since = window.since
    for span in sorted(taken):
        if span.since > open_since:
            yield Span(open_since, min(span.since, window.until))
        open_since = max(open_since, span.until)
        if open_since >= window.until:
            return
    yield Span(open_since, window.until)


def _cut(spans: Iterable[Span], size: timedelta) -> Iterator[Span]:
    """Pieces that do not cross the grid's lines."""
    for span in spans:
        since = span.since
        while since < span.until:
            until = min(_floor(since, size) + size, span.until)
            yield Span(since, until)
            since = until


# --------------------------------------------------------------------------- how it is done

# One text is one transaction. The new table is empty and nobody else knows it, so attaching it
# needs no proof by a CHECK: SHARE UPDATE EXCLUSIVE on the parent is all that others can notice.
# LIKE makes the indexes, which ATTACH joins to the parent's: nothing is built twice.
# The parent's wall does not stand before its partitions, so default privileges are taken back.
_MAKE = """
CREATE TABLE {name} (LIKE {table} INCLUDING ALL);
COMMENT ON TABLE {name} IS {remark};
REVOKE ALL ON {name} FROM PUBLIC;
DO $$
DECLARE
    role name;
BEGIN
    FOR role IN SELECT rolname FROM pg_roles
                 WHERE rolname = ANY (ARRAY[{roles}]) AND rolname <> current_user
    LOOP
        EXECUTE format('REVOKE ALL ON %I FROM %I', {name_text}, role);
    END LOOP;
END $$;
"""
_ATTACH = "ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES FROM ({since}) TO ({until});"
_STATEMENTS = {
    Verb.MAKE: _MAKE,
    Verb.CREATE: _MAKE + _ATTACH,
    Verb.ATTACH: _ATTACH,
    Verb.DETACH: "ALTER TABLE {table} DETACH PARTITION {name} CONCURRENTLY",
    Verb.FINALIZE: "ALTER TABLE {table} DETACH PARTITION {name} FINALIZE",
    Verb.DROP: "DROP TABLE {name}",
}
# As of the last ANALYZE or the running statistics: counting would read the whole day once more.
_ABOUT_ROWS = """
SELECT greatest(reltuples, pg_stat_get_live_tuples(oid), 0)::bigint
  FROM pg_class WHERE oid = to_regclass(quote_ident(%s))
"""
_FOREIGN = """
SELECT string_agg(relname, ', ' ORDER BY relname), session_user
  FROM pg_class
 WHERE relnamespace = current_schema()::regnamespace AND relkind = 'p' AND relname = ANY(%s)
   AND NOT pg_has_role(session_user, relowner, 'USAGE')
"""
_PATIENT = {Verb.DETACH, Verb.FINALIZE}

# Is called before a detached partition is dropped; PartitionsError keeps it.
BeforeDrop = Callable[[BaseDatabaseWrapper, Step], None]


def statement(step: Step) -> sql.Composed:
    """The SQL of a step. It takes no parameters: DDL has none."""
    return sql.SQL(_STATEMENTS[step.verb]).format(
        name=sql.Identifier(step.name),
        name_text=sql.Literal(step.name),
        roles=sql.SQL(", ").join(map(sql.Literal, (APP_ROLE, OPERATOR_ROLE, READER_ROLE))),
        table=sql.Identifier(step.table),
        remark=sql.Literal(_remark(step.table, step.span)),
        since=sql.Literal(step.span.since.isoformat()),
        until=sql.Literal(step.span.until.isoformat()),
    )


@dataclass(frozen=True, slots=True)
class Dropped:
    """What was removed from one table."""

    partitions: int = 0
    rows: int = 0  # about: what PostgreSQL's statistics said
    error: PartitionsError | None = None  # what kept others from being removed


def partitions_make(
    *,
    at: datetime,
    keep: Mapping[str, timedelta] | None = None,
    back_to: datetime | None = None,
    tables: Iterable[str] | None = None,
) -> int:
    """Make the partitions that are missing around `at`, and back to a time if one is given.

    Returns how many. Blocks no read and no write. PartitionsBusy after all attempts; like every
    PartitionsError only when all has been made that could be.
    """
    made, failures = 0, list[PartitionsError]()
    with _session() as connection:
        for table in tables if tables is not None else partitioned_tables():
            plan = partial(
                plan_missing,
                table=table,
                at=at,
                size=partition_size(),
                keep=(keep or {}).get(table),
                back_to=back_to,
            )
            done = _carry_out(connection, table, plan, failures)
            made += sum(step.verb is not Verb.FINALIZE for step, _ in done)
    if failures:
        raise _in_one(failures)
    return made


def partitions_check(*, using: str = "default") -> None:
    """PartitionsError where this process could make no partition. Leaves nothing open."""
    connection = connections[using]
    try:
        with acting_as_owner(using=using), connection.cursor() as cursor:
            cursor.execute(_FOREIGN, [partitioned_tables()])
            tables, user = cursor.fetchone()
    finally:
        connection.close()
    if tables:
        raise PartitionsError(
            f"The database role {user} does not own {tables} and could make no partitions: set "
            "DATABASE_MAINTENANCE_URL to their owner, as for init_db."
        )


def partitions_drop(
    *, at: datetime, keep: Mapping[str, timedelta], before_drop: BeforeDrop | None = None
) -> dict[str, Dropped]:
    """Remove, of the tables named in `keep`, the partitions that are older; what was removed.

    Blocks no read and no write: it waits for those that still read the partition. What fails for
    a table is in its result, and keeps no other one from its turn. A partition that `before_drop`
    refuses stays detached, and is asked about again by the next run.
    """
    dropped: dict[str, Dropped] = {}
    with _session() as connection:
        for table, age in keep.items():
            plan = partial(plan_expired, table=table, at=at, keep=age)
            failures = list[PartitionsError]()
            done = _carry_out(connection, table, plan, failures, before_drop)
            rows = [removed for step, removed in done if step.verb is Verb.DROP]
            error = _in_one(failures) if failures else None
            dropped[table] = Dropped(partitions=len(rows), rows=sum(rows), error=error)
    return dropped


def _carry_out(
    connection: BaseDatabaseWrapper,
    table: str,
    plan: Callable[[Sequence[Partition]], list[Step]],
    failures: list[PartitionsError],
    before_drop: BeforeDrop | None = None,
) -> Iterator[tuple[Step, int]]:
    """Run what is to be done; each step with the rows that it removed, and adds to `failures`.

    Each attempt plans anew from the catalogue: a detach that was cut off has to be finalized, not
    repeated. Raises only what ends the connection.
    """
    refused: dict[str, str] = {}
    for seconds in (*BACK_OFF_SECONDS, None):
        try:
            steps = plan(read_partitions(connection, table))
            yield from _attempt(connection, steps, refused, before_drop)
        except PartitionsError as error:
            failures.append(error)
        except Error as error:
            if not is_about_locks(error):
                raise
            if seconds is not None:
                time.sleep(seconds)
                continue
            failures.append(PartitionsBusy(_in_the_way(table, error)))
        break
    failures.extend(PartitionsError(f"{name}: {why}.") for name, why in refused.items())


def _attempt(
    connection: BaseDatabaseWrapper,
    steps: Iterable[Step],
    refused: dict[str, str],
    before_drop: BeforeDrop | None,
) -> Iterator[tuple[Step, int]]:
    """Run the steps, but none of a partition of which one was refused; those are added."""
    for step in steps:
        if step.name in refused:
            continue
        try:
            if before_drop and step.verb is Verb.DROP:
                before_drop(connection, step)
            rows = _execute(connection, step)
        except PartitionsError as error:
            refused[step.name] = str(error).rstrip(".")
            logger.warning("partition %s is kept: %s", step.name, error)
        except Error as error:
            if is_about_locks(error) or not connection.is_usable():
                raise
            refused[step.name] = f"PostgreSQL refused to {step.verb.value} it ({_first(error)})"
            logger.warning("partition %s: %s", step.name, refused[step.name])
        else:
            yield step, rows


def _first(error: Error) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")


def _in_the_way(table: str, error: Error) -> str:
    return (
        f"{table} is in use ({_first(error)}). The next run goes on from here; if it keeps failing,"
        " end the oldest transactions in pg_stat_activity."
    )


def _in_one(failures: Sequence[PartitionsError]) -> PartitionsError:
    if len(failures) == 1:
        return failures[0]
    return PartitionsError(" ".join(str(failure) for failure in failures))


def _execute(connection: BaseDatabaseWrapper, step: Step) -> int:
    """Run one step; the rows that it removed."""
    set_lock_timeout(connection, PATIENT_LOCK_MS if step.verb in _PATIENT else BRIEF_LOCK_MS)
    rows = 0
    with connection.cursor() as cursor:
        if step.verb is Verb.DROP:
            cursor.execute(_ABOUT_ROWS, [step.name])
            rows = int(cursor.fetchone()[0])
        try:
            cursor.execute(statement(step))
        except Error as error:
            longer = replace(step, name=_longer_name(step.table, step.span))
            is_taken = isinstance(error.__cause__, errors.DuplicateTable)
            if not is_taken or step.verb is not Verb.CREATE or longer.name == step.name:
                raise
            logger.warning("%s is something else: the day's rows go to %s", step.name, longer.name)
            cursor.execute(statement(longer))
    return rows


@contextmanager
def _session() -> Iterator[BaseDatabaseWrapper]:
    """A direct connection in autocommit, and no other run beside this one.

    The lock is asked for again and again, not waited for: a waiting statement has a snapshot,
    and a detach of the holder would wait for that for ever.
    """
    with direct_connections(application_name=APPLICATION_NAME) as (work, _):
        until = time.monotonic() + WAIT_SECONDS
        while not _ask(work, "SELECT pg_try_advisory_lock(%s)"):
            if time.monotonic() > until:
                raise PartitionsBusy(
                    "Another process has been working on the partitions for two minutes; try "
                    "again when it is done."
                )
            time.sleep(POLL_SECONDS)
        try:
            yield work
        finally:
            _ask(work, "SELECT pg_advisory_unlock(%s)")


def _ask(connection: BaseDatabaseWrapper, query: str) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(query, [ADVISORY_LOCK])
        return bool(cursor.fetchone()[0])
