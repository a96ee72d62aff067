"""Materialised views: when they are refreshed, by whom, and what a failure leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import Any

import pytest
from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import connection
from psycopg import sql

from gateway.defaults import VIEWS, defaults_ensure
from monitoring import matviews, services
from monitoring.audit import Actor
from monitoring.matviews import RefreshError, view_refresh, views_due, views_refresh
from monitoring.models import AuditLog, MaterializedView
from monitoring.rollups import rollups_compact
from registry.db.crossing import crossing_tenants
from registry.db.partitions import partitioned_tables, read_partitions
from registry.db.tenancy import OPERATOR_ROLE, READER_ROLE
from registry.models import ServerMetric, ServerTool
from tests.factories import MCPServerFactory, RequestLogFactory, ServerToolFactory, TenantFactory
from tests.partitions import one_old_partition
from tests.walls import logged_in_as_app

# A refresh runs on a connection of its own, which sees only what is committed.
pytestmark = pytest.mark.django_db(transaction=True)

AT = datetime(2026, 6, 15, 12, tzinfo=UTC)
ACTOR = Actor(service_name="test")
SECOND = timedelta(seconds=1)


@pytest.fixture(autouse=True)
def empty_views() -> None:
    """As after the migration: flushing the tables leaves the views as they were."""
    for view in VIEWS:
        execute(
            sql.SQL("REFRESH MATERIALIZED VIEW {} WITH NO DATA").format(sql.Identifier(view.name))
        )


@pytest.fixture
def old_partitions() -> Iterator[None]:
    """For rows of the last month, and gone afterwards."""
    before = partitions()
    one_old_partition(days=32)
    yield
    for name in partitions() - before:
        execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(name)))


def partitions() -> set[str]:
    tables = partitioned_tables()
    return {found.name for table in tables for found in read_partitions(connection, table)}


def execute(statement: Any, *parameters: Any) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        return list(cursor.fetchall()) if cursor.description else []


def leaderboard(**fields: Any) -> MaterializedView:
    told = {"name": "tool_leaderboard", "refresh_strategy": "scheduled"}
    return MaterializedView.objects.create(**{**told, **fields})


def triggered(**fields: Any) -> MaterializedView:
    told = {"refresh_strategy": "triggered", "refresh_triggers": ["server_tools"]}
    return leaderboard(**{**told, **fields})


def names(at: datetime) -> list[str]:
    return [view.name for view in views_due(at)]


def counted() -> None:
    """Have the statistics of this session reported now; others report theirs within a second."""
    execute("SELECT pg_stat_force_next_flush()")
    execute("SELECT 1")


# ---------------------------------------------------------------- what the views show


def test_init_db_installs_three_views_and_shows_their_definitions():
    made = defaults_ensure(actor=ACTOR)
    assert made.views == 3
    assert defaults_ensure(actor=ACTOR).views == 0
    for view in MaterializedView.objects.all():
        view.full_clean()
        assert view.query.lstrip().startswith("SELECT")
        assert view.indexes[0].startswith("CREATE UNIQUE INDEX")
    assert set(names(AT)) == {view.name for view in VIEWS}
    assert views_refresh(at=AT) == 3
    assert names(AT + SECOND) == []


def test_the_leaderboard_ranks_over_all_and_within_a_tenant():
    mine, other = TenantFactory(), TenantFactory()
    first = MCPServerFactory(tenant=mine)
    second = MCPServerFactory(tenant=other)
    ServerToolFactory(server=first, name="a", total_calls=10, success_count=9, error_count=1)
    ServerToolFactory(server=first, name="b", total_calls=5)
    ServerToolFactory(server=second, name="c", total_calls=7, success_count=7)
    ServerToolFactory(server=second, name="unused")
    leaderboard()
    assert views_refresh(at=AT) == 1
    found = execute(
        "SELECT tool_name, server, place, place_in_tenant, success_rate FROM tool_leaderboard"
        " ORDER BY place"
    )
    assert found == [
        ("a", first.slug, 1, 1, 0.9),
        ("c", second.slug, 2, 1, 1.0),
        ("b", first.slug, 3, 2, 0.0),
    ]


@pytest.mark.usefixtures("old_partitions")
def test_a_tenants_days_are_counted_in_utc():
    tenant = TenantFactory()
    today = execute("SELECT date_trunc('day', now(), 'UTC')")[0][0]
    yesterday = today - timedelta(days=1)
    for time, status in (
        (yesterday, 200),
        (today - SECOND, 500),
        (today - timedelta(days=31), 200),
    ):
        RequestLogFactory(
            tenant_id=tenant.pk, request_time=time, status_code=status, response_size_bytes=5
        )
    RequestLogFactory(request_time=yesterday)
    rollups_compact()
    RequestLogFactory(tenant_id=tenant.pk, request_time=yesterday, status_code=200)  # a delta
    leaderboard(name="tenant_daily_usage")
    assert views_refresh(at=AT) == 1
    found = execute(
        "SELECT day, tenant_id, tenant, total_requests, failed_requests, bytes_out, servers_used"
        " FROM tenant_daily_usage"
    )
    assert found == [(yesterday.date(), tenant.pk, tenant.slug, 3, 1, 10, 0)]


@pytest.mark.usefixtures("old_partitions")
def test_a_servers_checks_are_summed_up_by_the_hour():
    server = MCPServerFactory()
    hour = execute("SELECT date_trunc('hour', now(), 'UTC') - interval '1 hour'")[0][0]
    for minute, took, rate in ((0, 10.0, 0.0), (59, 30.0, 1.0), (60 * -24 * 8, 99.0, 0.0)):
        ServerMetric.objects.create(
            server=server,
            timestamp=hour + timedelta(minutes=minute),
            response_time_ms=took,
            error_rate=rate,
        )
    leaderboard(name="server_hourly_health")
    assert views_refresh(at=AT) == 1
    found = execute(
        "SELECT hour, server_id, checks, avg_response_time_ms, max_response_time_ms,"
        " avg_error_rate FROM server_hourly_health"
    )
    assert found == [(hour, server.pk, 2, 20.0, 30.0, 0.5)]


def test_only_those_who_look_across_tenants_may_read_them():
    granted = execute(
        "SELECT DISTINCT a.grantee::regrole::text, a.privilege_type"
        " FROM pg_class c, aclexplode(c.relacl) a WHERE c.relkind = 'm' AND a.grantee <> c.relowner"
    )
    assert set(granted) == {(OPERATOR_ROLE, "SELECT"), (READER_ROLE, "SELECT")}


def test_a_worker_without_rights_on_the_schema_has_the_owner_refresh_them(monkeypatch):
    """As it is deployed: logged in as the application, beside the owner's own address."""
    ServerToolFactory(name="a", total_calls=1)
    monkeypatch.setattr(settings, "DATABASE_MAINTENANCE", deepcopy(connection.settings_dict))
    view = leaderboard()
    with logged_in_as_app(), crossing_tenants():
        assert views_refresh(at=AT) == 1
    assert execute("SELECT tool_name FROM tool_leaderboard") == [("a",)]
    view.refresh_from_db()
    assert (view.row_count, view.last_error) == (1, "")


