"""bench_db from outside, small: plans, buffers, roles, rows; times are no test's business."""

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

from gateway.bench.arms import BARE, OPTIMISED
from gateway.bench.asking import Walls, asking
from gateway.bench.growth import growth
from gateway.bench.queries import QUERIES
from monitoring.bench.lockwait import watching
from registry.db.catalogue import catalogue
from registry.db.scratch import PREFIX, ScratchError, connect, scratch_database
from registry.db.tenancy import APP_ROLE, OPERATOR_ROLE
from tests.factories import RequestLogFactory, TenantFactory

# One run serves all tests; it takes seconds on an idle machine and minutes on a crowded one.
pytestmark = [pytest.mark.xdist_group("bench"), pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[3]
HEADLINES = [query.name for query in QUERIES if query.headline]
# The indexes one of which must serve the query, and the most buffers that an execution may touch.
# Above what is measured at this size by a third: a plan that lost its index needs many times more.
EXPECTED = {
    "server_discovery": ({"idx_mcp_servers_tenant_fastest", "idx_mcp_servers_shared_fastest"}, 60),
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
    sizes += ["--traffic-seconds", "1"]
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


def test_traffic_goes_on_while_the_schema_changes(document):
    quiet, building, dropping = document["traffic"]
    assert building["what"] == "optimize_db builds idx_request_routing_composite"
    assert dropping["what"] == "partitions are dropped"
    assert quiet["seconds"] >= building["seconds"] * 0.9
    for during in (quiet, building, dropping):
        assert during["reads"]["statements"] > 0
        assert during["writes"]["statements"] > 0
        assert during["longest_lock_wait_ms"] < document["lock_timeout_ms"]
    assert quiet["reads"]["p99_to_quiet"] == 1


@pytest.mark.django_db(transaction=True)
def test_who_waits_for_a_lock_is_seen():
    lock = "LOCK TABLE tenants IN ACCESS EXCLUSIVE MODE"
    with (
        connect("holder") as holder,
        connect("waiter") as waiter,
        connect("other") as other,
        watching(connect("watch"), application="waiter") as watch,
    ):
        waiter.execute("SET lock_timeout = '300ms'")
        other.execute("SET lock_timeout = '300ms'")
        with holder.transaction():
            holder.execute(lock)
            with pytest.raises(psycopg.errors.LockNotAvailable), other.transaction():
                other.execute(lock)
            assert watch.longest_ms == 0, "somebody else's wait was taken for the waiter's"
            with pytest.raises(psycopg.errors.LockNotAvailable), waiter.transaction():
                waiter.execute(lock)
        assert watch.longest_ms >= 150
        watch.reset()
        assert watch.longest_ms == 0


def test_each_question_is_asked_as_the_program_asks_it(document):
    assert document["walls"]["standing"]
    assert document["walls"]["plain_us"] < document["walls"]["tenant_us"]
    asked = {query["name"]: query["asked_as"] for query in document["queries"]}
    assert asked == {
        "server_discovery": APP_ROLE,
        "user_authentication": OPERATOR_ROLE,
        "audit_page": APP_ROLE,
        "api_key_validation": OPERATOR_ROLE,
        "tool_discovery": OPERATOR_ROLE,
    }


@pytest.mark.django_db(transaction=True)
def test_a_walled_question_sees_one_tenant_and_no_other():
    mine, other = TenantFactory(), TenantFactory()
    for tenant in (mine, other, other):
        RequestLogFactory(tenant_id=tenant.pk)
    everything = "SELECT current_user, count(*) FROM request_logs"
    walls, down = Walls(standing=True), Walls(standing=False)
    askers = {
        "walled": walls.asker(OPTIMISED, mine.pk),
        "across tenants": walls.asker(OPTIMISED, None),
        "without walls": walls.asker(BARE, mine.pk),
        "no roles": down.asker(OPTIMISED, mine.pk),
    }
    with connect() as own:
        user = own.info.user
        found = {}
        for name, asker in askers.items():
            with asking(own, asker):
                found[name] = own.execute(everything).fetchone()
    assert found == {
        "walled": (APP_ROLE, 1),
        "across tenants": (OPERATOR_ROLE, 3),
        "without walls": (user, 3),
        "no roles": (user, 3),
    }


def test_the_server_s_own_times_stand_beside_the_client_s(document):
    for query in document["queries"]:
        for arm in query["arms"].values():
            # Each is timed in passes of its own: a busy machine may turn their order.
            medians = ("median_ms", "client_median_ms", "planning_median_ms")
            assert all(arm[name] > 0 for name in medians)
            assert 0 <= arm["noise"]["execution"] <= 1


def test_validating_a_key_is_told_in_cpu_time(document):
    found = document["keys"]
    assert 0 < found["hashing_us"] < found["deciding_us"] < found["total_us"]
    assert found["met"] == (found["total_us"] <= found["goal_us"])
    assert found["refused"] < 50, "every key was refused before its rules were looked at"


def test_growth_compares_the_buffers_of_two_runs(document):
    larger = json.loads(json.dumps(document))
    for query in larger["queries"]:
        query["arms"]["bare"]["buffers_median"] *= 10
    larger["queries"][0]["arms"]["optimised"]["buffers_median"] *= 3
    first, *others = growth(document, larger)
    assert (first.factor, first.is_flat) == (3, False)
    assert all(one.factor == 1 and one.is_flat for one in others)
    assert all(one.bare_factor == 10 for one in (first, *others))


@pytest.mark.django_db(transaction=True)
def test_the_page_of_indexes_has_a_row_for_each_entry_of_the_catalogue(tmp_path):
    page = tmp_path / "indexes.md"
    call_command("bench_db", "--indexes", str(page), "--requests", "1000", "--servers", "100")
    rows = [line.split(" | ") for line in page.read_text().splitlines() if line.startswith("| `")]
    named = [row[0].strip("|` ") for row in rows]
    assert sorted(named) == sorted(entry.index for entry in catalogue())
    for row, name in zip(rows, named, strict=True):
        assert len(row) == 9, row
        assert row[1] in {
            f"{entry.caller}; {entry.rate}" for entry in catalogue() if entry.index == name
        }
    served = [row for row in rows if "uq_enhanced_api_keys_key_prefix" in row[0]]
    assert "Index Scan" in served[0][2]
    assert "**keeps**" in served[0][8]
    (volatile,) = [row for row in rows if "idx_sessions_activity_time" in row[0]]
    assert volatile[7].endswith("/ 0%")


@pytest.mark.parametrize(
    ("number", "started"),
    [
        (signal.SIGINT, command("--requests", "20000")),
        (signal.SIGTERM, [sys.executable, "-m", "monitoring.bench.retention"]),
    ],
)
def test_a_stopped_benchmark_leaves_no_database(tmp_path, number, started):
    with (tmp_path / "out").open("w") as out:
        before = scratch_databases()
        run = subprocess.Popen(
            started,
            cwd=ROOT,
            stdout=out,
            stderr=out,
            # A shell's background job ignores Ctrl-C, and so would what it starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            wait_until(lambda: scratch_databases() - before)
        finally:
            run.send_signal(number)
        assert run.wait(timeout=120) != 0
    assert scratch_databases() <= before


@pytest.mark.django_db(transaction=True)
def test_what_a_killed_run_left_behind_goes_with_the_next_one():
    left, foreign = f"{PREFIX}20200101000000_abcdef", f"{PREFIX}of_somebody"
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as server:
        for name in (left, foreign):
            server.execute(
                psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(name))
            )
        try:
            with scratch_database() as own:
                assert connection.settings_dict["NAME"] == own
                assert scratch_databases() >= {own, foreign}
                assert left not in scratch_databases()
            assert connection.settings_dict["NAME"] != own
        finally:
            for name in (left, foreign):
                drop = psycopg.sql.SQL("DROP DATABASE IF EXISTS {}")
                server.execute(drop.format(psycopg.sql.Identifier(name)))


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


def test_another_run_s_document_is_read_before_anything_is_made(tmp_path):
    before = scratch_databases()
    (tmp_path / "other.json").write_text("{}")
    for name, reason in (("other.json", "no document of"), ("none.json", "cannot be read")):
        with pytest.raises(CommandError, match=reason):
            call_command("bench_db", "--against", str(tmp_path / name))
    assert scratch_databases() <= before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--requests", "10"], "--requests takes 1,000 to 100,000,000."),
        (["--servers", "0"], "--servers takes 100 to 10,000,000."),
        (["--parameters", "9"], "--parameters takes 10 to 10,000."),
        (["--traffic-seconds", "0.5"], "--traffic-seconds takes 1 to 600."),
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
