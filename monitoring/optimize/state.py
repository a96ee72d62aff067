"""What the code declares and what the database has, both in the catalogue's normal form.

See Note [Declared state]: PostgreSQL rewrites what it is given (`IN (…)` becomes
`= ANY (ARRAY…)`), so texts cannot be compared with models. Instead everything that is declared is
made once more, empty, in a scratch schema of a transaction that is rolled back, and read with the
very queries that read the real schema. It takes no lock on any real table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

from django.apps import apps as live_apps
from django.apps.registry import Apps
from django.conf import settings
from django.db import Error, ProgrammingError, models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.loader import MigrationLoader
from psycopg import errors, sql

from registry.db.catalogue import left_out
from registry.db.sql import RunSQLFile
from registry.db.storage import (
    create_statistics,
    extended_statistics,
    set_parameters,
    storages,
)

__all__ = [
    "ExtendedStatistics",
    "Index",
    "Leaf",
    "LeafIndex",
    "MissingRightsError",
    "Routine",
    "SQLSource",
    "State",
    "Table",
    "actual_state",
    "declared_state",
    "definition_from_using",
    "our_labels",
]


class MissingRightsError(Exception):
    """The role may not do what optimize_db needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    table: str
    name: str
    form: str  # what makes two indexes equal: all but names of index, table and schema
    using: str  # the definition from its access method on, as CREATE INDEX takes it
    is_unique: bool = False
    is_valid: bool = True
    constraint: str = ""  # 'p' primary key, 'u' unique: the constraint of the same name; else ''
    constraint_suffix: str = ""  # DEFERRABLE and so on
    keys: tuple[str, ...] = ()
    predicate: str = ""
    builder_pid: int | None = None  # the session that builds it right now


@dataclass(frozen=True, slots=True, kw_only=True)
class SQLSource:
    """A frozen file and the key that its versions share."""

    key: str
    name: str
    place: int  # in the order of the migrations
    statements: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Routine:
    """A function, trigger, view or materialised view."""

    kind: str  # FUNCTION, TRIGGER, VIEW or MATERIALIZED VIEW
    name: str  # as DROP takes it: with argument types, for a trigger with its table
    definition: str  # a statement that makes it
    comments: tuple[str, ...] = ()  # COMMENT statements
    shape: str = ""  # what CREATE OR REPLACE cannot change: result type or columns
    grants: tuple[str, ...] = ()
    indexes: tuple[str, ...] = ()  # statements; of a materialised view, which goes with them
    source: SQLSource | None = None

    @property
    def label(self) -> str:
        return f"{self.kind.lower()} {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafIndex:
    """An index of one partition."""

    name: str
    using: str
    is_valid: bool
    is_unique: bool
    parent: str | None  # the partitioned index that it is attached to


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A partition that holds rows."""

    schema: str
    name: str
    indexes: tuple[LeafIndex, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """How a table keeps its rows, and how far a real one's statistics are behind."""

    name: str
    is_partitioned: bool = False
    parameters: tuple[tuple[str, str], ...] = ()  # storage parameters and their values
    leaves: tuple[Leaf, ...] = ()
    rows: int = 0
    changes: int = 0  # rows changed since the last ANALYZE
    days_since_analyze: float | None = None  # None: nobody knows, as after a crash
    is_guessed: bool = False  # it holds rows of which the planner knows nothing at all


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendedStatistics:
    """Of a table, or of one partition of it."""

    root: str
    schema: str
    table: str
    name: str
    form: str  # kinds and columns, as CREATE STATISTICS takes them


@dataclass(slots=True, kw_only=True)
class State:
    schema: str
    tables: dict[str, Table] = field(default_factory=dict)
    matviews: dict[str, Table] = field(default_factory=dict)
    indexes: dict[str, Index] = field(default_factory=dict)
    statistics: list[ExtendedStatistics] = field(default_factory=list)
    left_out: dict[str, Index] = field(default_factory=dict)  # what INDEX_PROFILE does without
    routines: dict[str, Routine] = field(default_factory=dict)  # by label
    unapplied: dict[str, bool] = field(default_factory=dict)  # "app.0001_name" -> is it ours
    unverifiable: dict[str, str] = field(default_factory=dict)  # name -> why

    @property
    def relations(self) -> dict[str, Table]:
        """All that can have indexes."""
        return self.tables | self.matviews


# --------------------------------------------------------------------------- the catalogue

