"""What policies do to the partitions of the logs."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from io import StringIO

import pytest
from django.core.management import call_command
from django.db import connection
from django.utils.timezone import now
from psycopg import sql

from monitoring import tasks
from monitoring.models import AuditLog, DataRetentionPolicy, RequestLog
from monitoring.queries import ALL_TENANTS
from monitoring.retention.partitions import partitions_expired, partitions_missing
from monitoring.rollups import rollups_compact
from registry.db.partitions import PartitionsError, partitioned_tables, read_partitions
from tests.factories import DataRetentionPolicyFactory, RequestLogFactory

# Partitions are made and dropped on a connection of their own.
pytestmark = pytest.mark.django_db(transaction=True)

LOGS = ["audit_logs", "request_logs", "server_metrics"]
DAY = timedelta(days=1)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Leave the partitions of today, and no others, to the tests that come later."""
    before = set(names())
    yield
    DataRetentionPolicy.objects.all().delete()
    with connection.cursor() as cursor:
        for name in set(names()) - before:
            cursor.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(name)))
    tasks.partitions_create(at=now())


def names() -> list[str]:
    return [found.name for table in LOGS for found in read_partitions(connection, table)]


def bounds(table: str = "request_logs") -> tuple[datetime, datetime]:
    found = read_partitions(connection, table)
    return found[0].span.since, found[-1].span.until


def test_the_logs_are_partitioned_and_a_new_database_has_what_it_needs() -> None:
    assert partitioned_tables() == LOGS
    for table in LOGS:
        since, until = bounds(table)
        assert since <= now() - 2 * DAY
        assert until > now() + 13 * DAY
    assert partitions_missing(now()) == 0


def test_partitions_are_made_as_time_goes_on() -> None:
    later = now() + 3 * DAY
    assert partitions_missing(later) == 9
    assert tasks.partitions_create(at=later) == 9
    assert bounds()[1] > later + 14 * DAY
    assert tasks.partitions_create(at=later) == 0
    RequestLogFactory(request_time=later + 14 * DAY)


def test_old_partitions_go_with_their_rows_and_the_policy_remembers() -> None:
    policy = DataRetentionPolicyFactory(retention_days=30)
    kept, gone = RequestLogFactory(request_time=now() + 5 * DAY), RequestLogFactory()
    later = now() + 32 * DAY
    assert tasks.partitions_create(at=later) > 0
    oldest, oldest_audit = bounds()[0], bounds("audit_logs")[0]
    expired = sum(
        partition.span.until <= later - 30 * DAY
        for partition in read_partitions(connection, "request_logs")
    )
    assert partitions_expired(later) == expired
    with connection.cursor() as cursor:
        # The count of rows is the statistics', to which what is told late would be added once more.
        cursor.execute("SELECT pg_stat_force_next_flush()")
        cursor.execute("ANALYZE request_logs")
    assert tasks.partitions_remove(at=later) == expired
    assert list(RequestLog.objects.values_list("id", flat=True)) == [kept.id]
    assert bounds()[0] > oldest
    assert bounds("audit_logs")[0] == oldest_audit  # no policy, no end
    policy.refresh_from_db()
    assert (policy.total_deleted, policy.last_deleted_count) == (1, 1)
    assert (policy.last_run, policy.next_run) == (later, later + DAY)
    assert policy.avg_execution_time_ms is not None
    entry = AuditLog.objects.get(action="retention_policy.apply")
    assert entry.details == {"name": policy.name, "partitions": expired, "rows": 1}
    assert not RequestLog.objects.filter(id=gone.id).exists()
    assert tasks.partitions_remove(at=later) == 0
    assert AuditLog.objects.filter(action="retention_policy.apply").count() == 1


def test_what_is_dropped_from_the_log_stays_in_the_summaries() -> None:
    """A window that begins within five minutes whose rows are gone begins with them."""
    DataRetentionPolicyFactory(retention_days=30)
    begins = now().replace(minute=10, second=0, microsecond=0)
    RequestLogFactory.create_batch(3, request_time=begins + timedelta(minutes=2))
    RequestLogFactory(request_time=begins + timedelta(minutes=7))
    rollups_compact()

    def requests() -> int:
        with connection.cursor() as cursor:
            since = begins + timedelta(minutes=1)
            cursor.execute(
                "SELECT requests FROM request_figures(%s, %s, %s)",
                [ALL_TENANTS, since, begins + DAY],
            )
            return cursor.fetchone()[0]

    assert requests() == 4
    assert tasks.partitions_remove(at=now() + 32 * DAY) > 0
    assert not RequestLog.objects.exists()
    assert requests() == 4


