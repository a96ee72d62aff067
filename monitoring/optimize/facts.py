"""What advice rests on, read once and without a change: statistics, sizes, keys, old snapshots.

An index of a partitioned table is one index: the scans and sizes of its partitions are added up.
Replicas count their own scans, which are added too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, LiteralString

from django.apps import apps
from django.conf import settings
from django.db import Error, connections, models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.loader import MigrationLoader
from psycopg import sql

from monitoring.optimize.estimate import index_bytes
from monitoring.optimize.state import State, actual_state, our_labels
from registry.db.catalogue import catalogue

__all__ = [
    "Facts",
    "ForeignKeyFact",
    "HolderFact",
    "IndexFact",
    "TableFact",
    "read_facts",
    "read_index_facts",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexFact:
    table: str
    name: str
    method: str = "btree"
    columns: tuple[str, ...]  # or expressions, without their order
    keys: tuple[str, ...]  # with operator class and collation
    options: tuple[int, ...] = ()  # of each key: 1 descending, 2 nulls first
    include: tuple[str, ...] = ()
    predicate: str = ""
    is_unique: bool = False
    is_needed: bool = False  # by a constraint, a foreign key or logical replication
    is_valid: bool = True
    is_declared: bool = True
    bytes: int = 0
    scans: int = 0  # since `made`, or since statistics began
    last_scan: datetime | None = None  # PostgreSQL 16 and newer
    made: datetime | None = None  # by which migration or run; None: not known
    fresh_bytes: int | None = None  # what a build would come to, estimated
    leaf_density: float | None = None  # percent, measured by pgstattuple


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFact:
    """A table or a partition."""

    name: str
    root: str  # the table it is a partition of, or itself
    rows: int = 0
    dead: int = 0
    vacuum_at: float = 50.0  # dead rows at which autovacuum is to begin
    is_autovacuumed: bool = True
    vacuumed: datetime | None = None  # by hand or by autovacuum
    updates: int = 0
    hot_updates: int = 0
    moved_updates: int | None = None  # to another page; PostgreSQL 16 and newer
    fillfactor: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignKeyFact:
    table: str
    columns: tuple[str, ...]
    target: str
    rule: str  # what happens to the rows when what they point at goes


@dataclass(frozen=True, slots=True, kw_only=True)
class HolderFact:
    """Something that keeps VACUUM from removing what is dead."""

    kind: str  # session, standby, prepared transaction, replication slot
    name: str  # process id, transaction's or slot's name
    who: str
    transactions: int
    seconds: float | None
    is_active: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    at: datetime
    since: datetime  # when statistics began
    version: int
    actual: State = field(default_factory=lambda: State(schema="public"))
    indexes: tuple[IndexFact, ...] = ()
    tables: tuple[TableFact, ...] = ()
    foreign_keys: tuple[ForeignKeyFact, ...] = ()
    holders: tuple[HolderFact, ...] = ()
    serves: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # index -> its queries
    replica: str = ""  # why the replica could not be asked
    sees_all: bool = True  # whether sessions of other roles are seen


def _rows(
    connection: BaseDatabaseWrapper, query: Any, parameters: Sequence[Any] = ()
) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(query, parameters or None)
        return list(cursor.fetchall())


# --------------------------------------------------------------------------- all of it


def read_facts(
    connection: BaseDatabaseWrapper, *, is_suspicious: Callable[[IndexFact], bool]
) -> Facts:
    """Everything; indexes that are suspiciously large are measured where pgstattuple is there."""
    facts = read_index_facts(connection)
    indexes = tuple(_with_fresh_size(connection, facts.actual, fact) for fact in facts.indexes)
    measure = _pgstattuple(connection)
    return replace(
        facts,
        indexes=tuple(
            _measured(connection, measure, fact) if measure and is_suspicious(fact) else fact
            for fact in indexes
        ),
        tables=tuple(_read_tables(connection, facts.version)),
        foreign_keys=tuple(_read_foreign_keys(connection)),
        holders=tuple(_read_holders(connection)),
        serves=_served(),
        sees_all=_rows(connection, "SELECT pg_has_role('pg_read_all_stats', 'USAGE')")[0][0],
    )


def read_index_facts(connection: BaseDatabaseWrapper, *, actual: State | None = None) -> Facts:
    """What a plan's notices need: indexes and their use."""
    [(at, since, version)] = _rows(connection, _WHEN)
    tables, declared = _ours(connection)
    scans, replica_since, trouble = _read_replica(tables)
    made = _made(connection)
    return Facts(
        at=at,
        since=max(since, replica_since or since),
        version=version,
        actual=actual or actual_state(connection),
        indexes=tuple(_read_indexes(connection, version, tables, declared, made, scans)),
        replica=trouble,
    )


