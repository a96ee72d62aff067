"""The three views and the readings behind them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection, transaction
from django.utils.timezone import now

from gateway.defaults import defaults_ensure
from gateway.models import (
    BreakerState,
    CircuitBreaker,
    ConnectionPool,
    GatewayProcess,
    RequestQueue,
)
from monitoring.alerts.metrics import LEAST_CALLS
from monitoring.audit import Actor
from monitoring.models import DatabaseSizeSnapshot, RequestRollupDelta, StatementSnapshot
from monitoring.retention.run import policies_run
from monitoring.rollups import rollups_compact
from monitoring.snapshots import size_snapshot_take, statement_snapshot_take
from registry.db.partitions import read_partitions
from registry.models import MCPServer
from tests.factories import (
    MCPServerFactory,
    RequestLogFactory,
    ScheduledTaskFactory,
    TenantFactory,
)

pytestmark = pytest.mark.django_db

METRICS = {
    "requests_per_minute",
    "error_rate",
    "p95_duration_ms",
    "open_breakers",
    "pool_utilisation_percent",
    "queue_depth",
    "slow_statement_ms",
    "index_usage_percent",
    "table_growth_percent",
    "database_connections",
    "cache_hit_ratio",
    "index_hit_ratio",
    "dead_rows",
    "longest_transaction_seconds",
    "database_size_bytes",
    "wraparound_percent",
    "partition_days_ahead",
    "invalid_indexes",
    "failed_tasks",
    "task_late_seconds",
    "recent_calls",
    "rollup_lag_seconds",
    "spooled_log_rows",
    "lost_log_rows",
}


def rows(statement: str, *parameters: Any) -> list[dict[str, Any]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        names = [column.name for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def metric(name: str) -> dict[str, dict[str, Any]]:
    """By subject."""
    found = rows("SELECT * FROM performance_monitoring WHERE metric = %s", name)
    return {row["subject"]: row for row in found}


def size(table: str) -> dict[str, Any]:
    (row,) = rows("SELECT * FROM database_size_summary WHERE table_name = %s", table)
    return row


def execute(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


# --------------------------------------------------------------------------- sizes


def test_size_summary_adds_up() -> None:
    found = size("tenants")
    assert list(found) == [
        "table_name",
        "table_size",
        "index_size",
        "total_size",
        "total_size_pretty",
        "row_estimate",
        "partitions",
        "growth_30d_percent",
    ]
    assert found["total_size"] == found["table_size"] + found["index_size"] > 0
    (real,) = rows("SELECT pg_total_relation_size('tenants') AS bytes")
    assert found["total_size"] == real["bytes"]
    assert found["growth_30d_percent"] is None


@pytest.mark.django_db(transaction=True)
def test_a_small_table_has_its_rows_before_any_analyze_sees_them() -> None:
    execute("ANALYZE tenants")  # as init_db leaves it: seen while it was empty
    TenantFactory.create_batch(3)
    execute("SELECT pg_stat_force_next_flush()")
    assert size("tenants")["row_estimate"] == 3
    execute("DELETE FROM tenants")
    execute("SELECT pg_stat_force_next_flush()")
    assert size("tenants")["row_estimate"] == 0


@pytest.mark.django_db(transaction=True)
def test_rows_are_what_analyze_saw_where_the_count_is_lost() -> None:
    TenantFactory.create_batch(3)
    execute("ANALYZE tenants")
    execute("SELECT pg_stat_reset_single_table_counters('tenants'::regclass)")
    assert size("tenants")["row_estimate"] == 3


@pytest.mark.django_db(transaction=True)
def test_a_large_table_has_its_rows_after_a_crash_forgot_the_count() -> None:
    execute("CREATE TABLE large (id int) WITH (autovacuum_enabled = off)")
    try:
        execute("INSERT INTO large SELECT generate_series(1, 20000); ANALYZE large")
        execute("SELECT pg_stat_reset_single_table_counters('large'::regclass)")
        execute("INSERT INTO large VALUES (0)")
        execute("SELECT pg_stat_force_next_flush()")
        assert size("large")["row_estimate"] == 20_000
    finally:
        execute("DROP TABLE large")


def test_partitions_are_summed_into_their_parent() -> None:
    execute("CREATE TABLE parts (id int, at date) PARTITION BY RANGE (at)")
    execute("CREATE INDEX parts_at ON parts (at)")
    for year in (2025, 2026):
        execute(
            f"CREATE TABLE parts_{year} PARTITION OF parts"
            f" FOR VALUES FROM ('{year}-01-01') TO ('{year + 1}-01-01')"
        )
    execute(
        "INSERT INTO parts SELECT i, date '2025-01-01' + i % 700 FROM generate_series(1, 5000) i"
    )
    execute("ANALYZE parts")
    found = size("parts")
    (real,) = rows(
        "SELECT pg_total_relation_size('parts_2025') + pg_total_relation_size('parts_2026') AS sum"
    )
    assert found["total_size"] == real["sum"]
    assert (found["partitions"], found["row_estimate"]) == (2, 5000)
    assert rows("SELECT 1 FROM database_size_summary WHERE table_name = 'parts_2025'") == []
    (index,) = rows("SELECT * FROM index_usage_summary WHERE table_name = 'parts'")
    assert index["index_name"] == "parts_at"
    (real,) = rows("SELECT pg_indexes_size('parts_2025') + pg_indexes_size('parts_2026') AS sum")
    assert index["index_size"] == real["sum"]


@pytest.mark.parametrize(
    ("days_ago", "expected"),
    [
        ({40: 0.25, 31: 0.5, 10: 0.8}, 100.0),  # the newest that is 30 days old
        ({20: 0.8, 10: 0.5}, 25.0),  # none is: the oldest
        ({0: 0.5}, None),  # today's own reading is no past
    ],
)
def test_growth_is_measured_against_snapshots(
    days_ago: dict[int, float], expected: float | None
) -> None:
    total = size("tenants")["total_size"]
    for days, share in days_ago.items():
        DatabaseSizeSnapshot.objects.create(
            table_name="tenants",
            taken_on=now().date() - timedelta(days=days),
            total_size=round(total * share),
            row_estimate=0,
        )
    assert size("tenants")["growth_30d_percent"] == (
        None if expected is None else pytest.approx(expected, abs=0.2)
    )


def test_size_snapshot_keeps_one_row_a_day() -> None:
    taken = size_snapshot_take()
    assert taken == size_snapshot_take() == DatabaseSizeSnapshot.objects.count()
    assert DatabaseSizeSnapshot.objects.filter(table_name="request_logs").count() == 1


def test_old_snapshots_go_by_the_default_policies() -> None:
    for age in (500, 399):
        DatabaseSizeSnapshot.objects.create(
            table_name="tenants",
            taken_on=now().date() - timedelta(days=age),
            total_size=1,
            row_estimate=1,
        )
    for query_id, age in ((1, 8), (2, 6)):
        StatementSnapshot.objects.create(
            query_id=query_id,
            query="SELECT",
            calls=1,
            total_ms=1.0,
            taken_at=now() - timedelta(days=age),
        )
    defaults_ensure(actor=Actor(service_name="test"))
    assert policies_run(at=now(), rest=lambda _: None) == 2
    assert DatabaseSizeSnapshot.objects.get().taken_on == now().date() - timedelta(days=399)
    assert StatementSnapshot.objects.get().query_id == 2


# --------------------------------------------------------------------------- indexes


def test_index_summary_shows_what_an_index_is() -> None:
    (found,) = rows("SELECT * FROM index_usage_summary WHERE index_name = 'uq_tenants_slug'")
    assert found["table_name"] == "tenants"
    assert found["is_valid"] is found["is_unique"] is True
    assert found["definition"].startswith("CREATE UNIQUE INDEX uq_tenants_slug ON public.tenants")
    assert found["usage_category"] in {"Unused", "Low", "Moderate", "High"}
    assert found["is_declared"] is None, "optimize_db has not said yet"


# --------------------------------------------------------------------------- the dashboard


def test_every_metric_is_there_and_well_formed() -> None:
    found = rows("SELECT * FROM performance_monitoring")
    assert list(found[0]) == [
        "metric",
        "subject",
        "value",
        "unit",
        "threshold",
        "status",
        "measured_at",
    ]
    assert {row["metric"] for row in found} >= METRICS
    assert {row["status"] for row in found} <= {"ok", "warning", "critical"}
    assert len({(row["metric"], row["subject"]) for row in found}) == len(found)


def test_requests_of_the_last_minutes() -> None:
    RequestLogFactory.create_batch(8, duration_ms=100)
    RequestLogFactory.create_batch(2, duration_ms=9000, status_code=502)
    RequestLogFactory(request_time=now() - timedelta(minutes=11))
    assert 1 <= metric("requests_per_minute")["all"]["value"] <= 2
    assert metric("error_rate")["all"]["value"] == pytest.approx(0.2)
    slow = metric("p95_duration_ms")["all"]
    assert slow["value"] == pytest.approx(9000, rel=0.01)
    for few in ("error_rate", "p95_duration_ms"):
        assert (metric(few)["all"]["threshold"], metric(few)["all"]["status"]) == (None, "ok")
    RequestLogFactory.create_batch(5, status_code=401)
    RequestLogFactory(status_code=503)  # nobody was refused: the gateway failed
    RequestLogFactory(status_code=403, api_key_id=uuid4())
    before = metric("error_rate")
    assert before["all"]["value"] == pytest.approx(4 / 12), "strangers do not count"
    rollups_compact()
    assert metric("error_rate")["all"]["value"] == before["all"]["value"], "deltas or rollups"
    assert metric("recent_calls")["all"]["value"] == 12
    RequestLogFactory.create_batch(8, status_code=502, duration_ms=9000)
    assert metric("error_rate")["all"]["status"] == "critical"
    assert metric("p95_duration_ms")["all"]["status"] == "critical"
    assert metric("recent_calls")["all"]["value"] == LEAST_CALLS


def test_a_percentile_is_near_that_of_the_log() -> None:
    for number in range(1, 101):
        RequestLogFactory(duration_ms=number * 10.0)
    assert metric("p95_duration_ms")["all"]["value"] == pytest.approx(955, rel=0.02)


def test_open_breakers_are_counted_and_named() -> None:
    assert metric("open_breakers")["all"]["status"] == "ok"
    server = MCPServerFactory(tenant=TenantFactory(slug="acme"), slug="mail")
    CircuitBreaker.objects.filter(server=server).update(state=BreakerState.OPEN)
    found = metric("open_breakers")
    assert found["all"]["value"] == found["acme/mail"]["value"] == 1
    assert found["all"]["status"] == "warning"
    MCPServer.objects.filter(id=server.id).update(is_enabled=False)
    found = metric("open_breakers")
    assert list(found) == ["all"], "nobody is to call a server that is disabled"
    assert found["all"]["value"] == 0


def test_pool_and_queue() -> None:
    server = MCPServerFactory(tenant=None, slug="shared")
    ConnectionPool.objects.create(
        server=server, pool_name="node-1", max_size=10, active_connections=9
    )
    RequestQueue.objects.create(server=server, queue_name="node-1", max_size=10, current_size=9)
    pool = metric("pool_utilisation_percent")
    assert pool["all"]["value"] == pool["shared"]["value"] == 90
    assert pool["all"]["threshold"] == 85
    assert pool["all"]["status"] == "warning"
    queue = metric("queue_depth")
    assert queue["all"]["value"] == 9
    assert queue["shared"]["status"] == "critical"


def test_slow_statement_of_the_last_reading() -> None:
    fresh, old = now(), now() - timedelta(minutes=50)
    for number, (mean, at) in enumerate([(1500.0, fresh), (3.0, fresh), (9999.0, old)]):
        StatementSnapshot.objects.create(
            query_id=number,
            query="SELECT",
            calls=1,
            total_ms=1,
            window_calls=1,
            window_mean_ms=mean,
            taken_at=at,
        )
    found = metric("slow_statement_ms")
    assert set(found) == {"all", "0"}
    assert found["all"]["value"] == 1500.0
    assert (found["all"]["threshold"], found["all"]["status"]) == (1000, "warning")
    assert found["all"]["measured_at"] == fresh


def test_statement_readings_that_are_old_say_nothing() -> None:
    StatementSnapshot.objects.create(
        query_id=1,
        query="SELECT",
        calls=1,
        total_ms=1,
        window_mean_ms=9999,
        taken_at=now() - timedelta(hours=4),
    )
    assert metric("slow_statement_ms")["all"]["value"] is None


def test_growth_is_that_of_the_newest_readings() -> None:
    today, mib = now().date(), 1024 * 1024
    for days, table, total in (
        (31, "grown", 100 * mib), (0, "grown", 150 * mib),
        (31, "small", mib), (0, "small", 9 * mib),
    ):  # fmt: skip
        DatabaseSizeSnapshot.objects.create(
            table_name=table,
            taken_on=today - timedelta(days=days),
            total_size=total,
            row_estimate=0,
        )
    found = metric("table_growth_percent")
    assert {subject: row["value"] for subject, row in found.items()} == {"all": 50, "grown": 50}
    DatabaseSizeSnapshot.objects.filter(taken_on=today).update(taken_on=today - timedelta(days=5))
    assert metric("table_growth_percent")["all"]["value"] is None, "the worker reads no sizes"


@pytest.mark.django_db(transaction=True)
def test_dead_rows_and_index_usage_are_those_of_the_statistics() -> None:
    execute("CREATE TABLE parts (id int) PARTITION BY RANGE (id)")
    try:
        execute(
            "CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (1000000)"
            " WITH (autovacuum_enabled = off)"
        )
        execute("INSERT INTO parts SELECT generate_series(1, 31000)")
        execute("CREATE INDEX parts_id ON parts (id)")
        execute("SET enable_seqscan = off; SELECT id FROM parts WHERE id < 900; RESET ALL")
        execute("DELETE FROM parts WHERE id > 15000")
        execute("SELECT pg_stat_force_next_flush()")
        assert metric("dead_rows")["parts"]["value"] == 16_000
        assert "parts" not in metric("index_usage_percent"), "filled, indexed and read whole twice"
        assert metric("index_usage_percent")["all"]["value"] == 100
        execute("DO 'BEGIN FOR i IN 1..110 LOOP PERFORM count(*) FROM parts; END LOOP; END'")
        execute("SELECT pg_stat_force_next_flush()")
        (own,) = rows(
            "SELECT seq_tup_read AS seq, idx_tup_fetch AS idx FROM pg_stat_user_tables"
            " WHERE relname = 'parts_1'"
        )
        usage = metric("index_usage_percent")["parts"]["value"]
        assert usage == pytest.approx(100 * own["idx"] / (own["idx"] + own["seq"]))
        assert 0 < usage < 80
        size_snapshot_take()
        assert "parts" in metric("index_usage_percent"), "today's reading is no past"
        today = DatabaseSizeSnapshot.objects.filter(table_name="parts")
        assert (today.get().rows_by_scan, today.get().rows_by_index) == (own["seq"], own["idx"])
        today.update(taken_on=now().date() - timedelta(days=1))
        assert metric("index_usage_percent")["parts"]["value"] == usage, (
            "partitions go, counters too"
        )
    finally:
        execute("DROP TABLE parts")


@pytest.mark.django_db(transaction=True)
def test_index_usage_is_of_what_was_read_since_the_day_before() -> None:
    execute("CREATE TABLE whole (id int) WITH (autovacuum_enabled = off)")
    try:
        execute("INSERT INTO whole SELECT generate_series(1, 11000)")
        execute("DO 'BEGIN FOR i IN 1..110 LOOP PERFORM count(*) FROM whole; END LOOP; END'")
        execute("SELECT pg_stat_force_next_flush()")
        assert metric("index_usage_percent")["whole"]["value"] == 0
        size_snapshot_take()
        assert "whole" in metric("index_usage_percent"), "today's reading is no past"
        past = DatabaseSizeSnapshot.objects.filter(table_name="whole")
        past.update(taken_on=now().date() - timedelta(days=1))
        assert "whole" not in metric("index_usage_percent"), "what was is over"
        past.update(rows_by_scan=10**9)
        assert "whole" in metric("index_usage_percent"), (
            "reset in between: all that it shows is new"
        )
    finally:
        execute("DROP TABLE whole")


def test_wraparound_is_the_worst_databases_share_of_all_ids() -> None:
    (own,) = rows(
        "SELECT max(greatest(age(datfrozenxid), mxid_age(datminmxid))) AS age FROM pg_database"
    )
    found = metric("wraparound_percent")["all"]
    assert found["value"] == pytest.approx(100 * own["age"] / 2**31, abs=0.01)
    assert (found["threshold"], found["status"]) == (40, "ok")


def drop_partition(table: str, *, of: datetime) -> None:
    (found,) = [
        each for each in read_partitions(connection, table)
        if each.span.since <= of < each.span.until
    ]  # fmt: skip
    execute(f'DROP TABLE "{found.name}"')


def test_a_missing_partition_is_seen_days_before_rows_have_nowhere_to_go() -> None:
    whole = metric("partition_days_ahead")
    assert set(whole) == {"all"}
    assert 13 < whole["all"]["value"] <= 16
    drop_partition("audit_logs", of=now() + timedelta(days=5))
    found = metric("partition_days_ahead")
    assert 4 < found["all"]["value"] == found["audit_logs"]["value"] <= 5
    assert found["all"]["status"] == "warning"
    drop_partition("request_logs", of=now() + timedelta(days=2))
    assert metric("partition_days_ahead")["request_logs"]["status"] == "critical"
    drop_partition("server_metrics", of=now())
    assert metric("partition_days_ahead")["server_metrics"]["value"] == 0


def test_a_log_without_any_partition_is_not_overlooked() -> None:
    for each in read_partitions(connection, "server_metrics"):
        execute(f'DROP TABLE "{each.name}"')
    assert metric("partition_days_ahead")["server_metrics"]["value"] == 0


def test_an_invalid_index_is_named() -> None:
    assert metric("invalid_indexes")["all"]["value"] == 0
    execute("CREATE TABLE parts (id int) PARTITION BY RANGE (id)")
    execute("CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10)")
    execute("CREATE INDEX parts_id ON ONLY parts (id)")  # as after a build that was cut off
    found = metric("invalid_indexes")
    assert found["all"]["value"] == found["parts_id"]["value"] == 1
    assert found["parts_id"]["status"] == "warning"


def test_failed_tasks_are_named_until_they_go_well_again() -> None:
    assert metric("failed_tasks")["all"]["value"] is None, "no worker ever started"
    failed = ScheduledTaskFactory(name="retention_run", last_outcome="failed")
    ScheduledTaskFactory(last_outcome="gone", is_paused=True)
    ScheduledTaskFactory(last_outcome="done")
    found = metric("failed_tasks")
    assert set(found) == {"all", "retention_run"}
    assert (found["all"]["value"], found["all"]["status"]) == (1, "warning")
    failed.last_outcome = "done"
    failed.save()
    assert metric("failed_tasks")["all"]["value"] == 0


def test_late_tasks_are_named_with_how_late_they_are() -> None:
    assert metric("task_late_seconds")["all"]["value"] is None, "no worker ever started"
    at = now()
    due = {"next_run": at - timedelta(minutes=30)}
    ScheduledTaskFactory(is_paused=True, **due)
    ScheduledTaskFactory(next_run=at + timedelta(hours=1))
    ScheduledTaskFactory(running_since=at, lease_until=at + timedelta(minutes=1), **due)
    assert metric("task_late_seconds")["all"]["value"] == 0
    ScheduledTaskFactory(next_run=at - timedelta(seconds=50))
    found = metric("task_late_seconds")
    assert (set(found), found["all"]["status"]) == ({"all"}, "ok")
    ScheduledTaskFactory(name="frozen", running_since=at, lease_until=at - timedelta(minutes=2))
    ScheduledTaskFactory(name="waits", **due)
    found = metric("task_late_seconds")
    assert set(found) == {"all", "frozen", "waits"}
    assert found["all"]["value"] == found["waits"]["value"] == pytest.approx(1800, abs=60)
    assert (found["frozen"]["status"], found["all"]["status"]) == ("warning", "critical")


def test_rollups_are_as_far_behind_as_their_oldest_delta() -> None:
    assert metric("rollup_lag_seconds")["all"]["value"] == 0
    RequestLogFactory(request_time=now() - timedelta(hours=2))  # a late row is no delay
    assert metric("rollup_lag_seconds")["all"]["value"] < 60
    RequestRollupDelta.objects.update(written_at=now() - timedelta(minutes=10))
    found = metric("rollup_lag_seconds")["all"]
    assert (found["value"], found["status"]) == (pytest.approx(600, abs=5), "warning")
    rollups_compact()
    assert metric("rollup_lag_seconds")["all"]["value"] == 0


def test_log_rows_in_files_and_lost_ones_are_those_of_living_processes() -> None:
    assert metric("spooled_log_rows")["all"]["value"] is None, "no gateway runs"
    GatewayProcess.objects.create(name="a", log_rows_spooled=7)
    lost = GatewayProcess.objects.create(name="b", log_rows_lost=3, last_loss=now())
    gone = GatewayProcess.objects.create(name="gone", log_rows_spooled=100)
    GatewayProcess.objects.filter(pk=gone.pk).update(updated_at=now() - timedelta(hours=1))
    spooled, found = metric("spooled_log_rows"), metric("lost_log_rows")
    assert {subject: row["value"] for subject, row in spooled.items()} == {"all": 7, "a": 7}
    assert {subject: row["value"] for subject, row in found.items()} == {"all": 3, "b": 3}
    assert found["all"]["status"] == "critical"
    GatewayProcess.objects.filter(pk=lost.pk).update(last_loss=now() - timedelta(hours=2))
    assert metric("lost_log_rows")["all"]["value"] == 0


@pytest.fixture
def reader() -> Iterator[None]:
    """A role that may read the view and nothing else."""
    execute("CREATE ROLE dashboard_reader")
    execute("GRANT SELECT ON performance_monitoring TO dashboard_reader")
    execute("SET LOCAL ROLE dashboard_reader")
    yield
    execute("RESET ROLE")


@pytest.mark.usefixtures("reader")
def test_dashboard_works_for_a_role_without_special_rights() -> None:
    assert {row["metric"] for row in rows("SELECT * FROM performance_monitoring")} >= METRICS


# --------------------------------------------------------------------------- statements


def test_without_the_extension_nothing_is_read() -> None:
    if rows("SELECT 1 FROM pg_extension WHERE extname = 'pg_stat_statements'"):
        with transaction.atomic():
            execute("DROP EXTENSION pg_stat_statements")
    assert statement_snapshot_take() is None


def test_with_the_extension_it_is_read_where_it_is_preloaded() -> None:
    if not rows("SELECT 1 FROM pg_available_extensions WHERE name = 'pg_stat_statements'"):
        pytest.skip("this server has no pg_stat_statements")
    execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
    preloaded = rows("SHOW shared_preload_libraries")[0]["shared_preload_libraries"]
    taken = statement_snapshot_take()
    if "pg_stat_statements" in preloaded:
        assert taken
        assert StatementSnapshot.objects.count() == taken
    else:
        assert taken is None


@pytest.fixture
def statements() -> None:
    """A stand-in with the extension's columns, where the server does not preload it."""
    execute("DROP EXTENSION IF EXISTS pg_stat_statements")
    execute(
        "CREATE TABLE pg_stat_statements (queryid bigint, query text, calls bigint,"
        " total_exec_time double precision, dbid oid)"
    )


def _read(calls: int, total_ms: float) -> StatementSnapshot:
    from monitoring.snapshots import _read_statements

    execute("TRUNCATE pg_stat_statements")
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO pg_stat_statements SELECT 7, 'SELECT $1', %s, %s, oid"
            " FROM pg_database WHERE datname = current_database()",
            [calls, total_ms],
        )
    assert _read_statements(schema="public") == 1
    return StatementSnapshot.objects.get(query_id=7)


@pytest.mark.usefixtures("statements")
def test_a_window_is_what_happened_between_two_readings() -> None:
    first = _read(calls=1000, total_ms=1_000_000)
    assert (first.window_calls, first.window_mean_ms) == (None, None)
    second = _read(calls=1010, total_ms=1_000_050)
    assert (second.window_calls, second.window_mean_ms) == (10, 5.0)
    idle = _read(calls=1010, total_ms=1_000_050)
    assert (idle.window_calls, idle.window_mean_ms) == (0, None)


@pytest.mark.usefixtures("statements")
def test_counters_that_were_reset_start_anew() -> None:
    _read(calls=1000, total_ms=1_000_000)
    after = _read(calls=4, total_ms=20)
    assert (after.window_calls, after.window_mean_ms) == (4, 5.0)