@pytest.mark.parametrize("change", [{"is_active": False}, {"conditions": {"status_code": 200}}])
def test_a_policy_that_is_off_or_asks_for_some_rows_drops_nothing(
    change: dict[str, object],
) -> None:
    DataRetentionPolicyFactory(retention_days=1, **change)
    assert tasks.partitions_remove(at=now() + DAY) == 0
    assert partitions_expired(now() + DAY) == 0


def test_of_several_policies_the_one_that_keeps_least_counts() -> None:
    for days in (90, 2, 30):
        DataRetentionPolicyFactory(retention_days=days)
    later = now() + DAY
    removed = tasks.partitions_remove(at=later)
    assert removed > 0
    assert bounds()[0] + DAY > later - 2 * DAY


def test_a_policy_of_more_days_than_time_has_keeps_everything() -> None:
    DataRetentionPolicyFactory(retention_days=2_147_483_647)
    assert tasks.partitions_remove(at=now()) == 0
    assert tasks.partitions_create(at=now()) == 0


def test_a_log_that_cannot_be_served_keeps_no_other_one_waiting() -> None:
    stuck = DataRetentionPolicyFactory(table_name="audit_logs", retention_days=1)
    DataRetentionPolicyFactory(retention_days=1)
    later, oldest = now() + DAY, bounds()[0]
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE audit_logs_rest PARTITION OF audit_logs DEFAULT")
        try:
            with pytest.raises(PartitionsError, match="DETACH PARTITION audit_logs_rest"):
                tasks.partitions_remove(at=later)
        finally:
            cursor.execute("DROP TABLE audit_logs_rest")
    assert bounds()[0] > oldest
    stuck.refresh_from_db()
    assert "DEFAULT partition" in stuck.last_error


def test_nothing_is_made_that_retention_takes_away_again() -> None:
    DataRetentionPolicyFactory(retention_days=1)
    tasks.partitions_remove(at=now())
    assert partitions_missing(now()) == 0
    assert tasks.partitions_create(at=now()) == 0


def test_parents_are_analysed_although_autovacuum_skips_them() -> None:
    tasks.tables_analyze(at=now())
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_user_tables WHERE relname = ANY(%s)"
            " AND last_analyze > now() - interval '1 day'",
            [LOGS],
        )
        assert cursor.fetchone() == (3,)
    with tasks._owners_cursor() as cursor:
        assert not set(LOGS) & set(tasks._stale_tables(cursor))


def test_run_maintenance_says_what_is_due() -> None:
    out = StringIO()
    call_command("run_maintenance", "--task", "partitions_create", "--dry-run", stdout=out)
    assert "partitions_create: 0 partitions due." in out.getvalue()


def test_sizes_and_index_use_count_partitions_as_their_parent() -> None:
    RequestLogFactory.create_batch(3)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE request_logs")
        cursor.execute(
            "SELECT row_estimate, partitions, index_size > 0 FROM database_size_summary"
            " WHERE table_name = 'request_logs'"
        )
        count = len(read_partitions(connection, "request_logs"))
        assert cursor.fetchone() == (3, count, True)
        cursor.execute("SELECT count(*) FROM database_size_summary WHERE table_name ~ '_logs_2'")
        assert cursor.fetchone() == (0,)
        cursor.execute(
            "SELECT index_name, is_valid, index_size > 0 FROM index_usage_summary"
            " WHERE table_name ~ '^request_logs' ORDER BY index_name"
        )
        assert cursor.fetchall() == [
            ("idx_request_logs_request_id", True, True),
            ("idx_request_logs_server_time", True, True),
            ("idx_request_logs_tenant_time", True, True),
            ("idx_request_logs_time", True, True),
            ("idx_request_routing_composite", True, True),
            ("request_logs_pkey", True, True),
        ]