_INDEXES = """
    SELECT t.relname, i.relname, x.indisunique,
           x.indisvalid AND x.indisready AND x.indislive,
           pg_get_indexdef(i.oid),
           coalesce(c.contype::text, ''),
           CASE WHEN c.condeferrable THEN ' DEFERRABLE' ELSE '' END
               || CASE WHEN c.condeferred THEN ' INITIALLY DEFERRED' ELSE '' END,
           ARRAY(SELECT pg_get_indexdef(i.oid, k, false)
                 FROM generate_series(1, x.indnkeyatts) k),
           coalesce(pg_get_expr(x.indpred, x.indrelid), ''),
           (SELECT p.pid FROM pg_stat_progress_create_index p WHERE p.index_relid = i.oid LIMIT 1)
    FROM pg_index x
    JOIN pg_class i ON i.oid = x.indexrelid
    JOIN pg_class t ON t.oid = x.indrelid
    JOIN pg_namespace n ON n.oid = t.relnamespace
    LEFT JOIN pg_constraint c ON c.conindid = i.oid AND c.contype IN ('p', 'u', 'x')
    WHERE n.nspname = %s AND t.relkind IN ('r', 'p', 'm') AND NOT t.relispartition
"""

_FUNCTIONS = """
    SELECT 'FUNCTION',
           p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')',
           pg_get_functiondef(p.oid), obj_description(p.oid, 'pg_proc'), '{}'::text[], '{}'::text[],
           pg_get_function_arguments(p.oid) || ' -> ' || pg_get_function_result(p.oid),
           ARRAY(SELECT DISTINCT a.privilege_type || ' ON FUNCTION '
                        || p.oid::regprocedure || ' TO '
                        || CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END
                 FROM aclexplode(p.proacl) a WHERE a.grantee <> p.proowner),
           '{}'::text[]
    FROM pg_proc p
    JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE n.nspname = %s AND p.prokind = 'f'
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
"""

_TRIGGERS = """
    SELECT 'TRIGGER', quote_ident(g.tgname) || ' ON ' || quote_ident(t.relname),
           pg_get_triggerdef(g.oid, true), obj_description(g.oid, 'pg_trigger'), '{}'::text[],
           '{}'::text[], '', '{}'::text[], '{}'::text[]
    FROM pg_trigger g
    JOIN pg_class t ON t.oid = g.tgrelid
    JOIN pg_namespace n ON n.oid = t.relnamespace
    WHERE n.nspname = %s AND NOT g.tgisinternal AND g.tgparentid = 0
"""

_VIEWS = """
    SELECT CASE v.relkind WHEN 'v' THEN 'VIEW' ELSE 'MATERIALIZED VIEW' END,
           quote_ident(v.relname), pg_get_viewdef(v.oid),
           obj_description(v.oid, 'pg_class'),
           ARRAY(SELECT quote_ident(a.attname) FROM pg_attribute a
                 WHERE a.attrelid = v.oid AND a.attnum > 0 ORDER BY a.attnum),
           ARRAY(SELECT coalesce(col_description(v.oid, a.attnum), '') FROM pg_attribute a
                 WHERE a.attrelid = v.oid AND a.attnum > 0 ORDER BY a.attnum),
           (SELECT string_agg(quote_ident(a.attname) || ' ' || format_type(a.atttypid, a.atttypmod),
                              ', ' ORDER BY a.attnum)
            FROM pg_attribute a WHERE a.attrelid = v.oid AND a.attnum > 0)
               || coalesce(' WITH ' || v.reloptions::text, ''),
           ARRAY(SELECT DISTINCT a.privilege_type || ' ON ' || quote_ident(v.relname) || ' TO '
                        || CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END
                 FROM aclexplode(v.relacl) a WHERE a.grantee <> v.relowner),
           ARRAY(SELECT pg_get_indexdef(x.indexrelid) || ';' FROM pg_index x
                 WHERE x.indrelid = v.oid ORDER BY 1)
    FROM pg_class v
    JOIN pg_namespace n ON n.oid = v.relnamespace
    WHERE n.nspname = %s AND v.relkind IN ('v', 'm')
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = v.oid AND d.deptype = 'e')
"""

_TABLES = """
    SELECT t.relname, t.relkind = 'p', coalesce(t.reloptions, '{}'),
           coalesce(s.n_live_tup, 0), coalesce(s.n_mod_since_analyze, 0),
           extract(epoch FROM now() - greatest(s.last_analyze, s.last_autoanalyze)) / 86400,
           t.reltuples < 0 AND (pg_relation_size(t.oid) > 0 OR EXISTS (
               SELECT FROM pg_partition_tree(t.oid) leaf
               WHERE leaf.isleaf AND pg_relation_size(leaf.relid) > 0
           ))
    FROM pg_class t
    JOIN pg_namespace n ON n.oid = t.relnamespace
    LEFT JOIN pg_stat_all_tables s ON s.relid = t.oid
    WHERE n.nspname = %s AND t.relkind IN ('r', 'p') AND NOT t.relispartition
"""

