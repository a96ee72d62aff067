"""bench_db from outside, small: plans, buffers and equal rows; times are no test's business."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils.timezone import now

from gateway.bench.queries import QUERIES
from gateway.bench.scratch import PREFIX, ScratchError, scratch_database

# One run serves all tests; it takes seconds on an idle machine and minutes on a crowded one.
pytestmark = [pytest.mark.xdist_group("bench"), pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[3]
HEADLINES = [query.name for query in QUERIES if query.headline]
# The indexes one of which must serve the query, and the most buffers that an execution may touch.
# Above what is measured at this size by a third: a plan that lost its index needs many times more.
EXPECTED = {
    "server_discovery": (
        {"idx_mcp_servers_tenant_status", "idx_servers_discovery_composite"},
        120,
    ),
    "user_authentication": ({"uq_sessions_session_token"}, 12),
    "audit_page": ({"idx_audit_logs_tenant_time"}, 30),
    "api_key_validation": ({"uq_enhanced_api_keys_key_prefix"}, 20),
    "tool_discovery": ({"idx_server_tools_name_server", "idx_tools_discovery_performance"}, 300),
}


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "manage.py"), "bench_db", *arguments]


def scratch_databases() -> set[str]:
    with psycopg.connect(os.environ["DATABASE_URL"]) as server:
        found = server.execute(
            "SELECT datname FROM pg_database WHERE starts_with(datname, %s)", [PREFIX]
        )
        return {row[0] for row in found}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """One run of the headline queries; what it prints on standard output and nothing else."""
    only = [part for name in HEADLINES for part in ("--query", name)]
    sizes = ["--requests", "60000", "--servers", "2000", "--parameters", "20"]
    before = scratch_databases()
    run = subprocess.run(
        command(*sizes, *only, "--json"), capture_output=True, text=True, timeout=280
    )
    assert run.returncode == 0, run.stderr
    assert scratch_databases() <= before
    return dict(json.loads(run.stdout))


@pytest.mark.parametrize("name", HEADLINES)
def test_a_headline_query_keeps_its_index_and_its_buffers(document, name):
    (found,) = [query for query in document["queries"] if query["name"] == name]
    indexes, buffers = EXPECTED[name]
    optimised, bare = found["arms"]["optimised"], found["arms"]["bare"]
    assert found["rows_equal"]
    assert set(found["index_scans"]) & indexes, found["index_scans"]
    assert optimised["buffers_max"] <= buffers
    assert not set(bare["indexes"]) & indexes
    assert sum(found["parameters"].values()) == 25
    assert found["parameters"]["absent"] == 5


def test_every_arm_has_the_same_rows_and_its_own_indexes(document):
    arms = document["writes"]
    rows = {
        name: {table["table"]: table["rows"] for table in arm["tables"]}
        for name, arm in arms.items()
    }
    assert rows["bare"] == rows["django"] == rows["optimised"]
    assert rows["bare"]["request_logs"] == 60_000
    assert rows["bare"]["mcp_servers"] == 2_000
    built = {name: {build["index"] for build in arm["index_builds"]} for name, arm in arms.items()}
    assert not built["bare"]
    assert {"request_logs_tenant_id", "uq_sessions_session_token"} <= built["django"]
    assert "idx_request_logs_tenant_time" in built["optimised"]


def test_the_cost_is_told_beside_the_gain(document):
    arms = document["writes"]
    copied = {name: arm["copy"]["wal_bytes_per_row"] for name, arm in arms.items()}
    assert 0 < copied["bare"] < copied["optimised"]
    for arm in arms.values():
        assert arm["copy"]["rows_per_second"] > 0
        assert all(0 <= update["hot_share"] <= 1 for update in arm["updates"])
        assert all(update["rows"] == 800 for update in arm["updates"])


def test_traffic_goes_on_while_optimize_db_builds(document):
    quiet, building = document["traffic"][:2]
    assert building["what"] == "optimize_db builds idx_request_routing_composite"
    for during in (quiet, building):
        assert during["reads"]["statements"] > 0
        assert during["writes"]["statements"] > 0


def test_ctrl_c_leaves_no_database(tmp_path):
    with (tmp_path / "out").open("w") as out:
        before = scratch_databases()
        run = subprocess.Popen(
            command("--requests", "20000"),
            stdout=out,
            stderr=out,
            # A shell's background job ignores Ctrl-C, and so would what it starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            wait_until(lambda: scratch_databases() - before)
        finally:
            run.send_signal(signal.SIGINT)
        assert run.wait(timeout=120) != 0
    assert scratch_databases() <= before


def wait_until(holds: Any) -> None:
    until = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < until, "it did not happen within two minutes"
        time.sleep(0.05)


@pytest.fixture
def powerless() -> Iterator[str]:
    """The URL of a role that may sign in and nothing else."""
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as server:
        name = f"powerless_{os.getpid()}"
        server.execute(psycopg.sql.SQL("CREATE ROLE {} LOGIN").format(psycopg.sql.Identifier(name)))
        try:
            yield os.environ["DATABASE_URL"].replace("postgres@", f"{name}@", 1)
        finally:
            server.execute(psycopg.sql.SQL("DROP ROLE {}").format(psycopg.sql.Identifier(name)))


def test_a_role_that_may_not_make_databases_is_told_so(powerless):
    environment = {**os.environ, "DATABASE_URL": powerless}
    run = subprocess.run(command(), env=environment, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert "may not make databases" in run.stderr
    assert "CREATEDB" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.django_db(transaction=True)
def test_too_little_disk_is_said_before_anything_is_made():
    before = scratch_databases()
    with (
        pytest.raises(ScratchError, match=r"needs about 1024\.0 GB of disk"),
        scratch_database(bytes_needed=2**40),
    ):
        pytest.fail("the disk is not that large")
    assert scratch_databases() <= before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--requests", "10"], "--requests takes 1,000 to 100,000,000."),
        (["--servers", "0"], "--servers takes 100 to 10,000,000."),
        (["--parameters", "9"], "--parameters takes 10 to 10,000."),
        (["--query", "everything"], "There is no query 'everything'; choose of: server_disc"),
    ],
)
def test_wrong_usage_is_told_in_a_sentence(arguments, sentence):
    with pytest.raises(CommandError) as caught:
        call_command("bench_db", *arguments)
    assert str(caught.value).startswith(sentence)
    assert caught.value.returncode == 2


@pytest.mark.django_db
@pytest.mark.parametrize("query", [q for q in QUERIES if q.absent], ids=lambda query: query.name)
def test_a_query_is_the_program_s_own_and_finds_nobody_where_there_is_none(query):
    statement = query.statement(query.absent(1), at=now())
    with connection.cursor() as cursor:
        cursor.execute(statement.sql, statement.parameters)
        rows = cursor.fetchall()
    assert rows == [] or rows[0][0] == 0  # an aggregate counts nothing
