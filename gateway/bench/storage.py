"""What each storage parameter gains: `python -m gateway.bench.storage`.

In a scratch database: minutes of what the gateway writes all day long, by the program's own
functions, first with all the parameters that were thought of, then with full pages (fillfactor
100), then with autovacuum's defaults. Autovacuum itself is off meanwhile, and its rule is applied
after each minute, as it looks once a minute: so its runs can be counted, and the arms do the same
work. See Note [Others on the server] for what makes a share of HOT updates worthless.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, LiteralString
from uuid import UUID

import django
import psycopg
from psycopg import sql

from monitoring.storage import DELTAS

__all__ = ["ARMS", "Figures", "main", "measure"]

Connection = psycopg.Connection[Any]
Parameters = Mapping[str, float]

# Tables whose rows are updated, or come and go, all day long. What pays is declared as STORAGE.
CANDIDATES: dict[str, Parameters] = {
    **{
        table: {"fillfactor": fillfactor, "autovacuum_vacuum_scale_factor": 0.05}
        for fillfactor, tables in {
            50: ("circuit_breakers", "connection_pools", "request_queues", "gateway_processes"),
            70: ("request_rollups",),
            80: (
                "enhanced_api_keys",
                "server_access_control",
                "sessions",
                "mcp_servers",
                "server_tools",
                "request_usage",
                "request_users",
            ),
        }.items()
        for table in tables
    },
    "periodic_tasks": {"fillfactor": 50},
    "metric_snapshots": {"fillfactor": 80},
    "request_rollup_deltas": DELTAS,
    "request_usage_deltas": DELTAS,
    "request_user_deltas": DELTAS,
}
# What each arm leaves out, by how the parameters' names begin.
ARMS: dict[str, tuple[str, ...]] = {
    "all": (),
    "full pages": ("fillfactor",),
    "default vacuum": ("autovacuum_",),
}
# Autovacuum's own settings, which a table's parameters replace.
USUAL = {
    "autovacuum_vacuum_threshold": 50,
    "autovacuum_vacuum_scale_factor": 0.2,
    "autovacuum_vacuum_insert_threshold": 1000,
    "autovacuum_vacuum_insert_scale_factor": 0.2,
    "autovacuum_analyze_threshold": 50,
    "autovacuum_analyze_scale_factor": 0.1,
    "autovacuum_vacuum_cost_delay": 2,
}
# What begins empty in each arm, as it grows: a longer ANALYZE of a log would keep more dead rows.
GROWING = (
    "request_logs",
    "server_metrics",
    "metric_snapshots",
    "request_rollups",
    "request_usage",
    "request_users",
    "request_rollup_deltas",
    "request_usage_deltas",
    "request_user_deltas",
)
BUSY_UPSTREAMS, BUSY_BREAKERS, BUSY_KEYS, BUSY_TOOLS, BUSY_SESSIONS = 50, 50, 200, 300, 300
SERVERS_CHECKED = 1_000
SUBJECTS = 200  # of metrics that alerts look at
CALLS = 300  # a batch of the log writer
BATCHES = 10  # a minute; each is followed by a step of the compaction


@dataclass(slots=True)
class Figures:
    """One table in one arm.

    Updates are those of the second half: pages that were full have got by then what air they get
    by themselves. Bytes are those of the end.
    """

    updates: int = 0
    hot_updates: int = 0
    heap_bytes: int = 0
    index_bytes: int = 0
    vacuums: int = 0
    vacuum_seconds: float = 0.0
    analyzes: int = 0
    analyze_seconds: float = 0.0
    dead: list[int] = field(default_factory=list)  # rows, at the end of each minute

    @property
    def hot_share(self) -> float | None:
        return self.hot_updates / self.updates if self.updates else None

    @property
    def mean_dead(self) -> float:
        return sum(self.dead) / max(1, len(self.dead))


# --------------------------------------------------------------------------- arms


def measure(
    connection: Connection, *, minutes: int, at: datetime
) -> Iterator[tuple[str, dict[str, Figures]]]:
    """Each arm and its tables, over the rows of the default database; all is as declared after."""
    from registry.db.storage import storages

    declared = {storage.table: storage.parameters for storage in storages()}
    try:
        for arm, left_out in ARMS.items():
            changed = {table: _without(given, left_out) for table, given in CANDIDATES.items()}
            _prepare(connection, changed)
            # From an hour's beginning: two hours' buckets would make more rows than one's.
            at = at.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
            yield arm, _run(connection, changed, minutes=minutes, at=at)
    finally:
        for table in CANDIDATES:
            _set(connection, table, declared.get(table, {}))


def _without(given: Parameters, left_out: tuple[str, ...]) -> Parameters:
    return {name: value for name, value in given.items() if not name.startswith(left_out)}


def _set(connection: Connection, table: str, parameters: Parameters) -> None:
    from registry.db.storage import set_parameters

    found = connection.execute(
        "SELECT split_part(unnest(reloptions), '=', 1) FROM pg_class WHERE oid = %s::regclass",
        [table],
    ).fetchall()
    if found:
        names = sql.SQL(", ").join([sql.Identifier(name) for (name,) in found])
        reset = sql.SQL("ALTER TABLE {} RESET ({})")
        connection.execute(reset.format(sql.Identifier(table), names))
    if parameters:
        connection.execute(set_parameters(table, parameters))


def _prepare(connection: Connection, arm: Mapping[str, Parameters]) -> None:
    """The same rows on pages as the arm has them."""
    for table in GROWING:
        connection.execute(sql.SQL("TRUNCATE {}").format(sql.Identifier(table)))
    for table, parameters in arm.items():
        _set(connection, table, {**parameters, "autovacuum_enabled": 0})
        name = sql.Identifier(table)
        connection.execute(sql.SQL("VACUUM (FULL, ANALYZE) {}").format(name))


def _run(
    connection: Connection, arm: Mapping[str, Parameters], *, minutes: int, at: datetime
) -> dict[str, Figures]:
    found, before = {table: Figures() for table in arm}, dict[str, dict[str, Any]]()
    traffic = _Traffic()
    for minute in range(minutes):
        if minute == minutes // 2:
            before = {table: _counted(connection, table) for table in arm}
        traffic.minute(at + timedelta(minutes=minute))
        for table, parameters in arm.items():
            _clean_if_due(connection, table, parameters, found[table])
    for table, figures in found.items():
        now = _counted(connection, table)
        figures.updates = now["updates"] - before[table]["updates"]
        figures.hot_updates = now["hot"] - before[table]["hot"]
        figures.heap_bytes, figures.index_bytes = now["heap"], now["indexes"]
    return found


_COUNTED = """
SELECT s.n_tup_upd, s.n_tup_hot_upd, s.n_dead_tup, s.n_ins_since_vacuum, s.n_mod_since_analyze,
       greatest(0, c.reltuples)::float8, pg_relation_size(c.oid), pg_indexes_size(c.oid)
  FROM pg_class AS c JOIN pg_stat_user_tables AS s ON s.relid = c.oid
 WHERE c.oid = %s::regclass