_MATVIEWS = """
    SELECT v.relname FROM pg_class v JOIN pg_namespace n ON n.oid = v.relnamespace
    WHERE n.nspname = %s AND v.relkind = 'm'
"""

_LEAVES = """
    SELECT t.relname, ln.nspname, l.relname, i.relname, pg_get_indexdef(i.oid),
           x.indisvalid AND x.indisready AND x.indislive, x.indisunique,
           (SELECT p.relname FROM pg_inherits h JOIN pg_class p ON p.oid = h.inhparent
            WHERE h.inhrelid = i.oid)
    FROM pg_class t
    JOIN pg_namespace n ON n.oid = t.relnamespace
    CROSS JOIN pg_partition_tree(t.oid) tree
    JOIN pg_class l ON l.oid = tree.relid
    JOIN pg_namespace ln ON ln.oid = l.relnamespace
    LEFT JOIN pg_index x ON x.indrelid = l.oid
    LEFT JOIN pg_class i ON i.oid = x.indexrelid
    WHERE n.nspname = %s AND t.relkind = 'p' AND NOT t.relispartition
      AND tree.isleaf AND l.oid <> t.oid
    ORDER BY l.relname, i.relname
"""


_STATISTICS = """
    SELECT root.relname, n.nspname, c.relname, s.stxname,
           '(' || (SELECT string_agg(CASE k WHEN 'd' THEN 'ndistinct' WHEN 'f' THEN 'dependencies'
                                            WHEN 'm' THEN 'mcv' ELSE 'expressions' END, ', '
                                     ORDER BY k)
                   FROM unnest(s.stxkind) AS k)
               || ') ON ' || pg_get_statisticsobjdef_columns(s.oid)
    FROM pg_statistic_ext s
    JOIN pg_class c ON c.oid = s.stxrelid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_class root ON root.oid = coalesce(pg_partition_root(c.oid), c.oid)
    WHERE root.relnamespace = %s::regnamespace
"""


def _rows(connection: BaseDatabaseWrapper, query: str, schema: str) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(query, [schema])
        return list(cursor.fetchall())


# PostgreSQL shows `varchar IN (…)` as a cast of the whole array, and reads that again as an array
# of casts: an index that was made from its own definition, by us or by pg_restore, looks different.
_ARRAY_CAST = re.compile(r"\(ARRAY\[((?:'(?:[^']|'')*'::character varying(?:, )?)+)\]\)::text\[\]")
_ELEMENT = re.compile(r"'(?:[^']|'')*'::character varying")


def definition_from_using(definition: str) -> str:
    """An index's definition from its access method on, in the one form of the two."""

    def cast_each(found: re.Match[str]) -> str:
        return "ARRAY[" + _ELEMENT.sub(r"(\g<0>)::text", found[1]) + "]"

    return _ARRAY_CAST.sub(cast_each, definition.partition(" USING ")[2])


def _index(row: tuple[Any, ...]) -> Index:
    table, name, is_unique, is_valid, definition, kind, suffix, keys, predicate, pid = row
    using = definition_from_using(definition)
    return Index(
        table=table,
        name=name,
        form=f"{'UNIQUE ' if is_unique else ''}{using}{kind and f' CONSTRAINT {kind}'}{suffix}",
        using=using,
        is_unique=is_unique,
        is_valid=is_valid,
        constraint=kind,
        constraint_suffix=suffix,
        keys=tuple(keys),
        predicate=predicate,
        builder_pid=pid,
    )


def _literal(text: str | None) -> str:
    return sql.Literal(text).as_string(None)


def _routine(row: tuple[Any, ...], schema: str) -> Routine:
    kind, name, definition, comment, columns, column_comments, shape, grants, indexes = row
    if kind == "FUNCTION":  # always qualified; everything else is visible on the path
        definition = definition.replace(f"{schema}.", "", 1)
    elif kind == "TRIGGER":
        definition = definition.replace("CREATE TRIGGER", "CREATE OR REPLACE TRIGGER", 1)
    elif kind == "VIEW":
        definition = f"CREATE OR REPLACE VIEW {name} AS\n{definition}"
    else:  # cannot be replaced: any difference is one of shape
        shape = definition
        definition = f"CREATE {kind} {name} AS\n{definition.rstrip(';')}\nWITH NO DATA"
    comments = [f"COMMENT ON {kind} {name} IS {_literal(comment)};"]
    comments += [
        f"COMMENT ON COLUMN {name}.{column} IS {_literal(text or None)};"
        for column, text in zip(columns, column_comments, strict=True)
    ]
    return Routine(
        kind=kind,
        name=name,
        definition=f"{definition.strip().rstrip(';')};",
        comments=tuple(comments),
        shape=shape or "",
        grants=tuple(f"GRANT {grant};" for grant in grants),
        indexes=tuple(indexes),
    )


