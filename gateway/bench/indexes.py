"""Each index of the catalogue by itself: what its query gains, what its table's writers pay.

The catalogue says which query an index serves, who asks and how often. Here that query runs in a
filled database as the gateway runs it, then once more after the index was dropped, in a
transaction that is rolled back. What the index costs is measured on a copy of its table that has
a primary key and either this index or none. The page is written from that, so it cannot differ
from what the code declares.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

import psycopg
from django.core.exceptions import EmptyResultSet
from psycopg import sql

from gateway.bench import fill
from gateway.bench.arms import OPTIMISED, Arm, enter, key_of, tables
from gateway.bench.asking import Asker, Walls, asking, raise_walls
from gateway.bench.fill import Sizes
from gateway.bench.reads import Run, explain
from gateway.bench.run import Steps, filled
from gateway.bench.writes import UPDATES, Update, update_cost, wal_and_time
from registry.db.catalogue import IndexEntry, catalogue
from registry.db.circumstances import load_average, one_line
from registry.db.scratch import connect, migrated_database

__all__ = ["index_page"]

Connection = psycopg.Connection[Any]
ROWS = 20_000  # that are inserted, where the table has so many
UPDATED_ROWS = 5_000
ROUNDS = 3  # of each kind, in turns; the fastest counts
EXECUTIONS = 4
TRIAL = Arm("trial", "", "a copy with one index", "bench_trial")
GAIN = 1.5  # times fewer buffers, or less time: from there on an index is worth a word


@dataclass(frozen=True, slots=True)
class Index:
    """An index as the database has it; a partitioned one with all its parts."""

    name: str
    table: str
    definition: str  # for the table itself, whatever its partitions
    is_constraint: bool
    columns: frozenset[str]  # those of its keys and of its predicate
    size: int
    rows: int

    @property
    def using(self) -> str:
        return self.definition.partition(" USING ")[2]


@dataclass(frozen=True, slots=True)
class Cost:
    """What one index adds to a row that is inserted, and takes from updates."""

    insert_us: float
    wal_bytes: float
    hot: tuple[str, float, float] | None = None  # the update; its HOT share without and with


@dataclass(frozen=True, slots=True)
class Measured:
    entry: IndexEntry
    index: Index
    cost: Cost
    kept: Run | None  # None: the entry's sample found nothing to ask for
    dropped: Run | None
    is_used: bool

    @property
    def verdict(self) -> str:
        if self.entry.loses:
            return f"**loses**: {self.entry.loses}"
        if self.kept is None or self.dropped is None:
            return "no row to ask for here; the schema tests hold it to its word"
        if not self.is_used:
            return "not used at this size"
        fewer = self.dropped.buffers / max(1, self.kept.buffers)
        quicker = self.dropped.execution / self.kept.execution
        if fewer >= GAIN:
            return f"**keeps**: {fewer:,.1f} times fewer buffers"
        if quicker >= GAIN:
            return f"**keeps**: {quicker:,.1f} times less time, with as many buffers"
        return "used; without it no more is read at this size"


# --------------------------------------------------------------------------- measuring


def index_page(*, sizes: Sizes, at: datetime, steps: Steps) -> str:
    """Make a database, fill it, measure each entry, drop it; the page in Markdown."""
    entries = sorted(catalogue(), key=lambda entry: entry.index)
    steps.start(len(entries) + len(fill.TABLES) + 6)
    steps.step("Making the scratch database and its schema")
    with migrated_database(bytes_needed=sizes.bytes_needed):
        walls = Walls(standing=not (why_not := raise_walls()), why_not=why_not)
        with connect() as connection:
            head = one_line(connection)
            filled(connection, sizes=sizes, at=at, steps=steps)
            steps.step("Vacuuming and ageing")
            fill.age_rows(connection, OPTIMISED.schema)
            fill.analyse(connection, OPTIMISED.schema)
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(TRIAL.schema)))
            found = list(_measured(connection, entries, walls, steps))
    facts = f"{at:%Y-%m-%d}, {head} before and {load_average()} after"
    return "\n".join(_page(found, sizes=sizes, facts=facts, walls=walls))


def _measured(
    connection: Connection, entries: Sequence[IndexEntry], walls: Walls, steps: Steps
) -> Iterator[Measured]:
    costs: dict[str, Cost] = {}
    unindexed: dict[str, float] = {}
    for entry in entries:
        steps.step(f"Index {entry.index}")
        index = _index(connection, entry.index)
        kept, dropped = _asked(connection, entry, index, walls)
        if index.name not in costs:
            costs[index.name] = _cost(connection, index, unindexed)
        used = kept is not None and bool(_parts(connection, index) & kept.indexes)
        yield Measured(entry, index, costs[index.name], kept, dropped, used)


_INDEX = """
    SELECT t.relname, replace(pg_get_indexdef(i.oid), ' ON ONLY ', ' ON '),
           EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = i.oid),
           (SELECT coalesce(array_agg(DISTINCT a.attname::text), '{}') FROM pg_depend d
              JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
             WHERE d.objid = i.oid AND d.refobjid = t.oid)
           || (SELECT coalesce(array_agg(a.attname::text), '{}') FROM pg_attribute a
                WHERE a.attrelid = t.oid AND a.attnum = ANY (x.indkey)),
           (SELECT sum(pg_relation_size(part.id)) FROM (
                SELECT i.oid AS id UNION SELECT relid FROM pg_partition_tree(i.oid)
               ) AS part)::bigint,
           (SELECT sum(greatest(0, leaf.reltuples)) FROM pg_class leaf WHERE leaf.oid IN (
                SELECT t.oid UNION SELECT relid FROM pg_partition_tree(t.oid))
               AND leaf.relkind = 'r')::bigint
      FROM pg_index x
      JOIN pg_class i ON i.oid = x.indexrelid
      JOIN pg_class t ON t.oid = x.indrelid
     WHERE i.oid = to_regclass(quote_ident(%s))
