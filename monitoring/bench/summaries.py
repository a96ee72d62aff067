"""What the summaries cost on a large log, and what keeping the rollups costs its writers.

    python -m monitoring.bench.summaries --rows 10000000

Makes a scratch database on DATABASE_URL's server (a role that may CREATE DATABASE), fills a month
of calls of 200 tenants with Zipf shares, prints medians in milliseconds, and drops the database.
Each query is asked across tenants, and what a tenant may ask walled in to the largest and to a
median one as well: the transaction's role and tenant are set before the clock starts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import django
import psycopg
from psycopg import sql

__all__ = ["main"]

DAYS = 30
STEP = 100_000  # rows an INSERT
REPEATS = 15
TENANTS = 200

_CAST = """
CREATE TEMPORARY TABLE cast_of_calls AS
SELECT array_agg(id ORDER BY place) AS ids, array_agg(up_to::float8 ORDER BY place) AS shares,
       (SELECT array_agg(gen_random_uuid()) FROM generate_series(1, 60)) AS servers,
       (SELECT array_agg(gen_random_uuid()) FROM generate_series(1, 4000)) AS people
  FROM (SELECT t.id, t.place, sum(1.0 / t.place) OVER (ORDER BY t.place)
                              / sum(1.0 / t.place) OVER () AS up_to
          FROM (SELECT id, row_number() OVER (ORDER BY id) AS place FROM tenants
                 WHERE slug LIKE 'bench-%') AS t) AS ranked
"""
# Twenty users a tenant; each tenant calls a few of the servers, and each server has eight tools.
_FILL = """
INSERT INTO request_logs (
    id, request_time, request_id, tenant_id, user_id, method, path, rpc_method, tool_name,
    target_server_id, status_code, duration_ms, request_size_bytes, response_size_bytes,
    error_type, error_message, protocol_version, request_metadata)
SELECT ordered_id, at, ordered_id, ids[t], people[20 * (t - 1) + 1 + floor(20 * u)::int], 'POST',
       '/mcp/server-' || s, 'tools/call',
       'tool_' || floor(8 * v * v), servers[s], CASE WHEN w < 0.97 THEN 200 ELSE 502 END,
       exp(4.2 + 0.9 * sqrt(-2 * ln(1 - u)) * cos(6.283185307 * v)), 140 + floor(700 * w),
       exp(7.2 + w), '', '', '2025-11-25', '{}'
  FROM cast_of_calls,
       LATERAL (SELECT i, %(since)s::timestamptz + i * %(apart)s::interval AS at, random() AS u,
                       random() AS v, random() AS w, random() AS x, random() AS y
                  FROM generate_series(%(first)s, %(last)s) AS i) AS dice,
       LATERAL (SELECT least(200, 1 + width_bucket(x, shares)) AS t) AS tenant,
       LATERAL (SELECT 1 + (t * 7 + floor(6 * y * y)::int) %% 60 AS s) AS server,
       -- Ids ordered by time, as those of the gateway are.
       LATERAL (SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7'
                        || lpad(to_hex((4095 * u)::int), 3, '0') || '8'
                        || lpad(to_hex(i + 0), 15, '0'))::uuid AS ordered_id) AS ids_of_calls
"""
_RAW = """
SELECT count(*), count(*) FILTER (WHERE status_code >= 400), avg(duration_ms),
       percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY duration_ms),
       max(duration_ms)
  FROM request_logs
 WHERE request_time >= statement_timestamp() - make_interval(hours => {hours})
   AND request_time < statement_timestamp()
