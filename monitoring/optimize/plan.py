"""From two states to a list of changes. Pure: nothing here talks to a database."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from psycopg import sql

from monitoring.optimize.state import (
    ExtendedStatistics,
    Index,
    Leaf,
    Routine,
    SQLSource,
    State,
    Table,
)

__all__ = [
    "INSTANT",
    "PHASES",
    "Change",
    "Step",
    "index_built",
    "index_dropped",
    "make_plan",
    "new_views",
]

PHASES = {1: "Indexes", 2: "Tables", 3: "Functions", 4: "Views", 5: "Statistics"}

NAME_BYTES = 63  # PostgreSQL cuts longer names off
REPLACEMENT = "_ccnew"  # the suffix that PostgreSQL's own REINDEX CONCURRENTLY gives
CREATE = re.compile(r"^CREATE (FUNCTION|VIEW|TRIGGER)\b", re.MULTILINE)
# What knows no OR REPLACE; indexes stand in the file of their materialised view.
CREATE_ONCE = re.compile(r"^CREATE (MATERIALIZED VIEW|(?:UNIQUE )?INDEX)\b", re.MULTILINE)
DROP = re.compile(r"^DROP (FUNCTION|VIEW|MATERIALIZED VIEW|TRIGGER) (?!IF EXISTS)", re.MULTILINE)
LEFTOVER = re.compile(r"^(?P<base>.+)_cc(?:new|old)\d*$")

ANALYZE_CHANGES = 500
ANALYZE_SHARE = 0.1
ANALYZE_PARENT_DAYS = 7.0  # autovacuum never analyses a partitioned parent

ONLINE = "SHARE UPDATE EXCLUSIVE on {}: reads and writes go on"
INSTANT = "ACCESS EXCLUSIVE on {}, for an instant"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One statement (a function's file may hold several, which then stand or fall together)."""

    sql: str
    lock: str
    inverse: tuple[Step, ...] = ()
    builds: str = ""  # the index that must be valid afterwards
    cleanup: str = ""  # removes what a failed attempt leaves behind
    is_concurrent: bool = False  # waits for others without making anybody wait
    goes_with: str = ""  # what takes this along when it is undone

    def as_dict(self) -> dict[str, Any]:
        return {
            "sql": self.sql,
            "lock": self.lock,
            "inverse": [step.as_dict() for step in self.inverse],
            "builds": self.builds,
            "cleanup": self.cleanup,
            "is_concurrent": self.is_concurrent,
            "goes_with": self.goes_with,
        }

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Step:
        inverse = tuple(cls.from_dict(step) for step in raw["inverse"])
        return cls(**{**raw, "inverse": inverse})


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One object that is not as declared, and the steps that make it so."""

    phase: int
    kind: str  # missing, invalid, different, leftover, surplus, renamed, building, unapplied, …
    name: str
    table: str = ""
    reason: str
    steps: tuple[Step, ...] = ()
    is_fault: bool = True  # whether --check fails because of it
    builds: Index | None = None  # what is built, for the estimate of its size


def make_plan(
    *, declared: State, actual: State, phases: Iterable[int] = tuple(PHASES)
) -> list[Change]:
    """Every difference, in the order in which it is to be repaired. Empty: all is as declared."""
    plan: list[Change] = []
    wanted = set(phases)
    if 1 in wanted:
        plan += _index_changes(declared, actual)
    if 2 in wanted:
        plan += _table_changes(declared, actual)
    if 3 in wanted:
        plan += _routine_changes(declared, actual, phase=3, kinds={"FUNCTION", "TRIGGER"})
        plan += _undeclared_triggers(declared, actual)
    if 4 in wanted:
        plan += _routine_changes(declared, actual, phase=4, kinds={"VIEW", "MATERIALIZED VIEW"})
    if 5 in wanted:
        plan += _extended_statistics_changes(declared, actual)
        plan += _statistics_changes(declared, actual, plan)
    return plan


def _quoted(*names: str) -> str:
    return sql.Identifier(*names).as_string(None)


# --------------------------------------------------------------------------- 1: indexes


def _index_changes(declared: State, actual: State) -> Iterator[Change]:
    """A view that is missing gets its indexes from its own file."""
    ours = {*declared.tables, *declared.matviews}
    found = sorted(actual.indexes.values(), key=lambda index: (index.table, index.name))
    others = [have for have in found if have.table in ours and have.name not in declared.indexes]
    left = [have for have in others if _is_leftover(have, declared)]
    for have in left:  # first: they bear the names that replacements get
        if not _is_of_use(have, declared, actual):
            yield _leftover(have, actual)
    for want in sorted(declared.indexes.values(), key=lambda index: (index.table, index.name)):
        if want.table in actual.relations:
            change = _index_change(want, declared, actual)
            if change is not None:
                yield change
    for have in others:
        if have not in left:
            is_surplus = have.name in declared.left_out
            yield _surplus_index(have, actual) if is_surplus else _undeclared_index(have)


def _index_change(want: Index, declared: State, actual: State) -> Change | None:
    have = actual.indexes.get(want.name)
    table = actual.relations[want.table]
    make = _Maker(schema=actual.schema, table=table)
    ready = _replacement(want, actual)
    if have is None:
        return _missing(want, declared, actual, make, ready)
    if have.table != want.table:
        return _change("different", want, f"is an index of {have.table}; rename that one", ())
    if not have.is_valid:
        if have.builder_pid is not None:
            reason = f"is being built by session {have.builder_pid}"
            return _change("building", want, reason, ())
        reason = "is invalid: a build was cut off"
        return _change("invalid", want, reason, make.repair(want, have, ready), builds=want)
    if have.form != want.form:
        reason = f"is {have.form}, declared is {want.form}"
        return _change("different", want, reason, make.replace(want, have, ready), builds=want)
    return None


def _missing(
    want: Index, declared: State, actual: State, make: _Maker, ready: Index | None
) -> Change:
    if ready is not None:
        builds = None if ready.is_valid else want
        steps = make.adopt(want, ready)
        return _change("missing", want, f"exists as {ready.name}", steps, builds=builds)
    twin = _twin(want, declared, actual)
    if twin is not None:
        return _change("renamed", want, f"exists as {twin.name}", make.rename(twin, want))
    return _change("missing", want, "is missing", make.build(want), builds=want)


def _change(
    kind: str, want: Index, reason: str, steps: tuple[Step, ...], builds: Index | None = None
) -> Change:
    if not steps and kind != "building":
        reason += "; this needs a migration"
    return Change(
        phase=1,
        kind=kind,
        name=want.name,
        table=want.table,
        reason=reason,
        steps=steps,
        builds=builds if steps else None,
    )


def _twin(want: Index, declared: State, actual: State) -> Index | None:
    """An index that is all but the name what is wanted, and that nobody else declares."""
    if want.constraint:
        return None
    for have in actual.indexes.values():
        is_same = have.table == want.table and have.form == want.form and have.is_valid
        if is_same and have.name not in declared.indexes and not LEFTOVER.match(have.name):
            return have
    return None


def _replacement(want: Index, actual: State) -> Index | None:
    """What a run that was cut off has built to take the place of an index, and can be used.

    That of a partitioned table may lack partitions: those that it has need not be built again.
    """
    have = actual.indexes.get(_with_suffix(want.name, REPLACEMENT))
    if have is None or have.table != want.table or have.constraint or have.builder_pid is not None:
        return None
    is_same = (have.using, have.is_unique) == (want.using, want.is_unique)
    is_partitioned = actual.relations[want.table].is_partitioned
    return have if is_same and (have.is_valid or is_partitioned) else None


def _is_of_use(have: Index, declared: State, actual: State) -> bool:
    """Whether it takes the place of an index that is not as declared."""
    for want in declared.indexes.values():
        if have.table == want.table and _replacement(want, actual) == have:
            change = _index_change(want, declared, actual)
            return change is not None and any(have.name in step.sql for step in change.steps)
    return False


def _leftover(have: Index, actual: State) -> Change:
    make = _Maker(schema=actual.schema, table=actual.relations[have.table])
    return Change(
        phase=1,
        kind="leftover",
        name=have.name,
        table=have.table,
        reason="is left over from a concurrent build that was cut off",
        steps=(make.discard(have.name),),
    )


def _surplus_index(have: Index, actual: State) -> Change:
    make = _Maker(schema=actual.schema, table=actual.relations[have.table])
    return Change(
        phase=1,
        kind="surplus",
        name=have.name,
        table=have.table,
        reason="is one that INDEX_PROFILE does without",
        steps=(make.retire(have),),
        is_fault=False,
    )


def _undeclared_index(have: Index) -> Change:
    validity = "" if have.is_valid else " and invalid: it slows writes and serves no query"
    return Change(
        phase=1,
        kind="undeclared",
        name=have.name,
        table=have.table,
        reason=f"is not declared{validity}",
        is_fault=False,
    )


def _is_leftover(have: Index, declared: State) -> bool:
    match = LEFTOVER.match(have.name)
    if match is None or have.constraint or have.builder_pid is not None:
        return False
    base = match["base"]  # PostgreSQL shortens long names to make room for the suffix
    return any(
        want.table == have.table and want.name.startswith(base)
        for want in declared.indexes.values()
    )


@dataclass(frozen=True, slots=True)
class _Maker:
    """Statements for the indexes of one table."""

    schema: str
    table: Table

    @property
    def _on(self) -> str:
        return _quoted(self.schema, self.table.name)

    @property
    def _online(self) -> str:
        return ONLINE.format(self.table.name)

    def _index(self, name: str) -> str:
        return _quoted(self.schema, name)

    def build(self, want: Index) -> tuple[Step, ...]:
        if self.table.is_partitioned:
            return () if want.constraint else self._build_partitioned(want)
        steps = (self._create(want, name=want.name),)
        return (*steps, self._constrain(want, want.name)) if want.constraint else steps

    def adopt(self, want: Index, ready: Index) -> tuple[Step, ...]:
        """Finish what a run that was cut off had built."""
        if want.constraint:
            return (self._constrain(want, ready.name),)
        missing = () if ready.is_valid else self._join_leaves(replace(want, name=ready.name))
        return (*missing, self._rename(ready.name, want.name))

    def repair(self, want: Index, have: Index, ready: Index | None) -> tuple[Step, ...]:
        if self.table.is_partitioned:  # the parent is valid once every partition has joined in
            return self._join_leaves(want)
        if have.constraint:  # cannot be dropped alone
            return (self._reindex(have),)
        return (self.drop(have.name), *(self.adopt(want, ready) if ready else self.build(want)))

    def replace(self, want: Index, have: Index, ready: Index | None) -> tuple[Step, ...]:
        """The new one is built beside the old one, so that queries always have one."""
        if self.table.is_partitioned:
            is_plain = not (want.constraint or have.constraint)
            return self._replace_partitioned(want, have, ready) if is_plain else ()
        is_bare = (have.using, have.is_unique, have.constraint) == (want.using, want.is_unique, "")
        if is_bare:  # its index alone is there
            return (self._constrain(want, have.name, before=have),)
        new = _with_suffix(want.name, REPLACEMENT)
        build = () if ready else (self._create(want, name=new),)
        if want.constraint or have.constraint:
            return (*build, self._swap(want, have, new))
        return (*build, self.retire(have), self._rename(new, want.name))

    def rename(self, have: Index, want: Index) -> tuple[Step, ...]:
        return (self._rename(have.name, want.name),)

    def drop(self, name: str, *, inverse: Step | None = None) -> Step:
        return Step(
            sql=f"DROP INDEX CONCURRENTLY IF EXISTS {self._index(name)};",
            lock=self._online,
            inverse=(inverse,) if inverse else (),
            is_concurrent=True,
        )

    def discard(self, name: str) -> Step:
        """Drop what nobody declared; PostgreSQL refuses CONCURRENTLY on a partitioned parent."""
        return self._drop_parent(name) if self.table.is_partitioned else self.drop(name)

    def retire(self, have: Index) -> Step:
        """Drop what was declared and is no longer wanted; its undoing builds it again."""
        if not self.table.is_partitioned:
            return self.drop(have.name, inverse=self._create(have, name=have.name))
        # Once the index is gone, the leaves' parts of it are gone too.
        bare = tuple(replace(leaf, indexes=()) for leaf in self.table.leaves)
        back = _Maker(self.schema, replace(self.table, leaves=bare))._build_partitioned(have)
        return self._drop_parent(have.name, inverse=back)

    def _create(self, index: Index, *, name: str) -> Step:
        unique = "UNIQUE " if index.is_unique else ""
        drop = self.drop(name)
        return Step(
            sql=f"CREATE {unique}INDEX CONCURRENTLY {_quoted(name)} ON {self._on}"
            f" USING {index.using};",
            lock=self._online,
            inverse=(drop,),
            builds=name,
            cleanup=drop.sql,
            is_concurrent=True,
        )

    def _rename(self, old: str, new: str) -> Step:
        def rename(source: str, target: str, inverse: tuple[Step, ...]) -> Step:
            return Step(
                sql=f"ALTER INDEX {self._index(source)} RENAME TO {_quoted(target)};",
                lock=ONLINE.format("the index"),
                inverse=inverse,
                is_concurrent=True,
            )

        return rename(old, new, (rename(new, old, ()),))

    def _reindex(self, have: Index) -> Step:
        name = _with_suffix(have.name, REPLACEMENT)
        return Step(
            sql=f"REINDEX INDEX CONCURRENTLY {self._index(have.name)};",
            lock=self._online,
            builds=have.name,
            cleanup=self.drop(name).sql,
            is_concurrent=True,
        )

    def _constrain(self, want: Index, index: str, *, before: Index | None = None) -> Step:
        """Make a constraint of an index; dropping the constraint takes the index along."""
        drop = Step(
            sql=f"ALTER TABLE {self._on} DROP CONSTRAINT IF EXISTS {_quoted(want.name)};",
            lock=INSTANT.format(self.table.name),
        )
        again = (self._create(before, name=before.name),) if before else ()
        return Step(
            sql=f"ALTER TABLE {self._on} {_add_constraint(want, index)};",
            lock=INSTANT.format(self.table.name),
            inverse=(drop, *again),
        )

    def _swap(self, want: Index, have: Index, new: str, *, with_inverse: bool = True) -> Step:
        """Put the index `new` in the place of `have` in one transaction."""
        name = _quoted(have.name)
        if have.constraint and want.constraint:
            text = f"ALTER TABLE {self._on} DROP CONSTRAINT {name}, {_add_constraint(want, new)};"
        elif have.constraint:
            rename = f"ALTER INDEX {self._index(new)} RENAME TO {_quoted(want.name)};"
            text = f"ALTER TABLE {self._on} DROP CONSTRAINT {name};\n{rename}"
        else:
            add = f"ALTER TABLE {self._on} {_add_constraint(want, new)};"
            text = f"DROP INDEX {self._index(have.name)};\n{add}"
        inverse = (
            (self._create(have, name=new), self._swap(have, want, new, with_inverse=False))
            if with_inverse
            else ()
        )
        return Step(sql=text, lock=INSTANT.format(self.table.name), inverse=inverse)

    # ---------------------------------------------------------------- partitioned tables

    def _drop_parent(self, name: str, *, inverse: tuple[Step, ...] = ()) -> Step:
        return Step(
            sql=f"DROP INDEX IF EXISTS {self._index(name)};",
            lock=INSTANT.format(f"{self.table.name} and its partitions"),
            inverse=inverse,
        )

    def _replace_partitioned(
        self, want: Index, have: Index, ready: Index | None
    ) -> tuple[Step, ...]:
        beside = replace(want, name=_with_suffix(want.name, REPLACEMENT))
        begun = self._join_leaves(beside) if ready else self._build_partitioned(beside)
        return (
            *begun,
            self.retire(have),
            self._rename(beside.name, want.name),
        )

    def _build_partitioned(self, want: Index) -> tuple[Step, ...]:
        """PostgreSQL refuses CONCURRENTLY on the parent: an empty shell, then leaf by leaf."""
        unique = "UNIQUE " if want.is_unique else ""
        shell = Step(
            sql=f"CREATE {unique}INDEX {_quoted(want.name)} ON ONLY {self._on} USING {want.using};",
            lock=f"SHARE on {self.table.name}: writes wait, for an instant",
            inverse=(self._drop_parent(want.name),),
        )
        return (shell, *self._join_leaves(want))

    def _join_leaves(self, want: Index) -> tuple[Step, ...]:
        steps = [step for leaf in self.table.leaves for step in self._join_leaf(want, leaf)]
        if steps:
            steps[-1] = replace(steps[-1], builds=want.name)
        return tuple(replace(step, goes_with=want.name) for step in steps)

    def _join_leaf(self, want: Index, leaf: Leaf) -> Iterator[Step]:
        if any(index.parent == want.name for index in leaf.indexes):
            return
        name = _leaf_name(leaf.name, want.name)
        ready = next(
            (
                index.name
                for index in leaf.indexes
                if (index.using, index.is_unique) == (want.using, want.is_unique)
                and index.is_valid
                and index.parent is None
            ),
            "",
        )
        if not ready:
            make = _Maker(leaf.schema, Table(name=leaf.name))
            if any(index.name == name for index in leaf.indexes):
                yield make.drop(name)
            # Undone with the parent, which takes the leaves that joined it along.
            yield replace(make._create(want, name=name), inverse=())
        child = _quoted(leaf.schema, ready or name)
        yield Step(
            sql=f"ALTER INDEX {self._index(want.name)} ATTACH PARTITION {child};",
            lock=INSTANT.format("the partition's index"),
        )


def _add_constraint(want: Index, index_name: str) -> str:
    kind = {"p": "PRIMARY KEY", "u": "UNIQUE"}[want.constraint]
    return (
        f"ADD CONSTRAINT {_quoted(want.name)} {kind} USING INDEX {_quoted(index_name)}"
        f"{want.constraint_suffix}"
    )


def index_built(index: Index, actual: State) -> tuple[Step, ...]:
    """Builds an index online."""
    return _Maker(schema=actual.schema, table=actual.relations[index.table]).build(index)


def index_dropped(index: Index, actual: State) -> Step:
    """Drops an index, online where PostgreSQL can; its inverse builds it again."""
    table = actual.relations[index.table]
    bare = replace(table, leaves=tuple(replace(leaf, indexes=()) for leaf in table.leaves))
    make = _Maker(schema=actual.schema, table=bare)
    if table.is_partitioned:
        return make._drop_parent(index.name, inverse=make.build(index))
    return make.drop(index.name, inverse=make._create(index, name=index.name))


def _with_suffix(name: str, suffix: str) -> str:
    return name.encode()[: NAME_BYTES - len(suffix)].decode(errors="ignore") + suffix


def _leaf_name(leaf: str, index: str) -> str:
    digest = hashlib.sha256(index.encode()).hexdigest()[:8]
    return _with_suffix(leaf, f"_{digest}_idx")


# --------------------------------------------------------------------------- 2: tables


def _table_changes(declared: State, actual: State) -> Iterator[Change]:
    for name, is_ours in declared.unapplied.items():
        yield Change(
            phase=2,
            kind="unapplied",
            name=name,
            reason="is a migration that was not applied: run init_db",
            is_fault=is_ours,
        )
    for table in sorted(set(declared.tables) - set(actual.tables)):
        yield Change(
            phase=2,
            kind="missing",
            name=table,
            table=table,
            reason="is missing though its migration was applied: restore it from a backup",
        )
    for name in sorted(set(declared.tables) & set(actual.tables)):
        yield from _parameter_changes(declared.tables[name], actual.tables[name], actual.schema)
    for name, reason in declared.unverifiable.items():
        yield Change(
            phase=2,
            kind="unverifiable",
            name=name,
            reason=f"cannot be made from its declaration: {reason}",
        )


def _parameter_changes(want: Table, have: Table, schema: str) -> Iterator[Change]:
    """A parameter that nobody declares is the operator's own, and stays."""
    found = dict(have.parameters)
    differing = {name: value for name, value in want.parameters if found.get(name) != value}
    if not differing:
        return
    former = {name: found[name] for name in differing if name in found}
    told = [f"{name} = {value}, not {former.get(name, 'set')}" for name, value in differing.items()]
    yield Change(
        phase=2,
        kind="different",
        name=want.name,
        table=want.name,
        reason=f"is to have {'; '.join(told)}",
        steps=(_set_parameters(schema, want.name, differing, former),),
    )


