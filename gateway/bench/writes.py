"""Writing: what the indexes cost, in rows a second, WAL, HOT updates, bytes and build time."""

from __future__ import annotations

import io
import json
import re
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql

from gateway.bench.arms import ARMS, BARE, DJANGO, OPTIMISED, Arm, columns, enter, tables

__all__ = [
    "UPDATES",
    "Copied",
    "Size",
    "Update",
    "Updated",
    "copy_rates",
    "sizes_of",
    "update_cost",
    "update_costs",
    "wal_and_time",
]

Connection = psycopg.Connection[Any]
LOG = "request_logs"
TIME, OWN_IDS = "request_time", ("id", "request_id")
ORDER = (BARE, DJANGO, OPTIMISED, DJANGO, BARE, OPTIMISED)
COPIES = 2  # batches a turn; the faster one counts, so that a pause of others does not
BUSY_ROWS, ROWS_A_ROUND = 400, 20
WARM_ROUNDS, ROUNDS = 40, 40


@dataclass(frozen=True, slots=True)
class Copied:
    """COPY into the request log, without the commit; the WAL is an INSERT's of the same rows."""

    rows_per_second: float
    wal_bytes_per_row: float


@dataclass(frozen=True, slots=True)
class Updated:
    """One kind of update: the share that needed no new index entries, and its WAL.

    See Note [Others on the server] for the last figure.
    """

    title: str
    rows: int
    hot_share: float
    wal_bytes_per_row: float
    others_open_seconds: float


@dataclass(frozen=True, slots=True)
class Size:
    table: str
    rows: int
    table_bytes: int
    index_bytes: int


# --------------------------------------------------------------------------- rows a second


def copy_rates(connection: Connection, *, rows: int, at: datetime) -> dict[str, Copied]:
    """Each arm's rate for a batch of new rows; every transaction is rolled back."""
    enter(connection, OPTIMISED)
    names = _stage(connection, rows=rows, at=at)
    batch = _batch(connection, names)
    rates: dict[str, list[float]] = {arm.name: [] for arm in ARMS}
    for arm in ORDER:
        enter(connection, arm)
        rates[arm.name] += [rows / _copy(connection, names, batch) for _ in range(COPIES)]
    return {
        arm.name: Copied(max(rates[arm.name]), _wal_of_insert(connection, arm, names) / rows)
        for arm in ARMS
    }


def _stage(connection: Connection, *, rows: int, at: datetime) -> list[str]:
    """Rows of the log once more, as if they were made now; the names of their columns."""
    names = list(columns(tables()[LOG]))
    made: dict[str, sql.Composable] = {
        TIME: sql.SQL("{} - interval '1 ms' * ({} - n)").format(at, rows),
        **{
            name: sql.SQL("bench.uuid7({} + n, {} || n)").format(
                int(at.timestamp() * 1000) - rows, name
            )
            for name in OWN_IDS
        },
    }
    values = [made.get(name, sql.Identifier(name)) for name in names]
    connection.execute(
        sql.SQL(
            "CREATE TABLE bench.staged AS SELECT {} FROM (SELECT *, row_number() OVER () AS n"
            " FROM {} LIMIT {}) AS old"
        ).format(
            sql.SQL(", ").join(
                sql.SQL("{} AS {}").format(value, sql.Identifier(name))
                for name, value in zip(names, values, strict=True)
            ),
            sql.Identifier(LOG),
            rows,
        )
    )
    return names


def _listed(names: list[str]) -> sql.Composed:
    return sql.SQL(", ").join([sql.Identifier(name) for name in names])


def _batch(connection: Connection, names: list[str]) -> bytes:
    kept = io.BytesIO()
    statement = sql.SQL("COPY (SELECT {} FROM bench.staged) TO STDOUT").format(_listed(names))
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        for piece in copy:
            kept.write(piece)
    return kept.getvalue()


def _copy(connection: Connection, names: list[str], batch: bytes) -> float:
    """Seconds of one COPY."""
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(LOG), _listed(names))
    with connection.transaction(force_rollback=True), connection.cursor() as cursor:
        began = time.perf_counter()
        with cursor.copy(statement) as copy:
            copy.write(batch)
        return time.perf_counter() - began


def _wal_of_insert(connection: Connection, arm: Arm, names: list[str]) -> int:
    """Bytes of one INSERT's own WAL: other sessions of the server do not count into it."""
    enter(connection, arm)
    statement = sql.SQL("INSERT INTO {} ({names}) SELECT {names} FROM bench.staged").format(
        sql.Identifier(LOG), names=_listed(names)
    )
    with connection.transaction(force_rollback=True):
        return wal_and_time(connection, statement)[0]


def wal_and_time(
    connection: Connection, statement: sql.Composable, parameters: Any = None
) -> tuple[int, float]:
    """A statement's own WAL in bytes, and its milliseconds of execution."""
    cursor = psycopg.ClientCursor(connection)
    options = sql.SQL("EXPLAIN (ANALYZE, WAL, TIMING OFF, SUMMARY, FORMAT JSON) {}")
    cursor.execute(options.format(statement), parameters)
    found = (cursor.fetchone() or [""])[0]
    (document,) = json.loads(found) if isinstance(found, str) else found
    return int(document["Plan"]["WAL Bytes"]), float(document["Execution Time"])