# ---------------------------------------------------------------- schedules


def test_a_refresh_leaves_its_figures():
    ServerToolFactory(total_calls=3)
    view = leaderboard(refresh_interval_minutes=30)
    assert views_refresh(at=AT) == 1
    view.refresh_from_db()
    assert (view.last_refreshed, view.next_refresh) == (AT, AT + timedelta(minutes=30))
    assert (view.refresh_count, view.row_count, view.last_error) == (1, 1, "")
    assert view.avg_refresh_time_ms > 0
    assert view.size_bytes > 0
    assert "server_tools" in view.query


def test_a_schedule_is_kept_and_a_pause_is_caught_up_by_one_refresh():
    leaderboard(refresh_interval_minutes=30)
    assert views_refresh(at=AT) == 1
    assert names(AT + timedelta(minutes=30) - SECOND) == []
    assert views_refresh(at=AT + timedelta(days=3)) == 1
    assert names(AT + timedelta(days=3, minutes=29)) == []
    assert MaterializedView.objects.get().refresh_count == 2


def test_views_that_are_off_or_manual_wait_to_be_asked():
    leaderboard(is_active=False)
    manual = leaderboard(name="tenant_daily_usage", refresh_strategy="manual")
    assert views_refresh(at=AT) == 0
    view_refresh(view_id=manual.pk, at=AT)
    manual.refresh_from_db()
    assert (manual.refresh_count, manual.next_refresh) == (1, None)


