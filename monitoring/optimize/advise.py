"""What could be better, judged from facts. Pure: nothing here talks to a database or changes one.

Each advice says what was seen, what one would do about it, what undoes that, and what to mind.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from psycopg import sql
from rich.filesize import decimal

from monitoring.optimize.facts import Facts, ForeignKeyFact, HolderFact, IndexFact, TableFact
from monitoring.optimize.plan import Change, Step, index_built, index_dropped
from monitoring.optimize.state import Index

__all__ = ["KINDS", "Advice", "Limits", "advise", "is_suspicious", "notes", "with_use"]

KINDS = {
    "holder": "What holds cleaning up back",
    "autovacuum": "Tables that autovacuum does not keep up with",
    "bloat": "Indexes larger than they have to be",
    "redundant": "Indexes that another one makes redundant",
    "unused": "Indexes that nobody uses",
    "foreign_key": "Foreign keys without an index",
    "hot": "Tables whose updates touch every index",
}
DAY = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """From when on something is worth a word."""

    unused_days: float = 30
    unused_bytes: int = 1_000_000
    bloat_bytes: int = 10_000_000
    bloat_share: float = 0.5  # of the index; one that is filled at random settles at 0.25
    bloat_density: float = 60  # percent of a leaf page; below it a measurement confirms
    foreign_key_rows: int = 10_000
    vacuum_factor: float = 2
    vacuum_rows: int = 10_000
    updates: int = 10_000
    hot_share: float = 0.5
    held_seconds: float = 300
    held_transactions: int = 1_000_000  # where there is no telling for how long


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    kind: str
    subject: str
    sentence: str
    evidence: dict[str, Any]
    steps: tuple[Step, ...] = ()
    caution: str

    def as_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "subject": self.subject,
            "sentence": self.sentence,
            "evidence": self.evidence,
            "sql": [step.sql for step in self.steps],
            "inverse": [inverse.sql for step in self.steps for inverse in step.inverse],
            "locks": [step.lock for step in self.steps],
            "caution": self.caution,
        }


def advise(facts: Facts, limits: Limits | None = None) -> list[Advice]:
    """Everything worth a word, in the order of KINDS."""
    limits = limits or Limits()
    return [
        *_holders(facts, limits),
        *_autovacuum(facts, limits),
        *_bloat(facts, limits),
        *_redundant(facts),
        *_unused(facts, limits),
        *_foreign_keys(facts, limits),
        *_hot(facts, limits),
    ]


def notes(facts: Facts, limits: Limits | None = None) -> list[str]:
    """What was not judged, and why."""
    limits = limits or Limits()
    found = []
    days = _days(facts.at, facts.since)
    if days < limits.unused_days:
        found.append(
            f"Statistics cover {days:.1f} days, since {facts.since:%Y-%m-%d}: no index is called "
            f"unused before {limits.unused_days:g}."
        )
    if facts.replica:
        found.append(
            f"The replica could not be asked ({facts.replica}): it may use indexes that look "
            "unused here, so none is called unused."
        )
    if not facts.sees_all:
        found.append(
            "This role does not see what other roles' sessions do (pg_read_all_stats), so an old "
            "snapshot may be missing."
        )
    return found


def _days(later: datetime, earlier: datetime) -> float:
    return (later - earlier).total_seconds() / DAY


def _quoted(*names: str) -> str:
    return sql.Identifier(*names).as_string(None)


# --------------------------------------------------------------------------- unused


def _unused(facts: Facts, limits: Limits) -> Iterator[Advice]:
    if facts.replica:
        return
    redundant = {short.name for short, _ in _redundant_pairs(facts)}
    for index in sorted(facts.indexes, key=lambda index: -index.bytes):
        idle = _idle_since(index, facts)
        if idle is None or index.name in redundant or index.bytes < limits.unused_bytes:
            continue
        if _days(facts.at, idle) >= limits.unused_days:
            yield _unused_advice(index, facts, idle)


def _idle_since(index: IndexFact, facts: Facts) -> datetime | None:
    """Since when no query has used it; None for one that is used or has other duties."""
    if index.is_unique or index.is_needed or not index.is_valid:
        return None
    if index.last_scan is not None:
        return index.last_scan
    return None if index.scans else _counted_since(index, facts)


def _counted_since(index: IndexFact, facts: Facts) -> datetime:
    return max(facts.since, index.made or facts.since)


def _unused_advice(index: IndexFact, facts: Facts, idle: datetime) -> Advice:
    days = _days(facts.at, idle)
    return Advice(
        kind="unused",
        subject=index.name,
        sentence=f"No query has used {index.name} on {index.table} since {idle:%Y-%m-%d}, "
        f"{days:.0f} days; it takes {decimal(index.bytes)}.{_declared(index, facts)}",
        evidence={
            "table": index.table,
            "bytes": index.bytes,
            "scans": index.scans,
            "last_scan": index.last_scan and index.last_scan.isoformat(),
            "counted_since": _counted_since(index, facts).isoformat(),
            "idle_days": round(days, 1),
            "is_declared": index.is_declared,
        },
        steps=_drop(index, facts),
        caution=_drop_caution(index, "Rare work, such as a yearly report, may still want it."),
    )


def _declared(index: IndexFact, facts: Facts) -> str:
    """A declared index is never dropped without a word about what it is for."""
    if not index.is_declared:
        return " It is not declared."
    serves = facts.serves.get(index.name)
    said = f"; the catalogue says: {'; '.join(serves)}" if serves else ", without a catalogue entry"
    return f" It is declared{said}."


def _drop(index: IndexFact, facts: Facts) -> tuple[Step, ...]:
    have = facts.actual.indexes.get(index.name)
    return (index_dropped(have, facts.actual),) if have else ()


def _drop_caution(index: IndexFact, mind: str) -> str:
    if not index.is_declared:
        return mind
    return (
        f"{mind} Take it out of Meta.indexes and the catalogue with a migration: dropped by hand, "
        "the next optimize_db builds it again."
    )


# --------------------------------------------------------------------------- redundant


def _redundant(facts: Facts) -> Iterator[Advice]:
    for short, long in _redundant_pairs(facts):
        how = "has the same columns" if _is_twin(short, long) else "begins with the same columns"
        yield Advice(
            kind="redundant",
            subject=short.name,
            sentence=f"{long.name} {how} as {short.name} on {short.table} and serves its queries."
            + _declared(short, facts),
            evidence={
                "table": short.table,
                "served_by": long.name,
                "columns": list(short.columns),
                "columns_of_other": list(long.columns),
                "bytes": short.bytes,
                "bytes_of_other": long.bytes,
                "scans": short.scans,
                "is_declared": short.is_declared,
            },
            steps=_drop(short, facts),
            caution=_drop_caution(short, _redundant_caution(short, long)),
        )


def _redundant_caution(short: IndexFact, long: IndexFact) -> str:
    if long.bytes > 2 * max(short.bytes, 1):
        return (
            f"{long.name} is {long.bytes / max(short.bytes, 1):.1f} times as large: a query that "
            "reads much of it reads more pages."
        )
    return f"Queries move to {long.name}: look at its scans afterwards."


def _redundant_pairs(facts: Facts) -> list[tuple[IndexFact, IndexFact]]:
    """Each index that can go, with the one that stays for it; of twins one stays."""
    gone: dict[str, tuple[IndexFact, IndexFact]] = {}
    for short in sorted(facts.indexes, key=_worth):
        for long in sorted(facts.indexes, key=_worth, reverse=True):
            if long.name not in gone and _serves(long, short):
                gone[short.name] = (short, long)
                break
    return sorted(gone.values(), key=lambda pair: (pair[0].table, pair[0].name))


def _worth(index: IndexFact) -> tuple[bool, bool, bool, int, str]:
    """Of twins the one that is worth more stays."""
    return (index.is_needed, index.is_unique, index.is_declared, -index.bytes, index.name)


def _serves(long: IndexFact, short: IndexFact) -> bool:
    """Whether every query that `short` serves is served by `long`, which does its duties too."""
    is_same_place = (long.table, long.method, long.predicate) == (
        short.table,
        short.method,
        short.predicate,
    )
    if long.name == short.name or not is_same_place or not long.is_valid or short.is_needed:
        return False
    if _is_twin(short, long):
        return (long.is_unique or not short.is_unique) and _worth(long) > _worth(short)
    covered = {*long.columns, *long.include}
    return (
        short.method == "btree"
        and not short.is_unique
        and len(short.keys) <= len(long.keys)
        and long.keys[: len(short.keys)] == short.keys
        and _is_ordered_alike(short, long)
        and covered.issuperset(short.include)
    )


def _is_twin(short: IndexFact, long: IndexFact) -> bool:
    same = short.keys == long.keys and set(short.include) == set(long.include)
    return same and _is_ordered_alike(short, long)


def _is_ordered_alike(short: IndexFact, long: IndexFact) -> bool:
    """In the same order, or in the reverse of it throughout: an index is read both ways."""
    begins = long.options[: len(short.options)]
    return begins in {short.options, tuple(option ^ 3 for option in short.options)}


# --------------------------------------------------------------------------- bloat


def is_suspicious(index: IndexFact, limits: Limits | None = None) -> bool:
    """Whether an index looks much larger than a fresh one."""
    limits = limits or Limits()
    if index.fresh_bytes is None or not index.bytes:
        return False
    spare = index.bytes - index.fresh_bytes
    return spare >= limits.bloat_bytes and spare / index.bytes >= limits.bloat_share


def _bloat(facts: Facts, limits: Limits) -> Iterator[Advice]:
    for index in sorted(facts.indexes, key=lambda index: -index.bytes):
        density = index.leaf_density
        is_refuted = density is not None and density >= limits.bloat_density
        if is_suspicious(index, limits) and not is_refuted:
            yield _bloat_advice(index, facts)


def _bloat_advice(index: IndexFact, facts: Facts) -> Advice:
    fresh = index.fresh_bytes or 0
    density = index.leaf_density
    proof = (
        f"pgstattuple confirms it: its leaf pages are {density:.0f} % full."
        if density is not None
        else "This is an estimate from planner statistics; pgstattuple would measure it."
    )
    name = _quoted(facts.actual.schema, index.name)
    step = Step(
        sql=f"REINDEX INDEX CONCURRENTLY {name};",
        lock=f"SHARE UPDATE EXCLUSIVE on {index.table}: reads and writes go on",
        is_concurrent=True,
    )
    return Advice(
        kind="bloat",
        subject=index.name,
        sentence=f"{index.name} on {index.table} takes {decimal(index.bytes)}; a fresh one would "
        f"take about {decimal(fresh)}. {proof}",
        evidence={
            "table": index.table,
            "bytes": index.bytes,
            "fresh_bytes_estimated": fresh,
            "leaf_density_percent": density and round(density, 1),
        },
        steps=(step,),
        caution=f"Needs {decimal(fresh)} of disk while it runs and waits for older transactions; "
        "cut off, it leaves an index that ends in _ccnew, which optimize_db removes. There is "
        "nothing to undo.",
    )


# --------------------------------------------------------------------------- foreign keys


def _foreign_keys(facts: Facts, limits: Limits) -> Iterator[Advice]:
    rows = _rows_by_table(facts)
    for key in facts.foreign_keys:
        has_index = any(_finds(index, key) for index in facts.indexes)
        count = rows.get(key.table, 0)
        is_known = any(index.table == key.table for index in facts.indexes)
        if is_known and not has_index and count >= limits.foreign_key_rows:
            yield _foreign_key_advice(key, count, facts)


def _rows_by_table(facts: Facts) -> dict[str, int]:
    rows: dict[str, int] = {}
    for table in facts.tables:
        rows[table.root] = rows.get(table.root, 0) + table.rows
    return rows


def _finds(index: IndexFact, key: ForeignKeyFact) -> bool:
    """Whether it leads to the rows with given values of the key's columns."""
    begins = set(index.columns[: len(key.columns)])
    wanted = {_bare(column) for column in key.columns}
    whole = {"", *(f"({column} IS NOT NULL)" for column in wanted)}
    return (
        index.table == key.table
        and index.is_valid
        and index.method in {"btree", "hash"}
        and begins == wanted
        and index.predicate in whole
    )