# Statistics that were never reset begin with the cluster or with its last crash: the background
# writer's begin then too.
_WHEN = """
SELECT now(), coalesce(d.stats_reset, b.stats_reset, pg_postmaster_start_time()),
       current_setting('server_version_num')::integer
  FROM pg_stat_database AS d CROSS JOIN pg_stat_bgwriter AS b
 WHERE d.datname = current_database()
"""


def _ours(connection: BaseDatabaseWrapper) -> tuple[list[str], set[str]]:
    """Names of our tables, and of the indexes that are declared: by models, and as last seen."""
    labels = set(our_labels())
    found = [model for model in apps.get_models() if model._meta.app_label in labels]
    metas = [model._meta for model in found if model._meta.managed and not model._meta.proxy]
    declared = {index.name for meta in metas for index in meta.indexes}
    declared |= {constraint.name for meta in metas for constraint in meta.constraints}
    declared |= {name for (name,) in _records("declared_indexes", _DECLARED)}
    views = "SELECT relname FROM pg_class WHERE relkind = 'm' AND relnamespace = {}"
    here = sql.SQL("current_schema()::regnamespace")
    matviews = [row[0] for row in _rows(connection, sql.SQL(views).format(here))]
    return sorted({meta.db_table for meta in metas} | set(matviews)), declared


def _made(connection: BaseDatabaseWrapper) -> dict[str, datetime]:
    """When an index was made, by the migration that names it or by the last run that built it."""
    loader = MigrationLoader(connection)
    made: dict[str, datetime] = {}
    for key, record in loader.applied_migrations.items():
        node = loader.graph.nodes.get(key)
        for operation in node.operations if node else ():
            # django-stubs takes a record of an applied migration for the migration itself.
            applied: datetime = record.applied  # type: ignore[attr-defined]
            made.update(dict.fromkeys(_index_names(operation), applied))
    made.update({name: at for name, at in _records("optimize_runs", _BUILT) if name})
    return made


def _records(table: str, query: str) -> list[tuple[Any, ...]]:
    """From a table of optimize_db's own, as whoever keeps them; nothing before there is one."""
    usual = connections["default"]
    there = _rows(usual, "SELECT to_regclass(%s) IS NOT NULL", [table])
    return _rows(usual, query) if there == [(True,)] else []


_DECLARED = "SELECT index_name FROM declared_indexes"
_BUILT = """
SELECT statement->>'object', max(run.started_at)
  FROM optimize_runs AS run CROSS JOIN jsonb_array_elements(run.statements) AS statement
 WHERE statement->>'sql' LIKE 'CREATE %INDEX%'
 GROUP BY 1
"""


def _index_names(operation: Any) -> Iterator[str]:
    for inner in getattr(operation, "database_operations", ()):
        yield from _index_names(inner)
    options = getattr(operation, "options", None) or {}
    named = [getattr(operation, name, None) for name in ("index", "constraint")]
    for thing in (*named, *options.get("indexes", ()), *options.get("constraints", ())):
        if getattr(thing, "name", None):
            yield str(thing.name)


def _served() -> dict[str, tuple[str, ...]]:
    served: dict[str, tuple[str, ...]] = {}
    for entry in catalogue():
        text = f"{entry.caller} ({entry.rate})"
        served[entry.index] = (*served.get(entry.index, ()), text)
    return served


# --------------------------------------------------------------------------- indexes

