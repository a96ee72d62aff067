"""optimize_db killed at every step: the next run completes what was begun and leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from django.core.management import call_command
from django.db import connection
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.timezone import now

from monitoring.optimize.output import faults
from monitoring.optimize.plan import make_plan
from monitoring.optimize.run import ADVISORY_LOCK, APPLICATION_NAME
from monitoring.optimize.state import State, actual_state, declared_state
from registry.db.partitions import partitions_make, read_partitions

# Other processes see what is committed only, so a connection of its own does everything here; the
# mark is for the test database.
pytestmark = [
    pytest.mark.django_db,
    pytest.mark.timeout(300),
    pytest.mark.xdist_group("optimize_killed"),
]

ROOT = Path(__file__).parents[3]
NEVER = -1

# Each kind of change that a plan can hold, and what has to be broken for it.
DAMAGES = {
    "missing index": ["DROP INDEX idx_users_tenant_role"],
    "missing index of a partitioned table": ["DROP INDEX idx_audit_logs_tenant_time"],
    "different index": [
        "DROP INDEX idx_server_tools_name_server",
        "CREATE INDEX idx_server_tools_name_server ON server_tools (name)",
    ],
    "different index of a partitioned table": [
        "DROP INDEX idx_audit_logs_tenant_time",
        "CREATE INDEX idx_audit_logs_tenant_time ON audit_logs (timestamp)",
    ],
    "renamed index": ["ALTER INDEX idx_users_tenant_role RENAME TO by_hand"],
    "leftover of a build": ["CREATE INDEX idx_users_tenant_role_ccnew ON users (tenant_id)"],
    "missing constraint": ["ALTER TABLE tenants DROP CONSTRAINT uq_tenants_slug"],
    "different constraint": [
        "ALTER TABLE tenants DROP CONSTRAINT uq_tenants_slug",
        "CREATE UNIQUE INDEX uq_tenants_slug ON tenants (slug, name)",
    ],
    "invalid constraint": [
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'uq_tenants_slug'::regclass"
    ],
    "function, trigger, view, materialised view and statistics": [
        "CREATE OR REPLACE FUNCTION resolve_tenant(tenant text) RETURNS uuid"
        " LANGUAGE sql AS 'SELECT NULL::uuid'",
        "DROP TRIGGER gateway_server_defaults ON mcp_servers",
        "DROP VIEW performance_monitoring",
        "DROP MATERIALIZED VIEW tool_leaderboard",
        "SELECT pg_stat_reset_single_table_counters('tenants'::regclass)",
    ],
}
# A statement that is at work when the kill comes, and the table whose writer it waits for.
WAITS = {
    "CREATE INDEX CONCURRENTLY": ("missing index", "users"),
    "CREATE INDEX CONCURRENTLY of a partition": ("missing index of a partitioned table", None),
    "DROP INDEX CONCURRENTLY": ("leftover of a build", "users"),
    "REINDEX INDEX CONCURRENTLY": ("invalid constraint", "tenants"),
}


@pytest.fixture(scope="module")
def own(django_db_setup: None, django_db_blocker: Any) -> Iterator[BaseDatabaseWrapper]:
    """The schema is as declared before and after; no row of anybody else's is changed."""
    with django_db_blocker.unblock():
        call_command("optimize_db", "--json", stdout=StringIO())
        own = connection.copy()
        for partition in read_partitions(own, "audit_logs")[1:]:  # two stand for many
            if not partition.span.since <= now() < partition.span.until:
                execute(own, f"DROP TABLE {partition.name}")
        yield own
        partitions_make(at=now(), tables=["audit_logs"])
        call_command("optimize_db", "--check", stdout=StringIO())
        for table in ("optimize_runs", "declared_indexes", "audit_logs"):
            execute(own, f"TRUNCATE {table}")
        own.close()


@pytest.fixture(scope="module")
def declared(own: BaseDatabaseWrapper, django_db_blocker: Any) -> State:
    with django_db_blocker.unblock():
        return declared_state(own)


@dataclass
class Driver:
    """The process of tests/doomed.py."""

    process: subprocess.Popen[str]

    def _say(self, step: int) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{step}\n")
        self.process.stdin.flush()

    def answer(self) -> int:
        assert self.process.stdout
        return int(self.process.stdout.readline())

    def optimize(self, *, killed_at: int = NEVER) -> int:
        """Exit status of a whole run, or of one that dies after that statement."""
        with self.optimizing(killed_at=killed_at):
            pass
        return self.answer()

    @contextmanager
    def optimizing(self, *, killed_at: int = NEVER) -> Iterator[int]:
        """The process id of a run at work."""
        self._say(killed_at)
        yield self.answer()


