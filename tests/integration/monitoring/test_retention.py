"""Retention policies: what they are allowed to say, what they delete, and when they stop."""

from __future__ import annotations

import operator
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.db import connection
from django.utils.timezone import now
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from monitoring.models import (
    AlertEvent,
    DatabaseSizeSnapshot,
    DataRetentionPolicy,
    OptimizeRun,
    StatementSnapshot,
)
from monitoring.retention import preview as previewing
from monitoring.retention import run as running
from monitoring.retention.conditions import KINDS, Kind, compile_conditions
from monitoring.retention.preview import preview
from monitoring.retention.run import RUN_EVERY, RetentionError, policies_run
from monitoring.retention.tables import RETAINED, relation_of
from monitoring.retention.target import TIMES
from registry.db.crossing import crossing_tenants
from security.models import Session
from tests.factories import (
    AlertEventFactory,
    DataRetentionPolicyFactory,
    MCPServerFactory,
    SessionFactory,
    UserFactory,
)
from tests.walls import logged_in_as_app

pytestmark = pytest.mark.django_db

AT = datetime(2026, 6, 15, 12, tzinfo=UTC)


def policy_of_sessions(**fields: Any) -> DataRetentionPolicy:
    told = {"table_name": "sessions", "date_column": "expires_at", "retention_days": 7}
    return DataRetentionPolicyFactory(**{**told, **fields})


def sessions(*days: float, **fields: Any) -> list[Session]:
    """Logins that ended so many days ago."""
    user = UserFactory()
    return [
        SessionFactory(user=user, expires_at=AT - timedelta(days=age), **fields) for age in days
    ]


def kept() -> set[Any]:
    return set(Session.objects.values_list("pk", flat=True))


def run(at: datetime = AT, **told: Any) -> int:
    return policies_run(at=at, rest=told.pop("rest", lambda _: None), **told)


# ---------------------------------------------------------------- what may be said


def test_only_growing_tables_can_be_trimmed_and_nothing_refers_to_them():
    protected = {"tenants", "users", "enhanced_api_keys", "api_keys", "mcp_servers"}
    assert protected.isdisjoint(RETAINED)
    for table, column in RETAINED.items():
        relation = relation_of(table)
        assert relation is not None
        assert relation.columns[column] in TIMES
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT conname FROM pg_constraint"
            " WHERE contype = 'f' AND conparentid = 0 AND confrelid::regclass::text = ANY (%s)",
            [list(RETAINED)],
        )
        assert cursor.fetchall() == []


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"table_name": "users", "date_column": "created_at"}, "table_name", "Choose one of"),
        ({"table_name": "sessions; --"}, "table_name", "Choose one of"),
        ({"date_column": "created_at"}, "date_column", "is its expires_at"),
        ({"retention_days": 36_501}, "retention_days", "from 1 to 36,500"),
        ({"batch_size": 50_001}, "batch_size", "from 1 to 50,000"),
        ({"conditions": {"nope": {"=": 1}}}, "conditions", "no column 'nope'"),
        ({"conditions": {"is_active": False}}, "conditions", "write what must hold"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused(change, field, words):
    told = {"table_name": "sessions", "date_column": "expires_at", "retention_days": 7}
    policy = DataRetentionPolicy(name="p", **{**told, **change})
    with pytest.raises(ValidationError) as caught:
        policy.full_clean()
    assert words in " ".join(caught.value.message_dict[field])


def test_a_partitioned_table_takes_no_conditions():
    """Its partitions go whole, whatever is in them."""
    partitioned_sessions()
    policy = policy_of_sessions()
    policy.full_clean()
    policy.conditions = {"is_active": {"=": False}}
    with pytest.raises(ValidationError, match="whole partitions"):
        policy.full_clean()


# ---------------------------------------------------------------- conditions

# Few values, so that equality and borders are met often.
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "whole": st.integers(-2, 2),
    "number": st.sampled_from([-1.5, 0.0, 1e300]),
    "word": st.sampled_from(["", "a", "b", "%s", "'; --"]),
    "truth": st.booleans(),
    "moment": st.sampled_from([AT, AT + timedelta(microseconds=1), AT - timedelta(days=9)]),
    "day": st.sampled_from([date(2026, 1, 1), date(2026, 1, 2)]),
    "someone": st.sampled_from([UUID(int=1), UUID(int=2)]),
}
TYPES = {
    "whole": "smallint",
    "number": "double precision",
    "word": "character varying",
    "truth": "boolean",
    "moment": "timestamp with time zone",
    "day": "date",
    "someone": "uuid",
}
ORDER = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
EQUALITY = {"=": operator.eq, "!=": operator.ne}