def _set_parameters(
    schema: str, table: str, wanted: dict[str, str], former: dict[str, str]
) -> Step:
    added = [name for name in wanted if name not in former]
    undo = [_alter(schema, table, "SET", _pairs(former))] if former else []
    undo += [_alter(schema, table, "RESET", ", ".join(added))] if added else []
    return replace(_alter(schema, table, "SET", _pairs(wanted)), inverse=tuple(undo))


def _pairs(parameters: dict[str, str]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in parameters.items())


def _alter(schema: str, table: str, verb: str, what: str) -> Step:
    return Step(
        sql=f"ALTER TABLE {_quoted(schema, table)} {verb} ({what});",
        lock=ONLINE.format(table),
        is_concurrent=True,
    )


# --------------------------------------------------------------------------- 3, 4: SQL files


def _routine_changes(
    declared: State, actual: State, *, phase: int, kinds: set[str]
) -> Iterator[Change]:
    wrong: dict[str, list[tuple[Routine, Routine | None]]] = {}
    sources: dict[str, SQLSource] = {}
    for want in declared.routines.values():
        have = actual.routines.get(want.label)
        if want.kind in kinds and want.source and not _same(want, have):
            sources[want.source.name] = want.source
            wrong.setdefault(want.source.name, []).append((want, have))
    # sorted() is stable: files of one migration keep the order in which they ran.
    for source in sorted(sources.values(), key=lambda source: source.place):
        yield _file_change(phase, source, wrong[source.name])


