"""A batch of a retention policy reads its rows by an index and deletes them by their place."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.utils.timezone import now
from psycopg import sql

from monitoring.models import DataRetentionPolicy
from monitoring.retention.run import batch_statement
from monitoring.retention.tables import RETAINED
from monitoring.retention.target import target_of

pytestmark = [pytest.mark.django_db, pytest.mark.xdist_group("plans")]

BATCHED = {
    "alert_events": (365, "idx_alert_events_occurred_at"),
    "sessions": (7, "idx_sessions_expires_at"),
    "database_size_snapshots": (390, "idx_database_size_snapshots_taken_on"),
    "statement_snapshots": (7, "idx_statement_snapshots_taken_at"),
    "optimize_runs": (365, "idx_optimize_runs_started_at"),
}


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize("table", BATCHED)
def test_a_batch_reads_by_its_index(table: str) -> None:
    days, index = BATCHED[table]
    policy = DataRetentionPolicy(
        table_name=table, date_column=RETAINED[table], retention_days=days, batch_size=1000
    )
    statement = sql.SQL("EXPLAIN (ANALYZE, FORMAT JSON) ") + batch_statement(target_of(policy))
    with transaction.atomic(), connection.cursor() as cursor:
        old = now() - timedelta(days=days)
        cursor.execute(statement, ["-infinity", old, 1000])
        (plan,) = cursor.fetchone()
        transaction.set_rollback(True)
    nodes = list(walked(plan[0]["Plan"]))
    assert index in {node.get("Index Name") for node in nodes}
    assert "Tid Scan" in {node["Node Type"] for node in nodes}
    assert "Seq Scan" not in {node["Node Type"] for node in nodes}
    gone = next(node for node in nodes if node["Node Type"] == "ModifyTable")
    assert gone["Actual Rows"] > 0


def walked(node: dict[str, Any]) -> Any:
    yield node
    for child in node.get("Plans", []):
        yield from walked(child)
