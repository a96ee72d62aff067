"""Extended statistics: with them the planner is about right, without them far off."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.db import connection

from monitoring.models import RequestLog
from registry.db.partitions import read_partitions
from registry.db.storage import extended_statistics
from tests.schema.seed import rows

pytestmark = [pytest.mark.django_db, pytest.mark.xdist_group("plans")]

TENANTS, CALLS = 100, 20_000
A_TENANT = "('00000000-0000-7000-8000-' || lpad((i % 100)::text, 12, '0'))::uuid"
ITS_SERVER = "('00000000-0000-7000-9000-' || lpad((i % 100)::text, 12, '0'))::uuid"


def execute(statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return cursor.fetchall() if cursor.description else []


def expected_rows(partition: str) -> float:
    execute(f'ANALYZE "{partition}"')
    [(found,)] = execute(
        f'EXPLAIN (FORMAT JSON) SELECT FROM "{partition}"'
        " WHERE tenant_id = '00000000-0000-7000-8000-000000000042'"
        " AND target_server_id = '00000000-0000-7000-9000-000000000042'"
    )
    [plan] = json.loads(found) if isinstance(found, str) else found
    return float(plan["Plan"]["Plan Rows"])


def test_a_tenants_calls_of_one_server_are_expected_to_be_as_many_as_they_are() -> None:
    """A partition that was made like its parent has the parent's statistics."""
    rows(
        RequestLog,
        CALLS,
        request_time="now()",
        tenant_id=A_TENANT,
        target_server_id=ITS_SERVER,
    )
    [(partition,)] = execute("SELECT DISTINCT tableoid::regclass::text FROM request_logs")
    actual = CALLS / TENANTS
    assert actual / 3 <= expected_rows(partition) <= actual * 3
    of_partition = "SELECT stxname FROM pg_statistic_ext WHERE stxrelid = %s::regclass"
    [(name,)] = execute(of_partition, partition)
    execute(f'DROP STATISTICS "{name}"')
    assert expected_rows(partition) < actual / 10


def test_every_partition_has_what_is_declared() -> None:
    of_table = "SELECT count(*) FROM pg_statistic_ext WHERE stxrelid = %s::regclass"
    for declared in extended_statistics():
        tables = [declared.table, *(p.name for p in read_partitions(connection, declared.table))]
        assert len(tables) > 1
        assert {execute(of_table, table)[0][0] for table in tables} == {1}