def new_views(declared: State, actual: State) -> list[str]:
    """The views that are to be made, which nobody but their owner may read yet."""
    kinds = {"VIEW", "MATERIALIZED VIEW"}
    missing = [want for want in declared.routines.values() if want.label not in actual.routines]
    return sorted(want.name for want in missing if want.kind in kinds)


def _same(want: Routine, have: Routine | None) -> bool:
    return have is not None and (want.definition, want.comments, want.shape) == (
        have.definition,
        have.comments,
        have.shape,
    )


def _file_change(
    phase: int, source: SQLSource, pairs: list[tuple[Routine, Routine | None]]
) -> Change:
    lines: list[str] = []
    undo: list[str] = []
    for want, have in pairs:
        if have is None:
            undo.append(f"DROP {want.kind} IF EXISTS {want.name};")
            continue
        drop = [f"DROP {have.kind} {have.name};"] if have.shape != want.shape else []
        lines += drop
        undo += [*drop, have.definition, *have.indexes, *have.comments, *have.grants]
    lines.append(_replaceable(source.statements))
    lines += [grant for _, have in pairs if have for grant in have.grants]
    lock = _routine_lock(pairs)
    labels = [want.label for want, _ in pairs]
    is_missing = all(have is None for _, have in pairs)
    return Change(
        phase=phase,
        kind="missing" if is_missing else "different",
        name=", ".join(labels),
        reason="is missing" if is_missing else f"is not what {source.name} makes",
        steps=(
            Step(
                sql="\n".join(lines),
                lock=lock,
                inverse=(Step(sql="\n".join(undo), lock=lock),),
            ),
        ),
    )