def _bare(column: str) -> str:
    """As PostgreSQL prints it: quoted where it has to be."""
    is_plain = column.isidentifier() and column.islower() and column.isascii()
    return column if is_plain else _quoted(column)


def _foreign_key_advice(key: ForeignKeyFact, rows: int, facts: Facts) -> Advice:
    columns = ", ".join(map(_bare, key.columns))
    wanted = Index(
        table=key.table,
        name=f"idx_{key.table}_{'_'.join(key.columns)}"[:63],
        form="",
        using=f"btree ({columns})",
    )
    return Advice(
        kind="foreign_key",
        subject=f"{key.table}.{columns}",
        sentence=f"Deleting from {key.target} reads all of {key.table}, about {rows:,} rows, for "
        f"{key.rule} on {columns}: no index begins with it.",
        evidence={"table": key.table, "rows": rows, "target": key.target, "rule": key.rule},
        steps=index_built(wanted, facts.actual) if key.table in facts.actual.relations else (),
        caution="Every insert pays for it: worth it where such deletes happen. Declare it in "
        "Meta.indexes as well, or it counts as undeclared.",
    )


# --------------------------------------------------------------------------- autovacuum


def _autovacuum(facts: Facts, limits: Limits) -> Iterator[Advice]:
    for table in sorted(facts.tables, key=lambda table: -table.dead):
        bound = max(limits.vacuum_factor * table.vacuum_at, limits.vacuum_rows)
        if table.dead >= bound:
            yield _autovacuum_advice(table, facts)