"""
_NAMES = ("updates", "hot", "dead", "inserted", "changed", "tuples", "heap", "indexes")


def _counted(connection: Connection, table: str) -> dict[str, Any]:
    row = connection.execute(_COUNTED, [table]).fetchone()
    if row is None:
        raise LookupError(f"{table} is declared to have storage parameters and is no table.")
    return dict(zip(_NAMES, row, strict=True))


def _clean_if_due(
    connection: Connection, table: str, parameters: Parameters, figures: Figures
) -> None:
    """What autovacuum would do. Source: PostgreSQL 18, 24.1.6 The Autovacuum Daemon."""
    now = _counted(connection, table)
    figures.dead.append(now["dead"])
    rule = {**USUAL, **parameters}

    def is_due(rows: str, kind: str) -> bool:
        share = rule[f"autovacuum_{kind}_scale_factor"] * now["tuples"]
        return bool(now[rows] > rule[f"autovacuum_{kind}_threshold"] + share)

    if is_due("dead", "vacuum") or is_due("inserted", "vacuum_insert"):
        delay = rule["autovacuum_vacuum_cost_delay"]
        connection.execute("SELECT set_config('vacuum_cost_delay', %s, false)", [str(delay)])
        figures.vacuum_seconds += _timed(connection, "VACUUM {}", table)
        figures.vacuums += 1
    if is_due("changed", "analyze"):
        figures.analyze_seconds += _timed(connection, "ANALYZE {}", table)
        figures.analyzes += 1


def _timed(connection: Connection, statement: LiteralString, table: str) -> float:
    began = time.perf_counter()
    connection.execute(sql.SQL(statement).format(sql.Identifier(table)))
    return time.perf_counter() - began


# --------------------------------------------------------------------------- traffic


class _Traffic:
    """What the gateway writes in a minute, about the busiest rows of those that there are."""

    def __init__(self) -> None:
        from gateway.jobs import PERIODIC
        from gateway.models import CircuitBreaker
        from registry.models import MCPServer, ServerTool
        from security.models import EnhancedAPIKey, ServerAccessControl, Session, User

        def ids(model: Any, count: int) -> list[UUID]:
            return list(model.objects.order_by("id").values_list("id", flat=True)[:count])

        self._servers = ids(MCPServer, SERVERS_CHECKED)
        self._breakers = ids(CircuitBreaker, BUSY_BREAKERS)
        self._keys = ids(EnhancedAPIKey, BUSY_KEYS)
        self._rules = ids(ServerAccessControl, BUSY_KEYS)
        self._sessions, self._users = ids(Session, BUSY_SESSIONS), ids(User, BUSY_SESSIONS)
        tools = ServerTool.objects.order_by("id").values_list("server_id", "name")
        self._tools = list(tools[:BUSY_TOOLS])
        self._tasks = [replace(task, run=_nothing) for task in PERIODIC.values()]
        self._chance = random.Random(42)  # noqa: S311  (the same in every arm)

    def minute(self, at: datetime) -> None:
        from django.db import connection

        for half in (at, at + timedelta(seconds=30)):
            self._check_health(half)
            self._watch_metrics(half)
            self._run_tasks(half)
        self._fail_and_recover(at)
        self._browse(at)
        for batch in range(BATCHES):
            self._call(at + timedelta(seconds=60 / BATCHES * batch))
        asyncio.run(self._flush(at))
        with connection.cursor() as cursor:  # for the figures of this minute to be seen at its end
            cursor.execute("SELECT pg_stat_force_next_flush()")
        connection.close()

    def _check_health(self, at: datetime) -> None:
        from registry import health
        from registry.models import HealthStatus

        checked = [
            health.Checked(
                server_id=server,
                status=HealthStatus.HEALTHY,
                response_time_ms=self._chance.lognormvariate(3, 0.5),
            )
            for server in self._servers
        ]
        health.record(checked, at=at)

    def _watch_metrics(self, at: datetime) -> None:
        from monitoring.alerts.figures import Extremes
        from monitoring.alerts.history import history_keep

        values = [self._chance.gauss(50, 10) for _ in range(SUBJECTS)]
        history_keep(
            [Extremes("error_rate", f"server-{i}", *[value] * 2) for i, value in enumerate(values)],
            at=at,
        )

    def _run_tasks(self, at: datetime) -> None:
        from monitoring.schedule import task_start, tasks_claim, tasks_sync

        tasks_sync(self._tasks, at=at)
        known = {task.name: task for task in self._tasks}
        for claim in tasks_claim(self._tasks, at=at, by="benchmark"):
            task_start(known[claim.name], claim, at=at)

    def _fail_and_recover(self, at: datetime) -> None:
        from gateway.services import breaker_record_failure, breaker_record_success

        for breaker in self._breakers:
            told: dict[str, Any] = {"breaker_id": breaker, "at": at, "probe_until": None}
            breaker_record_failure(**told, healthy_calls=10)
            breaker_record_success(**told, healthy_calls=1)

    def _browse(self, at: datetime) -> None:
        """As security.sessions notes once a minute that a session is in use."""
        from security.models import Session
        from security.sessions import ACTIVITY_STEP

        for session in self._sessions:
            idle = Session.objects.filter(pk=session, last_activity__lte=at - ACTIVITY_STEP)
            idle.update(last_activity=at, updated_at=at)

    def _call(self, at: datetime) -> None:
        """A batch of the log, whose trigger writes deltas, and the worker's next step."""
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute(_CALLS, {"at": at, "users": self._users, "calls": CALLS})
            cursor.execute("SELECT request_rollups_compact(50000)")

    async def _flush(self, at: datetime) -> None:
        from gateway.proxy.gauges import Gauges
        from gateway.proxy.plane import GAUGE_SECONDS, USAGE_SECONDS
        from gateway.proxy.usage import Usage
        from registry.db.pool import async_pool

        usage, gauges = Usage(), Gauges()
        gauges.name = "benchmark"
        async with async_pool(max_size=1, timeout=30) as pool:
            for _ in range(int(60 / USAGE_SECONDS)):
                for sums, rows in ((usage.keys, self._keys), (usage.rules, self._rules)):
                    for row in rows:
                        sums[row].add(at=at, failed=False)
                await usage.flush(pool)
            for server, name in self._tools:
                usage.count_tool(server, name, at=at, failed=False, milliseconds=20.0)
            await usage.flush_tools(pool, at_last=True)
            await self._gauge(pool, gauges, int(60 / GAUGE_SECONDS))
            async with pool.connection() as own:
                await own.execute("SELECT pg_stat_force_next_flush()")

    async def _gauge(self, pool: Any, gauges: Any, times: int) -> None:
        from gateway.proxy.route import find_route
        from gateway.proxy.upstream import Upstream
        from monitoring.logwriter import Backlog

        async with pool.connection() as own:
            routes = [
                await find_route(own, server_id=id_) for id_ in self._servers[:BUSY_UPSTREAMS]
            ]
        upstreams = [Upstream(route) for route in routes if route is not None]
        for number in range(times):
            for upstream in upstreams:
                upstream.created = upstream.gate.processed = number
            await gauges.write(pool, upstreams, Backlog(number, 0, 0))
        for upstream in upstreams:
            await upstream.close()