def _read_indexes(connection: BaseDatabaseWrapper, schema: str) -> dict[str, Index]:
    found = (_index(row) for row in _rows(connection, _INDEXES, schema))
    return {index.name: index for index in found}


def _read_routines(connection: BaseDatabaseWrapper, schema: str) -> dict[str, Routine]:
    found = (
        _routine(row, schema)
        for query in (_FUNCTIONS, _TRIGGERS, _VIEWS)
        for row in _rows(connection, query, schema)
    )
    return {routine.label: routine for routine in found}


def _read_leaves(connection: BaseDatabaseWrapper, schema: str) -> dict[str, list[Leaf]]:
    found: dict[tuple[str, str, str], list[LeafIndex]] = {}
    for table, leaf_schema, leaf, name, definition, is_valid, is_unique, parent in _rows(
        connection, _LEAVES, schema
    ):
        indexes = found.setdefault((table, leaf_schema, leaf), [])
        if name is not None:
            indexes.append(
                LeafIndex(
                    name=name,
                    using=definition_from_using(definition),
                    is_valid=is_valid,
                    is_unique=is_unique,
                    parent=parent,
                )
            )
    leaves: dict[str, list[Leaf]] = {}
    for (table, leaf_schema, leaf), indexes in found.items():
        leaves.setdefault(table, []).append(
            Leaf(schema=leaf_schema, name=leaf, indexes=tuple(indexes))
        )
    return leaves


def _read_tables(connection: BaseDatabaseWrapper, schema: str) -> dict[str, Table]:
    leaves = _read_leaves(connection, schema)
    return {
        name: Table(
            name=name,
            is_partitioned=is_partitioned,
            parameters=tuple(_pair(option) for option in options),
            leaves=tuple(leaves.get(name, ())),
            rows=rows,
            changes=changes,
            days_since_analyze=None if days is None else float(days),
            is_guessed=is_guessed,
        )
        for name, is_partitioned, options, rows, changes, days, is_guessed in _rows(
            connection, _TABLES, schema
        )
    }


def _read_statistics(connection: BaseDatabaseWrapper, schema: str) -> list[ExtendedStatistics]:
    names = ("root", "schema", "table", "name", "form")
    rows = _rows(connection, _STATISTICS, schema)
    return [ExtendedStatistics(**dict(zip(names, row, strict=True))) for row in rows]


def _pair(option: str) -> tuple[str, str]:
    name, _, value = option.partition("=")
    return name, value


def _read_matviews(connection: BaseDatabaseWrapper, schema: str) -> dict[str, Table]:
    return {name: Table(name=name) for (name,) in _rows(connection, _MATVIEWS, schema)}