# The index itself, or those of all its partitions.
_LEAVES: LiteralString = """
    SELECT i.oid WHERE i.relkind = 'i'
    UNION ALL
    SELECT tree.relid FROM pg_partition_tree(i.oid) AS tree WHERE i.relkind = 'I' AND tree.isleaf
"""
_USE: LiteralString = """
    SELECT coalesce(sum(pg_stat_get_numscans(leaf.oid)), 0)::bigint AS scans,
           {last_scan} AS last_scan,
           coalesce(sum(pg_relation_size(leaf.oid)), 0)::bigint AS bytes
      FROM ({leaves}) AS leaf (oid)
"""
_INDEXES: LiteralString = """
SELECT t.relname, i.relname, am.amname,
       ARRAY(SELECT pg_get_indexdef(i.oid, k, false)
               FROM generate_series(1, x.indnkeyatts) AS k ORDER BY k),
       ARRAY(SELECT concat_ws(' ', pg_get_indexdef(i.oid, k, false), x.indclass[k - 1]::text,
                              x.indcollation[k - 1]::text)
               FROM generate_series(1, x.indnkeyatts) AS k ORDER BY k),
       ARRAY(SELECT x.indoption[k - 1]::integer
               FROM generate_series(1, x.indnkeyatts) AS k ORDER BY k),
       ARRAY(SELECT pg_get_indexdef(i.oid, k, false)
               FROM generate_series(x.indnkeyatts + 1, x.indnatts) AS k ORDER BY k),
       coalesce(pg_get_expr(x.indpred, x.indrelid), ''), x.indisunique,
       x.indisprimary OR x.indisreplident
           OR EXISTS (SELECT FROM pg_constraint AS c WHERE c.conindid = i.oid),
       x.indisvalid, use.bytes, use.scans, use.last_scan
  FROM pg_index AS x
  JOIN pg_class AS i ON i.oid = x.indexrelid
  JOIN pg_class AS t ON t.oid = x.indrelid
  JOIN pg_am AS am ON am.oid = i.relam
 CROSS JOIN LATERAL ({use}) AS use
 WHERE t.relnamespace = current_schema()::regnamespace AND t.relname = ANY(%s)
   AND NOT t.relispartition
 ORDER BY t.relname, i.relname
"""
_SCANS: LiteralString = """
SELECT t.relname, i.relname, use.scans, use.last_scan
  FROM pg_index AS x
  JOIN pg_class AS i ON i.oid = x.indexrelid
  JOIN pg_class AS t ON t.oid = x.indrelid
 CROSS JOIN LATERAL ({use}) AS use
 WHERE t.relnamespace = current_schema()::regnamespace AND t.relname = ANY(%s)
   AND NOT t.relispartition
"""

Scans = dict[tuple[str, str], tuple[int, datetime | None]]


def _with_use(query: LiteralString, version: int) -> sql.Composed:
    known = version >= 160_000
    last = "max(pg_stat_get_lastscan(leaf.oid))" if known else "NULL::timestamptz"
    parts = {"last_scan": sql.SQL(last), "leaves": sql.SQL(_LEAVES)}
    return sql.SQL(query).format(use=sql.SQL(_USE).format(**parts))


def _read_indexes(
    connection: BaseDatabaseWrapper,
    version: int,
    tables: list[str],
    declared: set[str],
    made: Mapping[str, datetime],
    elsewhere: Scans,
) -> Iterator[IndexFact]:
    for row in _rows(connection, _with_use(_INDEXES, version), [tables]):
        table, name, method, columns, keys, options, include, predicate, *rest = row
        is_unique, is_needed, is_valid, size, scans, last_scan = rest
        more, later = elsewhere.get((table, name), (0, None))
        yield IndexFact(
            table=table,
            name=name,
            method=method,
            columns=tuple(columns),
            keys=tuple(keys),
            options=tuple(options),
            include=tuple(include),
            predicate=predicate,
            is_unique=is_unique,
            is_needed=is_needed,
            is_valid=is_valid,
            is_declared=name in declared,
            bytes=size,
            scans=scans + more,
            last_scan=max(filter(None, (last_scan, later)), default=None),
            made=made.get(name),
        )


def _read_replica(tables: list[str]) -> tuple[Scans, datetime | None, str]:
    """Scans of the replica by table and index, when its statistics began, or what was wrong."""
    if not settings.DATABASE_REPLICA:
        return {}, None, ""
    try:
        with _replica() as connection:
            [(_, since, version)] = _rows(connection, _WHEN)
            found = _rows(connection, _with_use(_SCANS, version), [tables])
    except Error as error:
        return {}, None, (str(error).strip().splitlines() or [type(error).__name__])[0]
    return {(table, index): (scans, last) for table, index, scans, last in found}, since, ""