# --------------------------------------------------------------------------- updates


@dataclass(frozen=True, slots=True)
class Update:
    """What changes all day long; values differ from round to round."""

    title: str
    table: str
    change: str

    @property
    def columns(self) -> frozenset[str]:
        return frozenset(re.findall(r"(\w+) = ", self.change))


UPDATES = (
    Update(
        "a health check's result",
        "mcp_servers",
        "last_health_check = clock_timestamp(), avg_response_time = avg_response_time * 1.01,"
        " updated_at = clock_timestamp()",
    ),
    Update(
        "a tool's counters",
        "server_tools",
        "total_calls = total_calls + 3, success_count = success_count + 3,"
        " last_used_at = clock_timestamp()",
    ),
    Update(
        "a session's last activity",
        "sessions",
        "last_activity = clock_timestamp(), updated_at = clock_timestamp()",
    ),
    Update(
        "a key's counters",
        "enhanced_api_keys",
        "total_requests = total_requests + 3, last_used = clock_timestamp()",
    ),
    Update(
        "a breaker's counters",
        "circuit_breakers",
        "failure_count = failure_count + 1, last_failure_time = clock_timestamp()",
    ),
)


def update_costs(connection: Connection) -> dict[str, list[Updated]]:
    """Each arm's updates of the same rows, committed in rounds of a few, as traffic makes them.

    The first rounds are not counted: a page that was filled to the brim has to get some air first.
    """
    connection.execute("SET synchronous_commit = off")
    found: dict[str, list[Updated]] = {}
    for arm in ARMS:
        enter(connection, arm)
        found[arm.name] = [update_cost(connection, arm, update) for update in UPDATES]
    connection.execute("RESET synchronous_commit")
    return found


def update_cost(connection: Connection, arm: Arm, update: Update) -> Updated:
    """Rounds over the busiest rows: everything's traffic concentrates on a few."""
    rounds = [
        sql.SQL(
            "UPDATE {table} SET {change} WHERE id IN (SELECT id FROM (SELECT id FROM {table}"
            " ORDER BY id LIMIT {busy}) AS busy ORDER BY hashtext(id::text || {round}) LIMIT {few})"
        ).format(
            table=sql.Identifier(update.table),
            change=sql.SQL(update.change),
            busy=BUSY_ROWS,
            round=str(number),
            few=ROWS_A_ROUND,
        )
        for number in range(WARM_ROUNDS + ROUNDS)
    ]
    for statement in rounds[:WARM_ROUNDS]:
        connection.execute(statement)
    rows, hot, wal = 0, 0, 0
    for statement in rounds[WARM_ROUNDS:]:
        with connection.transaction():
            before = _counted(connection, arm, update.table)
            wal += wal_and_time(connection, statement)[0]
            after = _counted(connection, arm, update.table)
        rows, hot = rows + after[0] - before[0], hot + after[1] - before[1]
    others = _others_open(connection)
    return Updated(update.title, rows, hot / max(1, rows), wal / max(1, rows), others)


# Note [Others on the server]
# Row versions that nobody can see any more are cleared away only when PostgreSQL looks how far
# back anybody could see, and it does not look again before the oldest writing transaction of the
# whole server has ended, in whatever database (RecentXmin, procarray.c). While one stays open,
# pages stay full and few updates are HOT, in all arms alike: so its age is told beside the share.


def _others_open(connection: Connection) -> float:
    """Seconds for which the oldest transaction of another session has been open."""
    found = connection.execute(
        "SELECT coalesce(max(extract(epoch FROM now() - xact_start)), 0)::float8"
        " FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        " AND (backend_xid IS NOT NULL"
        "      OR backend_xmin IS NOT NULL AND datname = current_database())"
    ).fetchone()
    return float(found[0]) if found else 0.0


def _counted(connection: Connection, arm: Arm, table: str) -> tuple[int, int]:
    """Updated rows, and those of them that were HOT, that this session has not reported yet."""
    found = connection.execute(
        "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_xact_user_tables"
        " WHERE schemaname = %s AND relname = %s",
        [arm.schema, table],
    ).fetchone()
    return (int(found[0]), int(found[1])) if found else (0, 0)


# --------------------------------------------------------------------------- bytes

_SIZES = """
    SELECT t.relname, sum(greatest(0, leaf.reltuples))::bigint,
           sum(pg_table_size(leaf.oid))::bigint, sum(pg_indexes_size(leaf.oid))::bigint
      FROM pg_class AS t
      CROSS JOIN LATERAL (SELECT t.oid AS relid WHERE t.relkind = 'r'
                          UNION ALL SELECT p.relid FROM pg_partition_tree(t.oid) AS p
                           WHERE p.isleaf AND t.relkind = 'p') AS part
      JOIN pg_class AS leaf ON leaf.oid = part.relid
     WHERE t.relnamespace = to_regnamespace(%s) AND t.relname = ANY (%s)
     GROUP BY t.relname ORDER BY 3 DESC, 1
"""


def sizes_of(connection: Connection, arm: Arm) -> list[Size]:
    """Rows and bytes of an arm's tables, the largest first; partitions count as their parent."""
    rows = connection.execute(_SIZES, [arm.schema, list(tables())]).fetchall()
    return [Size(*row) for row in rows]