def actual_state(connection: BaseDatabaseWrapper) -> State:
    """What the connection's schema has."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_schema()")
        (schema,) = cursor.fetchone()
    return State(
        schema=schema,
        tables=_read_tables(connection, schema),
        matviews=_read_matviews(connection, schema),
        indexes=_read_indexes(connection, schema),
        statistics=_read_statistics(connection, schema),
        routines=_read_routines(connection, schema),
    )


# --------------------------------------------------------------------------- the declaration


def our_labels() -> list[str]:
    """The apps whose tables are ours: those that lie beside this one, not under site-packages."""
    rooms = {"registry", "monitoring", "security", "gateway"}
    return [app.label for app in live_apps.get_app_configs() if app.name in rooms]


def declared_state(connection: BaseDatabaseWrapper) -> State:
    """What the applied migrations and the models declare; see Note [Declared state].

    While a migration is unapplied, its indexes and functions are not asked for: it would make
    them itself and trip over them.
    """
    loader = MigrationLoader(connection)
    ours = set(our_labels())
    applied = [node for node in _in_order(loader) if node in loader.applied_migrations]
    unapplied = {
        f"{label}.{name}": label in ours
        for label, name in _in_order(loader)
        if (label, name) not in loader.applied_migrations
    }
    known = loader.project_state(applied).apps if any(unapplied.values()) else live_apps
    sources = [
        _source(operation, place)
        for place, node in enumerate(applied)
        if node[0] in ours
        for operation in loader.graph.nodes[node].operations
        if isinstance(operation, RunSQLFile)
    ]
    with _scratch_schema(connection) as schema:
        state = State(schema=schema, unapplied=unapplied)
        declared = list(_managed_models(known, ours))
        for model in declared:
            _make_table(connection, model, state)
        made = {model._meta.db_table for model in declared} - state.unverifiable.keys()
        _make_storage(connection, made)
        state.statistics = _read_statistics(connection, schema)
        state.tables = _read_tables(connection, schema)
        for source in sources:
            _make_routines(connection, source, state)
        state.matviews = _read_matviews(connection, schema)
        state.indexes = _read_indexes(connection, schema)
    for name in left_out(settings.INDEX_PROFILE) & state.indexes.keys():
        state.left_out[name] = state.indexes.pop(name)
    return state


def _in_order(loader: MigrationLoader) -> Iterator[tuple[str, str]]:
    seen: set[tuple[str, str]] = set()
    for leaf in sorted(loader.graph.leaf_nodes()):
        for node in loader.graph.forwards_plan(leaf):
            if node not in seen:
                seen.add(node)
                yield node


def _managed_models(known: Apps, labels: set[str]) -> Iterator[type[models.Model]]:
    for model in known.get_models():
        meta = model._meta
        if meta.app_label in labels and meta.managed and not meta.proxy:
            yield model


def _source(operation: RunSQLFile, place: int) -> SQLSource:
    key = re.sub(r"^\d+_|_v\d+$", "", operation.name)
    statements = str(operation.sql)
    return SQLSource(key=key, name=operation.name, place=place, statements=statements)


@contextmanager
def _scratch_schema(connection: BaseDatabaseWrapper) -> Iterator[str]:
    """A schema that stands first on the path, in a transaction that ends with a rollback."""
    schema = f"optimize_{uuid4().hex[:12]}"
    connection.set_autocommit(False)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_schema()")
            (own,) = cursor.fetchone()
            name = sql.Identifier(schema)
            cursor.execute(sql.SQL("CREATE SCHEMA {}").format(name))
            path = sql.SQL("SET LOCAL search_path TO {}, {}")
            cursor.execute(path.format(name, sql.Identifier(own)))
        yield schema
    except ProgrammingError as error:
        if isinstance(error.__cause__, errors.InsufficientPrivilege):
            raise MissingRightsError(
                "optimize_db compares with a scratch schema that this role may not create: run it "
                "as the owner of the database, or GRANT CREATE ON DATABASE to the role."
            ) from None
        raise
    finally:
        connection.rollback()
        connection.set_autocommit(True)


@contextmanager
def _savepoint(connection: BaseDatabaseWrapper, state: State, name: str) -> Iterator[None]:
    """What cannot be made is noted by name, and does not stop the rest."""
    savepoint = connection.savepoint() or ""
    try:
        yield
    except Error as error:
        connection.savepoint_rollback(savepoint)
        state.unverifiable[name] = str(error).splitlines()[0]
    else:
        connection.savepoint_commit(savepoint)


def _make_table(connection: BaseDatabaseWrapper, model: type[models.Model], state: State) -> None:
    with (
        _savepoint(connection, state, model._meta.db_table),
        connection.schema_editor(atomic=False) as editor,
    ):
        editor.create_model(model)
        # Foreign keys would look for tables that are not ours; they make no index in PostgreSQL.
        editor.deferred_sql = [
            statement
            for statement in editor.deferred_sql
            if getattr(statement, "template", "") != editor.sql_create_fk
        ]


def _make_storage(connection: BaseDatabaseWrapper, made: set[str]) -> None:
    """Storage parameters and extended statistics of the tables that there are."""
    statements = [
        *((wanted.table, set_parameters(wanted.table, wanted.parameters)) for wanted in storages()),
        *((wanted.table, create_statistics(wanted)) for wanted in extended_statistics()),
    ]
    with connection.cursor() as cursor:
        for table, statement in statements:
            if table in made:
                cursor.execute(statement)


def _make_routines(connection: BaseDatabaseWrapper, source: SQLSource, state: State) -> None:
    """Run one frozen file and note what it made. Versions run in order, as history did."""
    if source.key in state.unverifiable:
        return
    with _savepoint(connection, state, source.key), connection.cursor() as cursor:
        cursor.execute(source.statements)
    after = _read_routines(connection, state.schema)
    for label, routine in after.items():
        before = state.routines.get(label)
        is_new = before is None or replace(before, source=None) != routine
        made_by = source if is_new or before is None else before.source
        after[label] = replace(routine, source=made_by)
    state.routines = after