"""


def _index(connection: Connection, name: str) -> Index:
    found = connection.execute(_INDEX, [name]).fetchone()
    if found is None:
        raise LookupError(f"The catalogue names {name}, which the migrations do not make.")
    table, definition, is_constraint, columns, size, rows = found
    return Index(name, table, definition, is_constraint, frozenset(columns), size, rows or 0)


def _parts(connection: Connection, index: Index) -> set[str]:
    """The names under which a plan can show it."""
    found = connection.execute(
        "SELECT relid::regclass::text FROM pg_partition_tree(to_regclass(quote_ident(%s)))",
        [index.name],
    )
    return {index.name, *(str(name) for (name,) in found.fetchall())}


# --------------------------------------------------------------------------- reading


def _asked(
    connection: Connection, entry: IndexEntry, index: Index, walls: Walls
) -> tuple[Run | None, Run | None]:
    """The entry's query with the index and without it; as the operator, as the gateway asks."""
    query = entry.query()
    if not query.exists():
        return None, None
    try:
        statement, parameters = query.query.sql_with_params()
    except EmptyResultSet:
        return None, None
    asker = walls.asker(OPTIMISED, None)
    kept = _warmly(connection, asker, statement, parameters)
    with connection.transaction(force_rollback=True):
        connection.execute(_drop(index))
        dropped = _warmly(connection, asker, statement, parameters)
    return kept, dropped


def _warmly(connection: Connection, asker: Asker, statement: str, parameters: Any) -> Run:
    """The quickest of some executions."""
    with asking(connection, asker):
        runs = [explain(connection, statement, parameters) for _ in range(EXECUTIONS)]
    return min(runs, key=lambda run: run.execution)


def _drop(index: Index) -> sql.Composed:
    name = sql.Identifier(index.name)
    if index.is_constraint:
        drop = sql.SQL("ALTER TABLE {} DROP CONSTRAINT {} CASCADE")
        return drop.format(sql.Identifier(index.table), name)
    return sql.SQL("DROP INDEX {}").format(name)


# --------------------------------------------------------------------------- writing


def _cost(connection: Connection, index: Index, unindexed: dict[str, float]) -> Cost:
    without, having = [], []
    rows = max(1, min(ROWS, index.rows))
    for _ in range(ROUNDS):
        without.append(_inserted(connection, index, rows, with_index=False))
        having.append(_inserted(connection, index, rows, with_index=True))
    taken = min(ms for _, ms in having) - min(ms for _, ms in without)
    wal = having[0][0] - without[0][0]
    hot = _hot(connection, index, unindexed)
    return Cost(max(0.0, taken * 1000 / rows), max(0.0, wal / rows), hot)


def _inserted(
    connection: Connection, index: Index, rows: int, *, with_index: bool
) -> tuple[int, float]:
    """WAL bytes and milliseconds of an INSERT of rows into a copy of the table."""
    with connection.transaction(force_rollback=True):
        _make_trial(connection, index, with_index=with_index)
        return wal_and_time(connection, _copied(index, rows))


def _copied(index: Index, rows: int) -> sql.Composed:
    return sql.SQL("INSERT INTO {} SELECT * FROM {} LIMIT {}").format(
        _trial(index), sql.Identifier(OPTIMISED.schema, index.table), rows
    )


def _trial(index: Index) -> sql.Identifier:
    return sql.Identifier(TRIAL.schema, index.table)