def _replaceable(statements: str) -> str:
    """A frozen file, so that it runs over what is there and keeps grants and dependents."""
    text = CREATE.sub(r"CREATE OR REPLACE \1", statements)
    text = CREATE_ONCE.sub(r"CREATE \1 IF NOT EXISTS", text)
    return DROP.sub(r"DROP \1 IF EXISTS ", text).strip()


def _routine_lock(pairs: list[tuple[Routine, Routine | None]]) -> str:
    kinds = {want.kind for want, _ in pairs}
    if "TRIGGER" in kinds:
        return "SHARE ROW EXCLUSIVE on the trigger's table: writes wait, for an instant"
    is_view = kinds & {"VIEW", "MATERIALIZED VIEW"}
    return INSTANT.format("the view") if is_view else "none on tables"


def _undeclared_triggers(declared: State, actual: State) -> Iterator[Change]:
    for have in actual.routines.values():
        table = have.name.rpartition(" ON ")[2]
        is_ours = have.kind == "TRIGGER" and table in declared.tables
        if is_ours and have.label not in declared.routines:
            yield Change(
                phase=3,
                kind="undeclared",
                name=have.label,
                table=table,
                reason="is not declared",
                is_fault=False,
            )


# --------------------------------------------------------------------------- 5: statistics


