"""Partitions on a real table, with others at work on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from threading import Barrier
from typing import Any

import pytest
from django.db import DatabaseError, connection
from django.db.backends.base.base import BaseDatabaseWrapper

from registry.db import partitions
from registry.db.partitions import (
    Dropped,
    PartitionsBusy,
    PartitionsError,
    Place,
    Span,
    Step,
    Verb,
    partition_name,
    partitions_drop,
    partitions_make,
    plan_expired,
    plan_missing,
    read_partitions,
    statement,
)

# Other sessions have to see the table, and a concurrent detach takes no transaction.
pytestmark = pytest.mark.django_db(transaction=True)

TABLE = "partition_trial"
DAY = timedelta(days=1)
AT = datetime(2026, 3, 10, 13, 5, tzinfo=UTC)
DAYS = [datetime(2026, 3, day, tzinfo=UTC) for day in range(8, 25)]  # two behind, fourteen ahead

Run = Callable[..., list[tuple[Any, ...]]]


def runner(own: BaseDatabaseWrapper) -> Run:
    def run(query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with own.cursor() as cursor:
            cursor.execute(query, parameters or None)
            return cursor.fetchall() if cursor.description else []

    return run


@pytest.fixture
def run(transactional_db: None) -> Run:
    return runner(connection)


@pytest.fixture(autouse=True)
def table(run: Run) -> Iterator[None]:
    run(
        "CREATE TABLE partition_trial (id integer, at timestamptz,"
        " kind text DEFAULT 'a' CHECK (kind <> ''), PRIMARY KEY (id, at)) PARTITION BY RANGE (at)"
    )
    run("CREATE INDEX trial_kind ON partition_trial (kind) WHERE id > 0")
    run("CREATE INDEX trial_at ON partition_trial USING brin (at) WITH (autosummarize = on)")
    run("CREATE STATISTICS trial_statistics (dependencies) ON id, kind FROM partition_trial")
    yield
    loose = run(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ~ %s", "^partition_trial_"
    )
    for name in (TABLE, "partition_trial_b", *(name for (name,) in loose)):
        run(f'DROP TABLE IF EXISTS "{name}"')


@pytest.fixture
def session() -> Iterator[Callable[[], Run]]:
    """More sessions, each in an open transaction that gives up on a lock after half a second."""
    opened: list[BaseDatabaseWrapper] = []

    def open_one() -> Run:
        own = connection.copy()
        opened.append(own)
        own.inc_thread_sharing()
        own.set_autocommit(False)
        run = runner(own)
        run("SET lock_timeout = '500ms'")
        return run

    yield open_one
    for own in opened:
        own.close()


def make(**options: Any) -> int:
    return partitions_make(at=AT, tables=[TABLE], **options)


def drop(age: timedelta = DAY, at: datetime = AT) -> Dropped:
    return partitions_drop(at=at, keep={TABLE: age})[TABLE]


def there(place: Place = Place.ATTACHED) -> list[str]:
    found = read_partitions(connection, TABLE)
    return [partition.name for partition in found if partition.place is place]


def name_of(day: datetime) -> str:
    return partition_name(TABLE, Span(day, day + DAY))


def a_row_a_day(run: Run) -> None:
    for number, day in enumerate(DAYS, start=1):
        run("INSERT INTO partition_trial (id, at) VALUES (%s, %s)", number, day + DAY / 2)
    run("ANALYZE partition_trial")


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until, "it did not happen within 20 s"
        time.sleep(0.05)


# --------------------------------------------------------------------------- making


def test_partitions_for_the_days_ahead_and_none_twice(run: Run) -> None:
    assert make() == len(DAYS)
    assert there() == [name_of(day) for day in DAYS]
    a_row_a_day(run)
    assert run("SELECT count(*) FROM partition_trial") == [(len(DAYS),)]
    assert make() == 0


def test_a_partition_has_all_that_its_parent_has_and_nothing_twice(run: Run) -> None:
    make()
    indexes = run(
        "SELECT am.amname, i.reloptions::text, x.indpred IS NOT NULL, parent.relname"
        " FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_am am ON am.oid = i.relam"
        " JOIN pg_inherits h ON h.inhrelid = i.oid JOIN pg_class parent ON parent.oid = h.inhparent"
        " WHERE x.indrelid = %s::regclass ORDER BY parent.relname",
        name_of(DAYS[0]),
    )
    assert indexes == [
        ("btree", None, False, "partition_trial_pkey"),
        ("brin", "{autosummarize=on}", False, "trial_at"),
        ("btree", None, True, "trial_kind"),
    ]
    counted = run(
        "SELECT (SELECT count(*) FROM pg_index WHERE indrelid = c.oid),"
        " (SELECT count(*) FROM pg_statistic_ext WHERE stxrelid = c.oid),"
        " (SELECT count(*) FROM pg_constraint WHERE conrelid = c.oid AND contype = 'c')"
        " FROM pg_class c WHERE c.oid = %s::regclass",
        name_of(DAYS[0]),
    )
    assert counted == [(3, 1, 1)]


def test_making_waits_for_no_reader_and_no_writer(run: Run, session: Any) -> None:
    make(back_to=AT)
    reader, writer = session(), session()
    reader("SELECT count(*) FROM partition_trial")
    writer("INSERT INTO partition_trial (id, at) VALUES (1, %s)", AT)
    assert partitions_make(at=AT + 2 * DAY, tables=[TABLE]) == 2  # both are open all the while
    writer("INSERT INTO partition_trial (id, at) VALUES (2, %s)", AT + 9 * DAY)
    assert reader("SELECT count(*) FROM partition_trial") == [(0,)]


def test_what_making_locks_of_the_parent_stops_neither_reads_nor_writes(session: Any) -> None:
    [step, *_] = plan_missing([], table=TABLE, at=AT, size=DAY)
    maker = session()
    maker(statement(step).as_string(None))
    modes = maker(
        "SELECT mode FROM pg_locks WHERE pid = pg_backend_pid() AND relation = %s::regclass", TABLE
    )
    assert {mode for (mode,) in modes} <= {"AccessShareLock", "ShareUpdateExclusiveLock"}


def test_a_partition_is_made_whole_or_not_at_all(run: Run) -> None:
    make()
    overlapping = Span(DAYS[0] + DAY / 2, DAYS[1])
    name = partition_name(TABLE, overlapping)
    step = Step(verb=Verb.CREATE, table=TABLE, name=name, span=overlapping)
    with pytest.raises(DatabaseError, match="would overlap"):
        run(statement(step).as_string(None))
    assert run("SELECT to_regclass(%s)", name) == [(None,)]


def test_two_runs_at_once_make_each_partition_once() -> None:
    at_once = Barrier(2)

    def one(_: int) -> int:
        try:
            at_once.wait(timeout=5)
            return make()
        finally:
            connection.close()

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(one, range(2))) == [0, len(DAYS)]


def test_another_size_fills_what_the_first_one_left(settings: Any, run: Run) -> None:
    make()
    settings.GATEWAY_PARTITION_DAYS = 7
    assert partitions_make(at=AT + 20 * DAY, tables=[TABLE]) > 0
    found = [partition.span for partition in read_partitions(connection, TABLE)]
    assert all(one.until == two.since for one, two in pairwise(found))
    assert found[-1].until > AT + 27 * DAY


def test_a_default_partition_is_refused_with_what_to_do(run: Run) -> None:
    run("CREATE TABLE partition_trial_rest PARTITION OF partition_trial DEFAULT")
    with pytest.raises(PartitionsError, match="DETACH PARTITION partition_trial_rest"):
        make()


def test_a_lock_that_stays_ends_in_a_sentence(monkeypatch: Any, session: Any) -> None:
    monkeypatch.setattr(partitions, "BRIEF_LOCK_MS", 50)
    monkeypatch.setattr(partitions, "BACK_OFF_SECONDS", (0.01, 0.01))
    session()(
        "LOCK TABLE partition_trial IN SHARE UPDATE EXCLUSIVE MODE"
    )  # as VACUUM and ANALYZE do
    with pytest.raises(PartitionsBusy, match=r"partition_trial is in use.*pg_stat_activity"):
        make()


def test_a_lock_that_goes_is_waited_for(monkeypatch: Any, session: Any) -> None:
    monkeypatch.setattr(partitions, "BRIEF_LOCK_MS", 50)
    analyse = session()
    analyse("LOCK TABLE partition_trial IN SHARE UPDATE EXCLUSIVE MODE")
    monkeypatch.setattr(partitions.time, "sleep", lambda _seconds: analyse("ROLLBACK"))
    assert make() == len(DAYS)


@pytest.mark.parametrize("day", [DAYS[0], DAYS[5]])
def test_a_day_that_was_kept_apart_under_its_name_is_in_nobodys_way(run: Run, day: Any) -> None:
    run(f"CREATE TABLE {name_of(day)} (kept integer)")
    assert make() == len(DAYS)
    a_row_a_day(run)
    assert run("SELECT count(*) FROM partition_trial") == [(len(DAYS),)]
    assert make() == 0
    run(f"ALTER TABLE partition_trial DETACH PARTITION {name_of(day)}t000000000000")
    assert make() == 1, "what has the longer name is known again"


def test_one_partition_that_cannot_be_made_keeps_no_other_one(run: Run) -> None:
    for name in (name_of(DAYS[3]), f"{name_of(DAYS[3])}t000000000000"):
        run(f"CREATE TABLE {name} (kept integer)")
    run("CREATE TABLE partition_trial_b (at timestamptz) PARTITION BY RANGE (at)")
    with pytest.raises(PartitionsError, match=rf"{name_of(DAYS[3])}: .* already exists"):
        partitions_make(at=AT, tables=[TABLE, "partition_trial_b"])
    assert there() == [name_of(day) for day in DAYS if day != DAYS[3]]
    assert len(read_partitions(connection, "partition_trial_b")) == len(DAYS)


# --------------------------------------------------------------------------- dropping


def test_rows_that_go_are_not_read_to_count_them(run: Run) -> None:
    make()
    a_row_a_day(run)
    run("UPDATE pg_class SET reltuples = 4711 WHERE oid = %s::regclass", name_of(DAYS[0]))
    assert drop() == Dropped(partitions=1, rows=4711)


def test_what_cannot_be_dropped_keeps_nothing_else(run: Run) -> None:
    make()
    run("CREATE TABLE partition_trial_rest PARTITION OF partition_trial DEFAULT")
    run("CREATE TABLE partition_trial_b (at timestamptz) PARTITION BY RANGE (at)")
    partitions_make(at=AT, tables=["partition_trial_b"])
    gone = partitions_drop(at=AT, keep={TABLE: DAY, "partition_trial_b": DAY})
    assert "DEFAULT partition" in str(gone[TABLE].error)
    assert gone["partition_trial_b"] == Dropped(partitions=1)


def test_a_partition_that_cannot_be_detached_is_not_dropped_and_others_are(run: Run) -> None:
    make()
    a_row_a_day(run)
    run(
        "CREATE TABLE partition_user (id integer, at timestamptz,"
        " FOREIGN KEY (id, at) REFERENCES partition_trial)"
    )
    try:
        run("INSERT INTO partition_user SELECT id, at FROM partition_trial WHERE id = 1")
        gone = drop(at=AT + DAY)
        assert gone.partitions == 1
        assert "refused to detach" in str(gone.error)
        assert there() == [name_of(day) for day in DAYS if day != DAYS[1]]
    finally:
        run("DROP TABLE partition_user")


def test_only_partitions_that_are_old_as_a_whole_are_dropped(run: Run) -> None:
    make()
    a_row_a_day(run)
    assert drop(DAY) == Dropped(partitions=1, rows=1)  # the 8th; the 9th has an hour to be kept
    assert there() == [name_of(day) for day in DAYS[1:]]
    assert drop(DAY) == Dropped()


def test_dropping_waits_for_a_reader_and_keeps_nobody_else_waiting(run: Run, session: Any) -> None:
    make()
    a_row_a_day(run)
    reader, other = session(), session()
    reader("SELECT count(*) FROM partition_trial")
    with ThreadPoolExecutor(1) as pool:
        dropping = pool.submit(drop)
        wait_until(lambda: there(Place.LEAVING) == [name_of(DAYS[0])])
        # Half a second is what `other` would wait for a lock before it failed.
        other("INSERT INTO partition_trial (id, at) VALUES (99, %s)", AT)
        assert other("SELECT count(*) FROM partition_trial") == [
            (len(DAYS),)
        ]  # without the first day
        assert not dropping.done()
        other("COMMIT")
        reader("COMMIT")
        assert dropping.result(timeout=20) == Dropped(partitions=1, rows=1)


def test_a_detach_that_was_cut_off_is_finalized(run: Run, session: Any) -> None:
    make()
    a_row_a_day(run)
    reader = session()
    reader("SELECT count(*) FROM partition_trial")
    run("SET lock_timeout = '100ms'")
    with pytest.raises(DatabaseError, match="lock timeout"):
        run(f"ALTER TABLE partition_trial DETACH PARTITION {name_of(DAYS[0])} CONCURRENTLY")
    assert there(Place.LEAVING) == [name_of(DAYS[0])]
    reader("COMMIT")
    assert drop() == Dropped(partitions=1, rows=1)
    assert there(Place.LEAVING) == there(Place.LOOSE) == []


def test_a_killed_run_is_completed_by_the_next_one(run: Run, session: Any) -> None:
    make()
    reader = session()
    reader("SELECT count(*) FROM partition_trial")
    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(drop)
        wait_until(lambda: there(Place.LEAVING) == [name_of(DAYS[0])])
        run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = %s AND query ~ 'DETACH'",
            partitions.APPLICATION_NAME,
        )
        with pytest.raises(DatabaseError):
            killed.result(timeout=20)
    reader("COMMIT")
    assert drop() == Dropped(partitions=1, rows=0)


@pytest.mark.parametrize("done", range(4))
def test_after_any_step_the_next_run_goes_on(run: Run, done: int) -> None:
    make()
    a_row_a_day(run)
    later = AT + DAY  # two partitions are to go, each in two steps
    steps = plan_expired(read_partitions(connection, TABLE), table=TABLE, at=later, keep=DAY)
    assert [step.verb for step in steps] == [Verb.DETACH, Verb.DROP] * 2
    for step in steps[:done]:
        run(statement(step).as_string(None))
    gone = drop(at=later)
    assert gone.partitions == 2 - done // 2
    assert there() == [name_of(day) for day in DAYS[2:]]
    assert there(Place.LOOSE) == []


@pytest.mark.parametrize("is_cut_off", [False, True])
def test_a_partition_that_is_still_wanted_comes_back_with_its_rows(
    run: Run, session: Any, is_cut_off: bool
) -> None:
    make()
    a_row_a_day(run)
    detach = f"ALTER TABLE partition_trial DETACH PARTITION {name_of(DAYS[5])} CONCURRENTLY"
    if is_cut_off:
        reader = session()
        reader("SELECT count(*) FROM partition_trial")
        run("SET lock_timeout = '100ms'")
        with pytest.raises(DatabaseError, match="lock timeout"):
            run(detach)
        reader("COMMIT")
    else:
        run(detach)
    assert run("SELECT count(*) FROM partition_trial") == [(len(DAYS) - 1,)]
    assert make() == 1
    assert run("SELECT count(*) FROM partition_trial") == [(len(DAYS),)]


def test_what_an_operator_detached_and_renamed_is_left_alone(run: Run) -> None:
    make()
    run(f"ALTER TABLE partition_trial DETACH PARTITION {name_of(DAYS[0])}")
    run(f"ALTER TABLE {name_of(DAYS[0])} RENAME TO partition_trial_archive")
    assert drop() == Dropped()
    assert run("SELECT to_regclass(%s) IS NOT NULL", "partition_trial_archive") == [(True,)]


def test_traffic_goes_on_while_partitions_come_and_go(run: Run) -> None:
    """Writers and readers with a lock time-out of a second, none of which is ever used up."""
    make()
    stop_at = time.monotonic() + 60
    is_over = False

    def traffic(number: int) -> int:
        own = connection.copy()
        own.inc_thread_sharing()
        query, done = runner(own), 0
        try:
            query("SET lock_timeout = '1s'")
            while not is_over and time.monotonic() < stop_at:
                query(
                    "INSERT INTO partition_trial (id, at) VALUES (%s, %s)",
                    number * 10**6 + done,
                    AT,
                )
                query("SELECT count(*) FROM partition_trial WHERE at >= %s", AT - DAY)
                done += 1
            return done
        finally:
            own.close()

    with ThreadPoolExecutor(3) as pool:
        working = [pool.submit(traffic, number) for number in range(3)]
        for days in range(1, 6):
            at = AT + days * DAY
            partitions_make(at=at, tables=[TABLE])
            partitions_drop(at=at, keep={TABLE: 7 * DAY})
        is_over = True
        assert all(job.result(timeout=30) > 0 for job in working)