def as_json(value: Any) -> Any:
    if isinstance(value, date):
        return value.isoformat()
    return str(value) if isinstance(value, UUID) else value


@st.composite
def told(draw: st.DrawFn) -> dict[str, dict[str, Any]]:
    conditions = {}
    for column in draw(st.lists(st.sampled_from(list(VALUES)), unique=True, max_size=3)):
        unordered = column in ("truth", "someone")
        names = [*EQUALITY, *([] if unordered else ORDER), "in", "is_null"]
        chosen = draw(st.lists(st.sampled_from(names), unique=True, min_size=1, max_size=2))
        conditions[column] = {name: draw(operand(column, name)) for name in chosen}
    return conditions


def operand(column: str, name: str) -> st.SearchStrategy[Any]:
    value = VALUES[column].map(as_json)
    return {"is_null": st.booleans(), "in": st.lists(value, min_size=1, max_size=3)}.get(
        name, value
    )


def holds(row: dict[str, Any], conditions: dict[str, dict[str, Any]]) -> bool:
    return all(
        judged(row[column], name, value)
        for column, tests in conditions.items()
        for name, value in tests.items()
    )


def judged(found: Any, name: str, value: Any) -> bool:
    if name == "is_null":
        return (found is None) is value
    if found is None:
        return False
    if name == "in":
        return as_json(found) in value
    if isinstance(found, datetime):
        value = datetime.fromisoformat(value)
    elif isinstance(found, date):
        value = date.fromisoformat(value)
    elif isinstance(found, UUID):
        value = UUID(value)
    return (EQUALITY | ORDER)[name](found, value)


@settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200
)
@given(
    rows=st.lists(
        st.fixed_dictionaries({name: st.none() | kind for name, kind in VALUES.items()}),
        min_size=1,
        max_size=6,
    ),
    conditions=told(),
)
def test_conditions_find_what_they_say(db, rows, conditions):
    compiled = compile_conditions(conditions, columns=TYPES)
    typed = ", ".join(["%s::int", *(f"%s::{kind}" for kind in TYPES.values())])
    statement = sql.SQL(
        "SELECT place FROM (VALUES {}) AS t (place, {}) WHERE {} ORDER BY place"
    ).format(
        sql.SQL(", ").join([sql.SQL(f"({typed})")] * len(rows)),
        sql.SQL(", ").join(map(sql.Identifier, TYPES)),
        compiled.where,
    )
    values = [
        value for place, row in enumerate(rows) for value in (place, *(row[name] for name in TYPES))
    ]
    with connection.cursor() as cursor:
        cursor.execute(statement, [*values, *compiled.parameters])
        found = [place for (place,) in cursor.fetchall()]
    assert found == [place for place, row in enumerate(rows) if holds(row, conditions)]


# ---------------------------------------------------------------- running


def test_old_rows_go_and_young_ones_stay():
    old, young = sessions(8, 7.001, 400), sessions(6.999, 0, -3)
    policy = policy_of_sessions(batch_size=2)
    assert run() == len(old)
    assert kept() == {row.pk for row in young}
    policy.refresh_from_db()
    assert (policy.last_run, policy.next_run) == (AT, AT + RUN_EVERY)
    assert (policy.total_deleted, policy.last_deleted_count, policy.last_error) == (3, 3, "")
    assert policy.avg_execution_time_ms > 0


def test_conditions_limit_what_goes():
    inactive = sessions(8, 9, is_active=False)
    sessions(8, 9, is_active=True)
    policy_of_sessions(conditions={"is_active": {"=": False}})
    assert run() == len(inactive)
    assert set(Session.objects.values_list("is_active", flat=True)) == {True}


def test_days_count_by_their_beginning():
    for age in (399, 400, 401):
        DatabaseSizeSnapshot.objects.create(
            taken_on=(AT - timedelta(days=age)).date(), table_name="t", total_size=1, row_estimate=1
        )
    DataRetentionPolicyFactory(
        table_name="database_size_snapshots", date_column="taken_on", retention_days=400
    )
    assert run() == 2  # the day of 400 days ago began more than 400 days ago
    assert DatabaseSizeSnapshot.objects.get().taken_on == (AT - timedelta(days=399)).date()


def test_every_table_that_is_not_partitioned_can_be_trimmed():
    OptimizeRun.objects.create(started_at=AT - timedelta(days=31))
    StatementSnapshot.objects.create(
        query_id=1, query="SELECT", calls=1, total_ms=1, taken_at=AT - timedelta(days=31)
    )
    AlertEventFactory(occurred_at=AT - timedelta(days=31))
    for table, column in RETAINED.items():
        DataRetentionPolicyFactory(table_name=table, date_column=column, retention_days=30)
    assert run() == 3