@contextmanager
def _replica() -> Iterator[BaseDatabaseWrapper]:
    connection = connections["default"].copy()
    replica = settings.DATABASE_REPLICA or {}
    connection.settings_dict = deepcopy(connection.settings_dict) | deepcopy(replica)
    try:
        yield connection
    finally:
        connection.close()


def _with_fresh_size(connection: BaseDatabaseWrapper, actual: State, fact: IndexFact) -> IndexFact:
    index = actual.indexes.get(fact.name)
    if index is None or fact.method != "btree" or not fact.is_valid:
        return fact
    try:
        return replace(fact, fresh_bytes=index_bytes(connection, index))
    except Error:
        return fact


# --------------------------------------------------------------------------- pgstattuple

LONGEST_MEASURE = "20s"


def _pgstattuple(connection: BaseDatabaseWrapper) -> sql.Identifier | None:
    """The function that reads a whole index, where it is installed."""
    found = _rows(
        connection,
        "SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'pgstattuple'",
    )
    return sql.Identifier(found[0][0], "pgstatindex") if found else None


def _measured(
    connection: BaseDatabaseWrapper, function: sql.Identifier, fact: IndexFact
) -> IndexFact:
    """With the density of its leaf pages; as it was where that may not be asked or takes long."""
    query = sql.SQL(
        "SELECT avg(nullif(found.avg_leaf_density, 'NaN'))"
        " FROM pg_class AS i CROSS JOIN LATERAL ({leaves}) AS leaf (oid)"
        " CROSS JOIN LATERAL {function}(leaf.oid) AS found WHERE i.oid = quote_ident(%s)::regclass"
    ).format(function=function, leaves=sql.SQL(_LEAVES))
    try:
        _rows(connection, "SELECT set_config('statement_timeout', %s, false)", [LONGEST_MEASURE])
        ((density,),) = _rows(connection, query, [fact.name])
    except Error:
        return fact
    finally:
        _rows(connection, "SELECT set_config('statement_timeout', '0', false)")
    return replace(fact, leaf_density=density)


# --------------------------------------------------------------------------- tables

_TABLES: LiteralString = """
SELECT c.relname, root.relname, s.n_live_tup, s.n_dead_tup,
       greatest(s.last_vacuum, s.last_autovacuum), s.n_tup_upd, s.n_tup_hot_upd, {moved},
       greatest(c.reltuples, 0), coalesce(c.reloptions, '{{}}'),
       current_setting('autovacuum')::boolean,
       current_setting('autovacuum_vacuum_threshold')::float8,
       current_setting('autovacuum_vacuum_scale_factor')::float8,
       nullif(current_setting('autovacuum_vacuum_max_threshold', true), '')::float8
  FROM pg_class AS c
  JOIN pg_stat_all_tables AS s ON s.relid = c.oid
  JOIN pg_class AS root ON root.oid = coalesce(pg_partition_root(c.oid), c.oid)
 WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind = 'r'
 ORDER BY c.relname
"""


def _read_tables(connection: BaseDatabaseWrapper, version: int) -> Iterator[TableFact]:
    moved = "s.n_tup_newpage_upd" if version >= 160_000 else "NULL::bigint"
    for row in _rows(connection, sql.SQL(_TABLES).format(moved=sql.SQL(moved))):
        name, root, rows, dead, vacuumed, updates, hot, elsewhere, tuples, options, *usual = row
        told = dict(option.split("=", 1) for option in options)
        yield TableFact(
            name=name,
            root=root,
            rows=max(rows, int(tuples)),
            dead=dead,
            vacuum_at=_vacuum_at(tuples, told, *usual[1:]),
            is_autovacuumed=usual[0] and told.get("autovacuum_enabled", "on") not in _OFF,
            vacuumed=vacuumed,
            updates=updates,
            hot_updates=hot,
            moved_updates=elsewhere,
            fillfactor=int(told.get("fillfactor", 100)),
        )