"""
QUERIES = {
    "get_request_performance_summary(1)": "SELECT * FROM get_request_performance_summary(1)",
    "get_request_performance_summary(24)": "SELECT * FROM get_request_performance_summary(24)",
    "get_request_performance_summary(720)": "SELECT * FROM get_request_performance_summary(720)",
    "performance_monitoring": "SELECT * FROM performance_monitoring",
}
# What a tenant's own pages ask; of the tenants, the first calls most and the middle one little.
OF_TENANT = {
    "request_performance(%s, 24)": "SELECT * FROM request_performance(%(tenant)s, 24)",
    "request_performance(%s, 720)": "SELECT * FROM request_performance(%(tenant)s, 720)",
    "get_tenant_usage_summary(%s, 24)": (
        "SELECT * FROM get_tenant_usage_summary(%(tenant)s::text, 24)"
    ),
    "get_tenant_usage_summary(%s, 720)": (
        "SELECT * FROM get_tenant_usage_summary(%(tenant)s::text, 720)"
    ),
}
PLACES = {"largest": 1, "median": TENANTS // 2}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args(arguments)
    if not 1_000 <= options.rows <= 100_000_000:
        parser.error("--rows takes 1,000 to 100,000,000.")
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway.settings")
    django.setup()
    from django.utils.timezone import now

    from registry.db.partitions import partitions_make
    from registry.db.scratch import connect, migrated_database

    with migrated_database():
        # A month of daily partitions, as there are after a month of work.
        partitions_make(at=now(), tables=["request_logs"], back_to=now() - timedelta(days=DAYS + 1))
        with connect() as connection:
            _bench(connection, options.rows)


def _bench(connection: psycopg.Connection[Any], rows: int) -> None:
    from registry.db.circumstances import one_line
    from registry.db.tenancy import OPERATOR_ROLE

    _say(f"{one_line(connection)}; {rows:,} rows over {DAYS} days")
    _prepare(connection)
    _fill(connection, rows)
    _compact(connection)
    _sizes(connection)
    for statement in ("VACUUM (ANALYZE)", "CHECKPOINT"):
        connection.execute(statement)
    connection.execute(
        sql.SQL("SET ROLE {}").format(sql.Identifier(OPERATOR_ROLE))
    )  # as the gateway reads, and with its settings
    _reads(connection)
    connection.execute("RESET ROLE")
    _reads_of_tenants(connection)
    for batch in (20_000, 500):
        _writes(connection, batch)


def _prepare(connection: psycopg.Connection[Any]) -> None:
    connection.execute(
        "INSERT INTO tenants (id, name, slug, description, status, settings)"
        " SELECT ('00000000-0000-7000-8000-' || lpad(i::text, 12, '0'))::uuid, 'Bench ' || i,"
        " 'bench-' || i, '', 'active', '{}' FROM generate_series(1, %s) i",
        [TENANTS],
    )
    connection.execute(_CAST)


def _fill(connection: psycopg.Connection[Any], rows: int) -> None:
    began = time.perf_counter()
    # Some minutes past now, so that the log still ends after the measuring does.
    span = connection.execute(
        "SELECT now() - make_interval(days => %s), make_interval(secs => %s)",
        [DAYS, (DAYS * 86_400 + 1_800) / rows],
    ).fetchone()
    assert span is not None  # noqa: S101  (a SELECT without FROM has one row)
    for first in range(1, rows + 1, STEP):
        last = min(rows, first + STEP - 1)
        where = {"since": span[0], "apart": span[1], "first": first, "last": last}
        connection.execute(_FILL, where)
    seconds = time.perf_counter() - began
    _say(f"filled in {seconds:.0f} s ({rows / seconds:,.0f} rows/s, made inside the server)")


def _compact(connection: psycopg.Connection[Any]) -> None:
    began, moved = time.perf_counter(), 0
    while step := connection.execute("SELECT request_rollups_compact(50000)").fetchone():
        if not step[0]:
            break
        moved += step[0]
    seconds = time.perf_counter() - began
    _say(f"{moved:,} deltas moved in {seconds:.1f} s ({moved / max(seconds, 1e-9):,.0f}/s)")


def _sizes(connection: psycopg.Connection[Any]) -> None:
    for table in (
        "request_logs",
        "request_rollups",
        "request_usage",
        "request_users",
        "request_tool_days",
    ):
        found = connection.execute(
            sql.SQL(
                "SELECT (SELECT count(*) FROM {}), (SELECT pg_size_pretty(sum("
                "pg_total_relation_size(relid))) FROM pg_partition_tree({}))"
            ).format(sql.Identifier(table), sql.Literal(table))
        ).fetchone()
        if found and found[1] is None:  # not partitioned
            size = sql.SQL("SELECT pg_size_pretty(pg_total_relation_size({}))")
            plain = connection.execute(size.format(sql.Literal(table))).fetchone()
            found = (found[0], plain and plain[0])
        _say(f"  {table}: {found[0]:,} rows, {found[1]}" if found else table)


def _reads(connection: psycopg.Connection[Any]) -> None:
    _say("\nmilliseconds at the client: median (best); what the server says of one run")
    found = {name: _measure(connection, name, query) for name, query in QUERIES.items()}
    for hours, name in ((24, "(24)"), (720, "(720)")):
        raw = _measure(connection, f"raw percentiles{name}", _RAW.format(hours=hours), repeats=3)
        summary = found[f"get_request_performance_summary{name}"]
        _say(f"  the summary{name} takes {100 * (1 - summary / raw):.1f} % less")


def _reads_of_tenants(connection: psycopg.Connection[Any]) -> None:
    """The same question across tenants and as the application's role, walled in."""
    from registry.db.tenancy import enter_statement

    for place, number in PLACES.items():
        tenant = UUID(f"00000000-0000-7000-8000-{number:012}")
        for name, query in OF_TENANT.items():
            bound = psycopg.ClientCursor(connection).mogrify(query, {"tenant": tenant})
            for who, entered in (("across tenants", None), ("walled in", tenant)):
                with connection.transaction():
                    connection.execute(enter_statement(tenant_id=entered))
                    _measure(connection, f"{name % place}, {who}", bound)