def test_a_policy_that_is_off_or_not_due_does_nothing():
    sessions(8)
    policy_of_sessions(is_active=False)
    policy_of_sessions(next_run=AT + timedelta(seconds=1))
    assert run() == 0
    assert len(kept()) == 1


def test_it_runs_again_an_hour_later_and_not_before():
    policy_of_sessions()
    sessions(8)
    assert run() == 1
    sessions(8)
    assert run(AT + RUN_EVERY - timedelta(seconds=1)) == 0
    assert run(AT + RUN_EVERY) == 1
    assert run(AT + 50 * RUN_EVERY) == 0  # a pause is caught up by one run
    policy = DataRetentionPolicy.objects.get()
    assert policy.next_run == AT + 51 * RUN_EVERY


def test_a_run_that_is_stopped_goes_on_with_the_next_one():
    sessions(*range(8, 18))
    policy = policy_of_sessions(batch_size=3)
    answers = iter([False, False, True])  # before the policy, after its first and second batch
    assert run(stop=lambda: next(answers)) == 6
    policy.refresh_from_db()
    assert (policy.total_deleted, policy.last_error) == (6, "")
    assert policy.next_run == AT
    assert run(AT + timedelta(minutes=5)) == 4
    policy.refresh_from_db()
    assert (policy.total_deleted, policy.last_deleted_count) == (10, 4)


def test_a_run_ends_with_its_budget(monkeypatch):
    monkeypatch.setattr(running, "BUDGET_SECONDS", 0.0)
    sessions(*range(8, 18))
    policy_of_sessions(batch_size=3)
    assert run() == 3
    assert DataRetentionPolicy.objects.get().next_run == AT


def test_the_oldest_go_first():
    rows = sessions(9, 8, 30, 20)
    policy_of_sessions(batch_size=2)
    answers = iter([False, True])
    assert run(stop=lambda: next(answers)) == 2
    assert kept() == {rows[0].pk, rows[1].pk}


def test_it_rests_after_each_batch_the_longer_the_more_others_do():
    sessions(*range(8, 14))
    policy_of_sessions(batch_size=3)
    pauses: list[float] = []
    run(rest=pauses.append)
    assert len(pauses) == 2
    assert all(running.SHORTEST_PAUSE <= pause <= running.LONGEST_PAUSE for pause in pauses)


@pytest.mark.parametrize(
    "change",
    [{"is_active": False}, {"retention_days": 3650}, {"conditions": {"is_active": {"=": False}}}],
)
def test_an_operator_who_changes_a_policy_is_obeyed_from_the_next_batch(change):
    sessions(*range(8, 18))
    policy = policy_of_sessions(batch_size=4)

    def meddle(_seconds: float) -> None:
        DataRetentionPolicy.objects.filter(pk=policy.pk).update(**change)

    assert run(rest=meddle) == 4
    assert len(kept()) == 6
    policy.refresh_from_db()
    assert policy.total_deleted == 4


def test_a_worker_that_was_thought_dead_stops_when_it_wakes_up():
    sessions(*range(8, 18))
    policy_of_sessions(batch_size=4)
    later = AT + 2 * RUN_EVERY
    taken_over = []

    def sleep_long(_seconds: float) -> None:
        if not taken_over:
            taken_over.append(True)
            taken_over.append(run(later))

    assert run(rest=sleep_long) == 4
    assert taken_over == [True, 6]
    policy = DataRetentionPolicy.objects.get()
    assert (policy.last_run, policy.next_run) == (later, later + RUN_EVERY)
    assert policy.total_deleted == 10


def test_a_policy_that_does_not_fit_tells_so_and_the_others_go_on():
    """As psql may write it, past all checks."""
    sessions(8)
    bad = DataRetentionPolicyFactory(table_name="users", date_column="created_at")
    odd = policy_of_sessions(conditions={"user_id": {"=": "nobody"}})
    policy_of_sessions()
    with pytest.raises(RetentionError, match=f"{bad.name}: Choose one of"):
        run()
    assert kept() == set()
    bad.refresh_from_db()
    odd.refresh_from_db()
    assert bad.last_error.startswith("Choose one of")
    assert odd.last_error == "user_id =: write a UUID."
    assert bad.next_run == AT  # the next tick tries again


@pytest.mark.django_db(transaction=True)
def test_a_worker_without_rights_on_the_schema_carries_policies_out():
    """As it is deployed: logged in as the application, across all tenants."""
    sessions(8, 9, 3)
    event = AlertEventFactory(occurred_at=AT - timedelta(days=9), alert__server=MCPServerFactory())
    policy = policy_of_sessions()
    DataRetentionPolicyFactory(
        table_name="alert_events", date_column="occurred_at", retention_days=8
    )
    with logged_in_as_app(), crossing_tenants():
        assert preview(policy, at=AT).rows == 2
        assert run() == 3
    assert len(kept()) == 1
    assert not AlertEvent.objects.filter(pk=event.pk).exists()