def _nothing(**_: Any) -> int:
    return 0


_CALLS = """
INSERT INTO request_logs (
    id, request_time, request_id, tenant_id, user_id, method, path, rpc_method, tool_name,
    target_server_id, status_code, duration_ms, request_size_bytes, response_size_bytes,
    error_type, error_message, protocol_version, request_metadata)
SELECT gen_random_uuid(), %(at)s, gen_random_uuid(), s.tenant_id,
       (%(users)s::uuid[])[1 + floor(random() * cardinality(%(users)s::uuid[]))::int], 'POST',
       '/mcp/' || s.slug, 'tools/call', t.name, s.id, 200, exp(3 + random()), 200, 800, '', '',
       '2025-11-25', '{}'
  FROM server_tools AS t JOIN mcp_servers AS s ON s.id = t.server_id
 ORDER BY hashtext(t.id::text || %(at)s::text) LIMIT %(calls)s
"""


# --------------------------------------------------------------------------- the command


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=int, default=20, help="Of traffic, an arm.")
    parser.add_argument("--servers", type=int, default=3_000)
    parser.add_argument(
        "--expert", action="store_true", help="Without the indexes that INDEX_PROFILE=expert drops."
    )
    options = parser.parse_args(arguments)
    if options.minutes < 2:
        parser.error("--minutes takes 2 or more: the first half settles the pages.")
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway.settings")
    django.setup()
    from django.utils.timezone import now

    from gateway.bench.fill import Sizes
    from gateway.bench.run import Steps, filled
    from registry.db.catalogue import left_out
    from registry.db.circumstances import one_line
    from registry.db.scratch import connect, migrated_database

    sizes = Sizes(1_000, options.servers)
    with migrated_database(bytes_needed=sizes.bytes_needed), connect() as connection:
        _say(f"{one_line(connection)}; {sizes.servers:,} servers, {options.minutes} minutes an arm")
        filled(connection, sizes=sizes, at=now(), steps=Steps())
        if options.expert:
            for index in left_out("expert"):
                connection.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(index)))
        for arm, tables in measure(connection, minutes=options.minutes, at=now()):
            _say(
                f"\n{arm:<22} updates    HOT  heap kB index kB    dead  vacuums (ms) analyzes (ms)"
            )
            for table, figures in tables.items():
                _say(_line(table, figures))


def _line(table: str, figures: Figures) -> str:
    share = figures.hot_share
    hot = "     -" if share is None else f"{share:6.1%}"
    return (
        f"{table:<22} {figures.updates:7} {hot} {figures.heap_bytes // 1024:8}"
        f" {figures.index_bytes // 1024:8} {figures.mean_dead:7.0f}"
        f" {figures.vacuums:4} ({figures.vacuum_seconds * 1000:.0f})"
        f" {figures.analyzes:4} ({figures.analyze_seconds * 1000:.0f})"
    )


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