def _autovacuum_advice(table: TableFact, facts: Facts) -> Advice:
    last = f"{table.vacuumed:%Y-%m-%d %H:%M} UTC" if table.vacuumed else "never"
    times = table.dead / max(table.vacuum_at, 1)
    why = "" if table.is_autovacuumed else " Autovacuum is switched off for it."
    return Advice(
        kind="autovacuum",
        subject=table.name,
        sentence=f"{table.name} has about {table.dead:,} dead rows, {times:.1f} times the "
        f"{table.vacuum_at:,.0f} at which autovacuum is to begin; last vacuumed: {last}.{why}",
        evidence={
            "dead_rows": table.dead,
            "rows": table.rows,
            "begins_at": round(table.vacuum_at),
            "last_vacuum": table.vacuumed and table.vacuumed.isoformat(),
            "is_autovacuumed": table.is_autovacuumed,
        },
        steps=tuple(_vacuum_steps(table, facts)),
        caution="It reads the whole table. While something holds cleaning up back (see above), "
        "dead rows stay. There is nothing to undo in a VACUUM.",
    )


def _vacuum_steps(table: TableFact, facts: Facts) -> Iterator[Step]:
    name = _quoted(facts.actual.schema, table.name)
    lock = f"SHARE UPDATE EXCLUSIVE on {table.name}: reads and writes go on"
    yield Step(sql=f"VACUUM (ANALYZE) {name};", lock=lock, is_concurrent=True)
    if not table.is_autovacuumed:
        off = Step(sql=f"ALTER TABLE {name} SET (autovacuum_enabled = false);", lock=lock)
        on = f"ALTER TABLE {name} RESET (autovacuum_enabled);"
        yield Step(sql=on, lock=lock, inverse=(off,))