@pytest.fixture(scope="module")
def driver(own: BaseDatabaseWrapper) -> Iterator[Driver]:
    name = quote(str(own.settings_dict["NAME"]), safe="")
    url = urlsplit(os.environ["DATABASE_URL"])._replace(path=f"/{name}").geturl()
    with subprocess.Popen(
        [sys.executable, "-m", "tests.doomed"],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": url},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        yield Driver(process)
        assert process.stdin
        process.stdin.close()


def execute(own: BaseDatabaseWrapper, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with own.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        return cursor.fetchall() if cursor.description else []


def damage(own: BaseDatabaseWrapper, kind: str) -> None:
    for statement in DAMAGES[kind]:
        execute(own, statement)


def assert_whole(own: BaseDatabaseWrapper, declared: State, after: str) -> None:
    actual = actual_state(own)
    assert faults(make_plan(declared=declared, actual=actual)) == [], after
    invalid = "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"
    assert execute(own, invalid) == [], after
    leftovers = r"SELECT relname FROM pg_class WHERE relname ~ '_cc(new|old)\d*$'"
    assert execute(own, leftovers) == [], after
    leaves = [leaf for table in actual.tables.values() for leaf in table.leaves]
    strays = [index.name for leaf in leaves for index in leaf.indexes if not index.parent]
    assert strays == [], f"{after}: a partition has an index that is not part of its table's"
    assert execute(own, "SELECT id FROM optimize_runs WHERE outcome = 'running'") == [], after
    assert sessions(own) == 0, after


def sessions(own: BaseDatabaseWrapper) -> int:
    """Sessions of optimize_db, and its locks, once those that end have ended."""
    for _ in range(100):
        ((found,),) = execute(
            own,
            "SELECT (SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
            "        AND datname = current_database())"
            " + (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid::bigint = %s)",
            APPLICATION_NAME,
            ADVISORY_LOCK & 0xFFFFFFFF,
        )
        if not found:
            break
        time.sleep(0.05)
    return int(found)


@pytest.mark.parametrize("kind", DAMAGES)
def test_killed_after_any_statement(
    own: BaseDatabaseWrapper, declared: State, driver: Driver, kind: str
) -> None:
    """Before it is on record; what the next statement finds on record is the same for the plan."""
    for step in count():
        damage(own, kind)
        status = driver.optimize(killed_at=step)
        if status == 0:
            break
        after = f"{kind}, killed after statement {step}"
        assert status == -signal.SIGKILL, after
        assert driver.optimize() == 0, after
        assert_whole(own, declared, after)
    assert step > 0, "nothing was killed"


@pytest.mark.parametrize("statement", WAITS)
def test_killed_while_a_statement_is_at_work(
    own: BaseDatabaseWrapper, declared: State, driver: Driver, statement: str
) -> None:
    """Its session notices by itself that nobody waits for it any more, and gives its lock back."""
    kind, table = WAITS[statement]
    damage(own, kind)
    holder = own.copy()
    holder.set_autocommit(False)
    # As any open UPDATE does.
    execute(holder, f"LOCK TABLE {table or last_partition(own)} IN ROW EXCLUSIVE MODE")
    with driver.optimizing() as process:
        wait_until_waiting(own, statement.removesuffix(" of a partition"))
        os.kill(process, signal.SIGKILL)
    assert driver.answer() == -signal.SIGKILL
    assert sessions(own) == 0, "the killed run's session is still there"
    holder.rollback()
    holder.close()
    assert driver.optimize() == 0
    assert_whole(own, declared, statement)


def last_partition(own: BaseDatabaseWrapper) -> str:
    ((name,),) = execute(
        own,
        "SELECT max(inhrelid::regclass::text) FROM pg_inherits"
        " WHERE inhparent = 'audit_logs'::regclass",
    )
    return str(name)


def wait_until_waiting(own: BaseDatabaseWrapper, statement: str) -> None:
    for _ in range(400):
        if execute(
            own,
            "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND query LIKE %s"
            " AND wait_event_type = 'Lock'",
            APPLICATION_NAME,
            f"{statement}%",
        ):
            return
        time.sleep(0.05)
    raise AssertionError(f"{statement} was never seen to wait")