def _extended_statistics_changes(declared: State, actual: State) -> Iterator[Change]:
    """What is missing on the table or any of its partitions, or is not what its name declares."""
    for want in declared.statistics:
        table = actual.tables.get(want.root)
        if table is None:
            continue
        places = [(actual.schema, table.name), *((leaf.schema, leaf.name) for leaf in table.leaves)]
        wrong, steps = 0, list[Step]()
        for schema, name in places:
            there = [
                have for have in actual.statistics if (have.schema, have.table) == (schema, name)
            ]
            if all(have.form != want.form for have in there):
                mine = _statistics_name(want, name)
                former = next((have for have in there if have.name == mine), None)
                wrong += former is not None
                steps += _statistics_steps(want, schema, name, former)
        if steps:
            yield Change(
                phase=5,
                kind="different" if wrong else "missing",
                name=want.name,
                table=want.root,
                reason=f"is not {want.form}" if wrong else "is missing",
                steps=tuple(steps),
            )


def _statistics_name(want: ExtendedStatistics, table: str) -> str:
    """On a partition the name that LIKE gives them."""
    if table == want.root:
        return want.name
    columns = want.form.partition(" ON ")[2].replace(", ", "_")
    return _with_suffix(f"{table}_{columns}", "_stat")


def _statistics_steps(
    want: ExtendedStatistics, schema: str, table: str, former: ExtendedStatistics | None
) -> Iterator[Step]:
    """They are empty until the next ANALYZE; of a parent nobody asks for them."""
    name, on = _quoted(schema, _statistics_name(want, table)), _quoted(schema, table)

    def step(text: str, *inverse: Step) -> Step:
        return Step(sql=text, lock=ONLINE.format(table), inverse=inverse, is_concurrent=True)

    drop = f"DROP STATISTICS IF EXISTS {name};"
    if former is not None:
        yield step(drop, step(f"CREATE STATISTICS {name} {former.form} FROM {on};"))
    yield step(f"CREATE STATISTICS {name} {want.form} FROM {on};", step(drop))
    if table != want.root:
        yield step(f"ANALYZE {on};")


def _statistics_changes(declared: State, actual: State, plan: list[Change]) -> Iterator[Change]:
    with_new_expressions = {
        change.table
        for change in plan
        if change.builds and any("(" in key for key in change.builds.keys)
    }
    for name in sorted(set(declared.tables) & set(actual.tables)):
        table = actual.tables[name]
        reason = _why_analyze(table)
        if not reason and name in with_new_expressions:
            reason = "gets an index on an expression, which has statistics of its own"
        if reason:
            step = Step(
                sql=f"ANALYZE {_quoted(actual.schema, name)};",
                lock=ONLINE.format(name),
                is_concurrent=True,
            )
            yield Change(
                phase=5,
                kind="stale",
                name=name,
                table=name,
                reason=reason,
                steps=(step,),
                is_fault=False,
            )


def _why_analyze(table: Table) -> str:
    days = table.days_since_analyze
    if days is None and table.is_guessed:
        return "was never analysed"
    if table.is_partitioned and days is not None and days > ANALYZE_PARENT_DAYS:
        return f"was analysed {days:.0f} days ago, and autovacuum skips parents"
    if table.changes > ANALYZE_CHANGES + ANALYZE_SHARE * table.rows:
        return f"changed in {table.changes:,} rows since it was analysed"
    return ""