# --------------------------------------------------------------------------- HOT updates


def _hot(facts: Facts, limits: Limits) -> Iterator[Advice]:
    for table in sorted(facts.tables, key=lambda table: table.hot_updates - table.updates):
        if table.updates < limits.updates:
            continue
        share = table.hot_updates / table.updates
        if share < limits.hot_share:
            yield _hot_advice(table, facts, share)


def _hot_advice(table: TableFact, facts: Facts, share: float) -> Advice:
    candidates = [
        index for index in facts.indexes if index.table == table.root and not index.is_needed
    ]
    named = ", ".join(f"{index.name} ({', '.join(index.columns)})" for index in candidates)
    moved = _moved_share(table)
    return Advice(
        kind="hot",
        subject=table.name,
        sentence=f"Only {share:.0%} of {table.updates:,} updates of {table.name} stayed on their "
        f"page and off its indexes. {_why_not_hot(moved)} Indexes that may hold a column that "
        f"changes: {named or 'none but those of constraints'}.",
        evidence={
            "updates": table.updates,
            "hot_share": round(share, 3),
            "moved_share": moved and round(moved, 3),
            "fillfactor": table.fillfactor,
            "indexes": [index.name for index in candidates],
        },
        steps=tuple(_fillfactor_steps(table, facts)),
        caution="Room in a page helps new pages only, and only updates that change no column of an "
        "index, a predicate's included: for others the index has to go.",
    )


def _moved_share(table: TableFact) -> float | None:
    """Of the updates that were not HOT: how many found no room on their page."""
    cold = table.updates - table.hot_updates
    return table.moved_updates / cold if table.moved_updates is not None and cold else None


def _why_not_hot(moved: float | None) -> str:
    if moved is None:
        return "Either a page had no room or an indexed column changed; PostgreSQL 16 tells which."
    if moved > 0.5:
        return f"{moved:.0%} of the others found no room on their page."
    return f"{1 - moved:.0%} of the others had room and changed an indexed column."


def _fillfactor_steps(table: TableFact, facts: Facts) -> Iterator[Step]:
    moved = _moved_share(table)
    if table.fillfactor < 100 or (moved is not None and moved <= 0.5):
        return
    name = _quoted(facts.actual.schema, table.name)
    lock = f"SHARE UPDATE EXCLUSIVE on {table.name}: reads and writes go on"
    back = Step(sql=f"ALTER TABLE {name} RESET (fillfactor);", lock=lock)
    yield Step(sql=f"ALTER TABLE {name} SET (fillfactor = 85);", lock=lock, inverse=(back,))