def _measure(
    connection: psycopg.Connection[Any], name: str, query: str, *, repeats: int = REPEATS
) -> float:
    times = [_timed(lambda: connection.execute(query).fetchall()) for _ in range(repeats + 1)][1:]
    plan = connection.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {query}").fetchone()
    found = (plan or ["[]"])[0]
    (document,) = json.loads(found) if isinstance(found, str) else found
    top = document["Plan"]
    buffers = top["Shared Hit Blocks"] + top["Shared Read Blocks"]
    median = statistics.median(times)
    _say(
        f"  {name}: {median:.1f} ({min(times):.1f}), {buffers:,} buffers;"
        f" execution {document['Execution Time']:.1f}, planning {document['Planning Time']:.1f}"
    )
    return median


def _writes(connection: psycopg.Connection[Any], batch: int) -> None:
    """COPY of one batch by one writer, in turns: bare table, with indexes, with rollups too."""
    names = connection.execute(
        "SELECT array_agg(attname ORDER BY attnum) FROM pg_attribute"
        " WHERE attrelid = 'request_logs'::regclass AND attnum > 0 AND NOT attisdropped"
        " AND attname NOT IN ('id', 'request_time')"
    ).fetchone()
    columns = sql.SQL(", ").join(map(sql.Identifier, names[0] if names else ()))
    with connection.cursor() as cursor:
        # As if all came in now, a millisecond apart; the ids of the end are not taken yet.
        newest = sql.SQL(
            "COPY (SELECT overlay(id::text PLACING 'f' FROM 1)::uuid,"
            " now() - row_number() OVER () * interval '1 ms', {} FROM request_logs"
            " ORDER BY request_time DESC LIMIT {}) TO STDOUT"
        )
        with cursor.copy(newest.format(columns, batch)) as copy:
            data = b"".join(bytes(block) for block in copy)
        cursor.execute("CREATE TABLE IF NOT EXISTS bench_bare (LIKE request_logs)")
    copies = {
        table: sql.SQL("COPY {} (id, request_time, {}) FROM STDIN").format(
            sql.Identifier(table), columns
        )
        for table in ("bench_bare", "request_logs")
    }
    arms = (("bench_bare", False), ("request_logs", False), ("request_logs", True))
    times: dict[tuple[str, bool], list[float]] = {arm: [] for arm in arms}
    for _ in range(12 if batch > 1_000 else 100):
        for table, counted in arms:
            took = _copied(connection, copies[table], data, counted=counted)
            times[table, counted].append(took)
    bare, plain, full = (statistics.median(times[arm]) for arm in arms)
    _say(
        f"\nCOPY of {batch:,} rows, ms: bare {bare:.1f}, with indexes {plain:.1f}, with rollups"
        f" {full:.1f}: {1000 * (full - plain) / batch:.1f} µs a row for the rollups,"
        f" {batch / full * 1000:,.0f} rows/s, {bare / full:.2f} of the bare rate"
    )


def _copied(
    connection: psycopg.Connection[Any], statement: sql.Composed, data: bytes, *, counted: bool
) -> float:
    """Milliseconds of one COPY, rolled back; the trigger fires or not."""
    with connection.transaction(force_rollback=True), connection.cursor() as cursor:
        if not counted:
            cursor.execute("SET LOCAL session_replication_role = replica")

        def run() -> None:
            with cursor.copy(statement) as copy:
                copy.write(data)

        return _timed(run)


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main()