def test_a_shorter_interval_does_not_wait_for_the_longer_one_s_end():
    view = leaderboard(refresh_interval_minutes=60 * 24)
    views_refresh(at=AT)
    services.materialized_view_update(actor=ACTOR, view=view, refresh_interval_minutes=5)
    assert names(AT + SECOND) == ["tool_leaderboard"]


def test_a_view_that_was_made_anew_is_filled_at_once():
    leaderboard(refresh_interval_minutes=60)
    views_refresh(at=AT)
    execute("REFRESH MATERIALIZED VIEW tool_leaderboard WITH NO DATA")
    assert views_refresh(at=AT + timedelta(minutes=1)) == 1
    assert execute("SELECT count(*) FROM tool_leaderboard") == [(0,)]


# ---------------------------------------------------------------- after changes


def test_changes_of_a_trigger_table_call_for_one_refresh():
    triggered(refresh_interval_minutes=60)
    counted()
    assert views_refresh(at=AT) == 1
    assert names(AT + timedelta(minutes=5)) == []
    for _ in range(20):  # coalesced, however many they are
        ServerToolFactory(total_calls=3)
    counted()
    assert names(AT + 9 * SECOND) == []  # they settle first
    assert views_refresh(at=AT + 10 * SECOND) == 1
    assert execute("SELECT count(*) FROM tool_leaderboard") == [(20,)]
    assert names(AT + timedelta(minutes=5)) == []
    ServerTool.objects.update(total_calls=4)
    counted()
    assert names(AT + timedelta(minutes=5)) == ["tool_leaderboard"]


def test_changes_of_other_tables_do_not():
    triggered()
    counted()
    views_refresh(at=AT)
    TenantFactory()
    counted()
    assert names(AT + timedelta(minutes=5)) == []


def test_without_changes_the_interval_holds():
    triggered(refresh_interval_minutes=60)
    views_refresh(at=AT)
    assert views_refresh(at=AT + timedelta(minutes=60)) == 1


def test_a_view_that_takes_long_is_not_computed_all_the_time():
    view = triggered()
    counted()
    views_refresh(at=AT)
    MaterializedView.objects.filter(pk=view.pk).update(avg_refresh_time_ms=3000)
    ServerToolFactory()
    counted()
    assert names(AT + 59 * SECOND) == []
    assert names(AT + 60 * SECOND) == ["tool_leaderboard"]


def test_changes_of_a_partition_are_its_parents():
    execute("CREATE TABLE parted (at int) PARTITION BY RANGE (at)")
    try:
        execute("CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (10)")
        triggered(refresh_triggers=["parted"])
        counted()
        views_refresh(at=AT)
        execute("INSERT INTO parted VALUES (5)")
        counted()
        assert names(AT + timedelta(minutes=1)) == ["tool_leaderboard"]
    finally:
        execute("DROP TABLE parted")


@pytest.mark.parametrize(
    ("triggers", "words"), [(["nothing"], "no table nothing"), ([], "Name the tables")]
)
def test_triggers_are_tables_that_there_are(triggers, words):
    view = leaderboard()
    with pytest.raises(ValidationError, match=words):
        services.materialized_view_update(
            actor=ACTOR, view=view, refresh_strategy="triggered", refresh_triggers=triggers
        )


# ---------------------------------------------------------------- failures


@pytest.fixture
def broken() -> Iterator[MaterializedView]:
    """A view of its own whose next refresh divides by zero."""
    execute("CREATE TABLE divisors (id int, by int)")
    execute("INSERT INTO divisors VALUES (1, 1)")
    execute("CREATE MATERIALIZED VIEW fragile AS SELECT id, 1 / by AS share FROM divisors")
    execute("CREATE UNIQUE INDEX uq_fragile_id ON fragile (id)")
    execute("UPDATE divisors SET by = 0")
    yield leaderboard(name="fragile", refresh_interval_minutes=60)
    execute("DROP MATERIALIZED VIEW fragile")
    execute("DROP TABLE divisors")


def test_a_failed_refresh_leaves_the_old_data_and_says_why(broken):
    fine = leaderboard(name="tool_leaderboard")
    with pytest.raises(RefreshError, match="fragile: division by zero"):
        views_refresh(at=AT)
    broken.refresh_from_db()
    fine.refresh_from_db()
    assert (broken.last_error, broken.refresh_count) == ("division by zero", 0)
    assert broken.next_refresh == AT + timedelta(minutes=5)  # sooner than its interval
    assert fine.refresh_count == 1  # one that fails does not keep the others waiting
    assert execute("SELECT * FROM fragile") == [(1, 1)]

    execute("UPDATE divisors SET by = 2")
    assert views_refresh(at=AT + timedelta(minutes=5)) == 1
    broken.refresh_from_db()
    assert (broken.last_error, broken.refresh_count) == ("", 1)
    assert execute("SELECT * FROM fragile") == [(1, 0)]