# --------------------------------------------------------------------------- old snapshots


def _holders(facts: Facts, limits: Limits) -> Iterator[Advice]:
    for holder in sorted(facts.holders, key=lambda holder: -holder.transactions):
        is_old = (holder.seconds or 0) >= limits.held_seconds
        if is_old or holder.transactions >= limits.held_transactions:
            yield _holder_advice(holder)


def _holder_advice(holder: HolderFact) -> Advice:
    since = f" for {_span(holder.seconds)}" if holder.seconds is not None else ""
    statement, caution = _END[holder.kind]
    value = holder.name if statement.startswith("SELECT pg_terminate") else _literal(holder.name)
    active = "" if holder.is_active else " Nobody reads from it."
    return Advice(
        kind="holder",
        subject=f"{holder.kind} {holder.name}",
        sentence=f"{holder.kind.capitalize()} {holder.name}, {holder.who}, keeps dead rows"
        f"{since}: {holder.transactions:,} transactions began since.{active}",
        evidence={
            "who": holder.who,
            "transactions": holder.transactions,
            "seconds": holder.seconds and round(holder.seconds),
            "is_active": holder.is_active,
        },
        steps=(Step(sql=statement.format(value), lock="none on tables"),),
        caution=caution,
    )


def _span(seconds: float) -> str:
    if seconds >= DAY:
        return f"{seconds / DAY:.1f} days"
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.0f} minutes"


def _literal(text: str) -> str:
    return sql.Literal(text).as_string(None)


# What ends each of them, and what that costs. None of it can be undone.
_END = {
    "session": (
        "SELECT pg_terminate_backend({});",
        "Its transaction is rolled back and cannot be brought back: ask its owner first.",
    ),
    "standby": (
        "SELECT pg_terminate_backend({});",
        "The standby connects again and asks for the same: end the long query there, or switch "
        "hot_standby_feedback off, which may then cancel queries there.",
    ),
    "prepared transaction": (
        "ROLLBACK PREPARED {};",
        "What it did is lost for good: ask its transaction manager whether it is to COMMIT.",
    ),
    "replication slot": (
        "SELECT pg_drop_replication_slot({});",
        "Whoever reads from it has to be set up anew; a slot that is in use cannot be dropped.",
    ),
}


# --------------------------------------------------------------------------- in a plan


def with_use(plan: list[Change], facts: Facts, limits: Limits | None = None) -> list[Change]:
    """A plan whose notices also say which index is redundant, and since when one is unused."""
    limits = limits or Limits()
    found = {index.name: index for index in facts.indexes}
    served = {short.name: long for short, long in _redundant_pairs(facts)}
    named = [_with_use(change, found.get(change.name), served, facts) for change in plan]
    unused = list(_unused_changes(facts, limits))
    ends = max((place for place, change in enumerate(named, 1) if change.phase == 1), default=0)
    return [*named[:ends], *unused, *named[ends:]]


def _with_use(
    change: Change, index: IndexFact | None, served: dict[str, IndexFact], facts: Facts
) -> Change:
    if change.kind != "undeclared" or index is None:
        return change
    if other := served.get(index.name):
        how = "has the same columns" if _is_twin(index, other) else "begins with its columns"
        return replace(change, kind="redundant", reason=f"{change.reason}, and {other.name} {how}")
    idle = _idle_since(index, facts)
    return replace(change, reason=f"{change.reason}; {_no_scan(idle, facts)}") if idle else change


def _no_scan(since: datetime, facts: Facts) -> str:
    return f"no scan since {since:%Y-%m-%d}, {_days(facts.at, since):.0f} days"


def _unused_changes(facts: Facts, limits: Limits) -> Iterator[Change]:
    """Of declared indexes: each one by name after long enough, before that how many."""
    young = 0
    for index in facts.indexes:
        idle = _idle_since(index, facts) if index.is_declared else None
        if idle is None:
            continue
        if _days(facts.at, idle) < limits.unused_days:
            young += 1
            continue
        yield _notice(
            index.name, index.table, f"is declared; {_no_scan(idle, facts)}: see --advise"
        )
    if young:
        reason = f"had no scan, but for less than {limits.unused_days:g} days: too early to judge"
        yield _notice(f"{young} of {len(facts.indexes)} indexes", "", reason)


def _notice(name: str, table: str, reason: str) -> Change:
    return Change(phase=1, kind="unused", name=name, table=table, reason=reason, is_fault=False)