def _make_trial(connection: Connection, index: Index, *, with_index: bool) -> None:
    """The table once more, empty, with its primary key alone or with the index beside it."""
    like = sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING DEFAULTS)")
    connection.execute(like.format(_trial(index), sql.Identifier(OPTIMISED.schema, index.table)))
    keys = sql.SQL(", ").join(map(sql.Identifier, key_of(tables()[index.table])))
    connection.execute(sql.SQL("ALTER TABLE {} ADD PRIMARY KEY ({})").format(_trial(index), keys))
    if with_index:  # the definition is PostgreSQL's own words
        here = f" ON {OPTIMISED.schema}.{index.table} "
        there = f" ON {TRIAL.schema}.{index.table} "
        connection.execute(sql.SQL(index.definition.replace(here, there, 1)))


def _hot(
    connection: Connection, index: Index, unindexed: dict[str, float]
) -> tuple[str, float, float] | None:
    """What the index does to the update that its table lives with, where it holds what changes.

    `unindexed` keeps each table's share without any index.
    """
    for update in UPDATES:
        if update.table == index.table and index.columns & update.columns:
            if index.table not in unindexed:
                unindexed[index.table] = _hot_share(connection, index, update, with_index=False)
            having = _hot_share(connection, index, update, with_index=True)
            return update.title, unindexed[index.table], having
    return None


def _hot_share(connection: Connection, index: Index, update: Update, *, with_index: bool) -> float:
    _make_trial(connection, index, with_index=with_index)
    connection.execute(_copied(index, UPDATED_ROWS))
    enter(connection, TRIAL)
    try:
        return update_cost(connection, TRIAL, update).hot_share
    finally:
        enter(connection, OPTIMISED)
        connection.execute(sql.SQL("DROP TABLE {}").format(_trial(index)))


# --------------------------------------------------------------------------- the page


def _page(found: Sequence[Measured], *, sizes: Sizes, facts: str, walls: Walls) -> Iterator[str]:
    asked = "as the operator" if walls.standing else f"as the owner, for {walls.why_not}"
    yield "# Indexes"
    yield ""
    yield "What each declared index serves, gains and costs. Generated; do not edit. The command:"
    yield ""
    yield "```bash"
    yield (
        f"manage.py bench_db --requests {sizes.requests} --servers {sizes.servers}"
        " --indexes docs/indexes.md"
    )
    yield "```"
    yield ""
    yield f"{facts}. {sizes.requests:,} log rows and {sizes.servers:,} servers, warm."
    yield ""
    yield (
        "Reading: one question of the index's entry in the catalogue (`indexes.py` of each app), "
        f"asked {asked}, with the index and after dropping it in a transaction that is rolled "
        "back; buffers are pages of 8 kB. Another index may take over: then little is lost. "
        "Writing: what the index adds to each of up to "
        f"{ROWS:,} rows inserted into a copy of the table with a primary key alone; HOT is the "
        "share of updates that write no index entry, without and with the index, told where it "
        "holds a column that changes all day. Milliseconds differ from machine to machine."
    )
    ordered = sorted(found, key=lambda one: (one.index.table, one.index.name))
    for table, group in groupby(ordered, key=lambda one: one.index.table):
        yield from ("", f"## {table}", "")
        yield from _section(list(group))
    yield ""


def _section(found: Sequence[Measured]) -> Iterator[str]:
    yield (
        "| index | serves | plan | buffers with / without | ms with / without |"
        " size (bytes a row) | insert: µs, WAL bytes a row | HOT without / with | verdict |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for one in found:
        yield f"| {' | '.join(re.sub(r'[|]', '/', cell) for cell in _cells(one))} |"
    yield ""
    for index in dict.fromkeys(one.index for one in found):
        yield f"- `{index.name}`: `{index.using}`"


def _cells(one: Measured) -> Iterator[str]:
    index, cost, kept, dropped = one.index, one.cost, one.kept, one.dropped
    yield f"`{index.name}`"
    yield f"{one.entry.caller}; {one.entry.rate}"
    if kept is None or dropped is None:
        yield from ("no such row", "–", "–")
    else:
        yield " > ".join(dict.fromkeys(kept.nodes))
        yield f"{kept.buffers:,} / {dropped.buffers:,}"
        yield f"{kept.execution:.2f} / {dropped.execution:.2f}"
    yield f"{index.size / 2**20:,.1f} MB ({index.size / max(1, index.rows):.0f})"
    yield f"{cost.insert_us:.1f}, {cost.wal_bytes:.0f}"
    yield "–" if cost.hot is None else "{}: {:.0%} / {:.0%}".format(*cost.hot)
    yield ". ".join([one.verdict.rstrip("."), *_reasons(one.entry)]) + "."


def _reasons(entry: IndexEntry) -> Iterator[str]:
    """What else an entry may say of its index."""
    for name, words in (("costs", "Costs"), ("accepted", "Accepted"), ("sibling", "See")):
        if said := getattr(entry, name, ""):
            yield f"{words}: {str(said).rstrip('.')}"
