"""Plain logs become partitioned ones with every row they had, and plain ones again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection

# Migrations run in transactions of their own.
pytestmark = pytest.mark.django_db(transaction=True)

PLAIN = {"monitoring": "0003", "registry": "0003"}
# Of now, of late, of long ago, and of a clock that was wrong.
ROWS = """
INSERT INTO request_logs (id, request_time, request_id, method, path, rpc_method, tool_name,
    status_code, duration_ms, request_size_bytes, response_size_bytes, error_type, error_message,
    protocol_version, request_metadata)
SELECT gen_random_uuid(), at, gen_random_uuid(), 'POST', '/mcp', '', '', 200, 5.5, 1, 2, '', '',
    '', '{"a": 1}'
FROM unnest(ARRAY[now(), now() - interval '12 days', now() - interval '3 years',
                  now() + interval '1 year']) at;
INSERT INTO audit_logs (id, timestamp, service_name, action, resource_type, resource_id, details,
    user_agent, success, error_message)
SELECT gen_random_uuid(), now(), 'api', 'a.b', '', '', '{}', '', true, '';
INSERT INTO server_metrics (id, server_id, timestamp, custom_metrics)
SELECT gen_random_uuid(), gen_random_uuid(), now(), '{}';
"""
SELECTS = (
    "SELECT id, request_time, request_id, duration_ms, request_metadata FROM request_logs"
    " ORDER BY id",
    "SELECT id, timestamp, action, details, success FROM audit_logs",
    "SELECT id, server_id, timestamp, custom_metrics FROM server_metrics",
)


def run(query: str) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall() if cursor.description else []


def rows() -> list[list[tuple[Any, ...]]]:
    return [run(query) for query in SELECTS]


def kinds() -> set[str]:
    found = run(
        "SELECT relkind FROM pg_class WHERE relname IN"
        " ('request_logs', 'audit_logs', 'server_metrics')"
    )
    return {kind for (kind,) in found}


def indexes() -> list[tuple[Any, ...]]:
    return run(
        "SELECT i.relname FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid"
        " JOIN pg_class t ON t.oid = x.indrelid"
        " WHERE t.relname IN ('request_logs', 'audit_logs', 'server_metrics') AND x.indisvalid"
        " ORDER BY i.relname"
    )


def unpartition() -> None:
    for label, number in PLAIN.items():
        call_command("migrate", label, number, verbosity=0)


@pytest.fixture
def plain() -> Iterator[None]:
    """Plain tables; afterwards partitioned ones, with the partitions of an empty database."""
    try:
        unpartition()
        yield
    finally:
        unpartition()
        run("TRUNCATE request_logs, audit_logs, server_metrics")
        call_command("migrate", verbosity=0)


def test_every_row_is_carried_over_and_back(plain: None) -> None:
    assert kinds() == {"r"}
    run(ROWS)
    before, names = rows(), indexes()
    # A view of a higher room that stands already: the plan takes the shortest way there.
    run("CREATE VIEW trial AS SELECT id, status_code FROM request_logs WHERE status_code < 400")
    run("COMMENT ON VIEW trial IS 'kept'")
    try:
        call_command("migrate", verbosity=0)
        assert kinds() == {"p"}
        assert rows() == before
        assert set(names) < set(indexes())  # later migrations add some
        assert run("SELECT count(*) FROM trial") == [(4,)]
        assert run("SELECT obj_description('trial'::regclass)") == [("kept",)]
        assert run("SELECT to_regclass('request_logs_plain')") == [(None,)]
        # Very old rows share one partition, or there would be the eleven hundred of three years.
        [(partitions,)] = run(
            "SELECT count(*) FROM pg_inherits WHERE inhparent = 'request_logs'::regclass"
        )
        assert 100 < partitions < 120
        unpartition()
        assert kinds() == {"r"}
        assert rows() == before
        assert indexes() == names
        assert run("SELECT count(*) FROM trial") == [(4,)]
    finally:
        run("DROP VIEW trial")