# ---------------------------------------------------------------- preview


def test_a_preview_counts_and_deletes_nothing():
    rows = sessions(8, 9, 3)
    told = preview(policy_of_sessions(), at=AT)
    assert (told.rows, told.is_estimate, told.partitions) == (2, False, None)
    assert told.before == AT - timedelta(days=7)
    assert str(told).startswith("2 rows (about ")
    assert str(told).endswith(" of sessions, where expires_at is before 2026-06-08 12:00 UTC")
    assert kept() == {row.pk for row in rows}


def test_a_preview_heeds_conditions_and_tells_bytes():
    sessions(8, 9, is_active=False)
    sessions(10)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE sessions")
        cursor.execute("SELECT pg_total_relation_size('sessions')")
        (size,) = cursor.fetchone()
    told = preview(policy_of_sessions(conditions={"is_active": {"=": False}}), at=AT)
    assert told.rows == 2
    assert told.size_bytes == round(size * 2 / 3)


def test_a_preview_of_very_many_rows_is_the_planners_estimate(monkeypatch):
    monkeypatch.setattr(previewing, "MOST_COUNTED", 2)
    sessions(*range(8, 58))
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE sessions")
    told = preview(policy_of_sessions(), at=AT)
    assert told.is_estimate
    assert 40 <= told.rows <= 60
    assert str(told).startswith("about ")


def test_a_preview_that_takes_too_long_is_the_planners_estimate(monkeypatch):
    monkeypatch.setattr(
        previewing, "_COUNT", previewing._COUNT.replace("count(*)", "count(pg_sleep(9))")
    )
    monkeypatch.setattr(previewing, "COUNTING_MS", 50)
    sessions(8)
    assert preview(policy_of_sessions(), at=AT).is_estimate


def test_times_of_every_offset_are_run():
    """PostgreSQL itself knows none of 16 hours and more."""
    sessions(8, 9)
    told = {"expires_at": {"<": "2026-06-07T12:00:00+23:59", ">": "2026-06-04T20:00:00-16:00"}}
    assert preview(policy_of_sessions(conditions=told), at=AT).rows == 1
    assert run() == 1


def test_a_policy_that_postgresql_cannot_run_does_not_hide_the_others(monkeypatch, capsys):
    SessionFactory(expires_at=now() - timedelta(days=8))
    taken_raw = Kind(str, '"2026-01-31T12:00:00Z"')
    monkeypatch.setitem(KINDS, "timestamp with time zone", taken_raw)
    told = {"expires_at": {"<": "2026-01-01T00:00:00+23:59"}}
    policy_of_sessions(name="a bad one", conditions=told)
    policy_of_sessions(name="good")
    call_command("run_maintenance", "--task", "retention_run", "--dry-run")
    lines = capsys.readouterr().out
    assert "retention_run: 1 row due" in lines
    assert "  a bad one: PostgreSQL cannot tell: time zone displacement out of range" in lines
    assert "  good: 1 row (about " in lines


# ---------------------------------------------------------------- partitioned tables


def partitioned_sessions() -> None:
    """Before the real table on the path: two partitions, a year ago and now."""
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TEMP TABLE sessions (LIKE public.sessions) PARTITION BY RANGE (expires_at)"
        )
        for name, start, end in (
            ("old", AT - timedelta(days=400), AT - timedelta(days=390)),
            ("edge", AT - timedelta(days=390), AT - timedelta(days=7, seconds=-1)),
        ):
            cursor.execute(
                f"CREATE TEMP TABLE sessions_{name} PARTITION OF sessions"
                " FOR VALUES FROM (%s) TO (%s)",
                [start, end],
            )


def test_a_partitioned_table_is_left_to_its_own_task():
    partitioned_sessions()
    sessions(395, 8)
    policy = policy_of_sessions()
    assert run() == 0
    policy.refresh_from_db()
    assert policy.last_run is None


def test_a_preview_of_a_partitioned_table_counts_whole_partitions():
    partitioned_sessions()
    sessions(395, 394, 8)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE sessions_old")
        cursor.execute("SELECT pg_total_relation_size('sessions_old')")
        (size,) = cursor.fetchone()
    told = preview(policy_of_sessions(), at=AT)
    assert (told.partitions, told.rows, told.size_bytes) == (1, 2, size)
    assert "in 1 whole partition (" in str(told)