_OFF = {"off", "false", "no", "0", "f", "n"}


def _vacuum_at(
    tuples: float, told: Mapping[str, str], base: float, share: float, most: float | None
) -> float:
    base = float(told.get("autovacuum_vacuum_threshold", base))
    share = float(told.get("autovacuum_vacuum_scale_factor", share))
    limit = float(told.get("autovacuum_vacuum_max_threshold", -1 if most is None else most))
    begins = base + share * tuples
    return min(begins, limit) if limit >= 0 else begins


# --------------------------------------------------------------------------- foreign keys

_FOREIGN_KEYS = """
SELECT t.relname,
       ARRAY(SELECT a.attname::text FROM unnest(c.conkey) WITH ORDINALITY AS k (attnum, place)
               JOIN pg_attribute AS a ON a.attrelid = c.conrelid AND a.attnum = k.attnum
              ORDER BY k.place),
       c.confrelid::regclass::text,
       CASE c.confdeltype WHEN 'c' THEN 'CASCADE' WHEN 'n' THEN 'SET NULL' ELSE 'SET DEFAULT' END
  FROM pg_constraint AS c
  JOIN pg_class AS t ON t.oid = c.conrelid
 WHERE c.contype = 'f' AND c.conparentid = 0 AND c.confdeltype IN ('c', 'n', 'd')
   AND t.relnamespace = current_schema()::regnamespace
"""


def _read_foreign_keys(connection: BaseDatabaseWrapper) -> list[ForeignKeyFact]:
    """Those whose rows are looked up when what they point at goes: by PostgreSQL or by Django."""
    found = {(key.table, key.columns): key for key in _django_foreign_keys()}
    for table, columns, target, rule in _rows(connection, _FOREIGN_KEYS):
        key = (table, tuple(columns))
        found[key] = ForeignKeyFact(table=table, columns=key[1], target=target, rule=rule)
    return [found[key] for key in sorted(found)]


def _django_foreign_keys() -> Iterator[ForeignKeyFact]:
    rules: dict[Any, str] = {
        models.CASCADE: "CASCADE in Django",
        models.SET_NULL: "SET NULL in Django",
    }
    for model in apps.get_models(include_auto_created=True):
        for column in model._meta.concrete_fields:
            rule = rules.get(getattr(column.remote_field, "on_delete", None))
            if rule and model._meta.managed and column.related_model:
                yield ForeignKeyFact(
                    table=model._meta.db_table,
                    columns=(str(column.column),),
                    target=column.related_model._meta.db_table,
                    rule=rule,
                )


# --------------------------------------------------------------------------- old snapshots

_SESSIONS = """
SELECT CASE backend_type WHEN 'walsender' THEN 'standby' ELSE 'session' END, pid::text,
       concat_ws(' ', coalesce(usename, 'another role'), 'from',
                 coalesce(host(client_addr), 'this machine'), 'as',
                 coalesce(nullif(application_name, ''), backend_type), '(' || state || ')'),
       greatest(age(backend_xmin), age(backend_xid)),
       extract(epoch FROM now() - xact_start)::float8, true
  FROM pg_stat_activity
 WHERE (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL) AND pid <> pg_backend_pid()
   AND backend_type <> 'autovacuum worker'
   AND (datname = current_database() OR datname IS NULL)
UNION ALL
SELECT 'prepared transaction', gid, owner, age(transaction),
       extract(epoch FROM now() - prepared)::float8, true
  FROM pg_prepared_xacts WHERE database = current_database()
UNION ALL
SELECT 'replication slot', slot_name,
       concat_ws(' ', slot_type, plugin, 'of', coalesce(database, 'a standby')),
       greatest(age(xmin), age(catalog_xmin)), NULL::float8, active
  FROM pg_replication_slots WHERE xmin IS NOT NULL OR catalog_xmin IS NOT NULL
"""


def _read_holders(connection: BaseDatabaseWrapper) -> Iterator[HolderFact]:
    for kind, name, who, transactions, seconds, is_active in _rows(connection, _SESSIONS):
        yield HolderFact(
            kind=kind,
            name=name,
            who=who,
            transactions=transactions or 0,
            seconds=seconds,
            is_active=is_active,
        )