def test_a_failing_view_is_not_tried_at_every_change(broken):
    MaterializedView.objects.update(refresh_strategy="triggered", refresh_triggers=["divisors"])
    with pytest.raises(RefreshError):
        views_refresh(at=AT)
    execute("UPDATE divisors SET by = 0")
    counted()
    assert names(AT + timedelta(minutes=4)) == []
    assert names(AT + timedelta(minutes=5)) == ["fragile"]


def test_a_view_without_a_unique_index_is_not_locked_against_readers_instead(broken):
    execute("UPDATE divisors SET by = 2")
    execute("DROP INDEX uq_fragile_id")
    with pytest.raises(RefreshError, match="Create a unique index"):
        views_refresh(at=AT)
    assert execute("SELECT * FROM fragile") == [(1, 1)]


def test_a_view_that_is_missing_says_what_to_do():
    view = leaderboard(name="gone")
    with pytest.raises(RefreshError, match="run optimize_db"):
        view_refresh(view_id=view.pk, at=AT)
    view.refresh_from_db()
    assert "run optimize_db" in view.last_error


def test_a_locked_view_is_given_up_soon():
    view = leaderboard()
    views_refresh(at=AT)
    connection.set_autocommit(False)
    try:
        execute("REFRESH MATERIALIZED VIEW tool_leaderboard")  # locked until the end
        with ThreadPoolExecutor(1) as pool, pytest.raises(RefreshError, match="locked by others"):
            pool.submit(
                in_own_connection, lambda: views_refresh(at=AT + timedelta(days=1))
            ).result()
    finally:
        connection.rollback()
        connection.set_autocommit(True)
    view.refresh_from_db()
    assert view.refresh_count == 1


# ---------------------------------------------------------------- one at a time


def in_own_connection(work: Callable[[], Any]) -> Any:
    try:
        return work()
    finally:
        connection.close()


def test_of_many_workers_one_refreshes():
    leaderboard()
    barrier = Barrier(4)

    def refresh(number: int) -> int:
        barrier.wait(timeout=10)
        return views_refresh(at=AT + timedelta(milliseconds=number))

    with ThreadPoolExecutor(4) as pool:
        done = pool.map(lambda n: in_own_connection(lambda: refresh(n)), range(4))
        assert sorted(done) == [0, 0, 0, 1]
    assert MaterializedView.objects.get().refresh_count == 1


def test_a_refresh_that_runs_is_not_started_twice():
    view = leaderboard()
    with matviews._alone(view.name):
        assert views_refresh(at=AT) == 0
        with pytest.raises(RefreshError, match="being refreshed right now"):
            view_refresh(view_id=view.pk, at=AT + SECOND)
    view.refresh_from_db()
    assert (view.refresh_count, view.last_error) == (0, "")


def test_readers_go_on_during_a_refresh():
    """After the first time a refresh waits for no reader, and no reader waits for it."""
    view = leaderboard()
    views_refresh(at=AT)
    connection.set_autocommit(False)
    try:
        execute("SELECT count(*) FROM tool_leaderboard")  # keeps its lock until the end
        with ThreadPoolExecutor(1) as pool:
            later = AT + timedelta(days=1)
            work = pool.submit(in_own_connection, lambda: views_refresh(at=later))
            assert work.result(timeout=30) == 1
    finally:
        connection.rollback()
        connection.set_autocommit(True)
    view.refresh_from_db()
    assert view.refresh_count == 2


def test_asking_queues_one_job_and_leaves_an_audit_entry():
    view = leaderboard()
    for _ in range(3):
        services.materialized_view_refresh(actor=ACTOR, view=view)
    queued = execute(
        "SELECT args ->> 'view_id' FROM procrastinate_jobs WHERE task_name = 'view_refresh'"
    )
    assert queued == [(str(view.pk),)]
    entry = AuditLog.objects.filter(action="materialized_view.refresh").first()
    assert entry.resource_id == str(view.pk)
