"""What optimize_db --advise makes of facts, without a database."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from monitoring.optimize.advise import Advice, Limits, advise, notes, with_use
from monitoring.optimize.facts import Facts, ForeignKeyFact, HolderFact, IndexFact, TableFact
from monitoring.optimize.plan import Change
from monitoring.optimize.state import Index, Leaf, State, Table

AT = datetime(2026, 6, 15, 12, tzinfo=UTC)
DAY = timedelta(days=1)
MEGABYTE = 1_000_000


def index(name: str, *columns: str, **fields: Any) -> IndexFact:
    told = {"table": "t", "bytes": 5 * MEGABYTE, "scans": 7, "options": (0,) * len(columns)}
    return IndexFact(name=name, columns=columns, keys=columns, **{**told, **fields})


def facts(*indexes: IndexFact, **fields: Any) -> Facts:
    state = State(schema="public", tables={"t": Table(name="t")})
    for fact in indexes:
        using = f"btree ({', '.join(fact.columns)})"
        state.indexes[fact.name] = Index(table="t", name=fact.name, form=using, using=using)
    told = {"at": AT, "since": AT - 90 * DAY, "version": 160_000, "actual": state}
    return Facts(indexes=indexes, **{**told, **fields})


def one(found: Facts, limits: Limits | None = None) -> Advice:
    (advice,) = advise(found, limits)
    return advice


# --------------------------------------------------------------------------- unused


def test_an_index_that_nobody_used_is_named_with_what_drops_it_and_builds_it_again() -> None:
    advice = one(facts(index("idle", "a", scans=0, is_declared=False)))
    assert advice.kind == "unused"
    assert advice.sentence == (
        "No query has used idle on t since 2026-03-17, 90 days; it takes 5.0 MB. "
        "It is not declared."
    )
    told = advice.as_dict()
    assert told["sql"] == ['DROP INDEX CONCURRENTLY IF EXISTS "public"."idle";']
    assert told["inverse"] == ['CREATE INDEX CONCURRENTLY "idle" ON "public"."t" USING btree (a);']


def test_a_declared_index_says_what_it_serves_and_that_a_migration_has_to_drop_it() -> None:
    found = facts(index("idle", "a", scans=0), serves={"idle": ("a page (each view)",)})
    advice = one(found)
    assert "It is declared; the catalogue says: a page (each view)." in advice.sentence
    assert "Take it out of Meta.indexes" in advice.caution


@pytest.mark.parametrize(
    "used",
    [
        {"scans": 1},
        {"scans": 9, "last_scan": AT - 29 * DAY},
        {"made": AT - 29 * DAY},
        {"is_unique": True},
        {"is_needed": True},
        {"is_valid": False},
        {"bytes": 900_000},
    ],
)
def test_what_is_no_reason_to_drop_an_index(used: dict[str, Any]) -> None:
    assert advise(facts(index("i", "a", **{"scans": 0, **used}))) == []


def test_an_index_that_was_used_long_ago_is_unused_from_16_on() -> None:
    found = facts(index("i", "a", scans=9, last_scan=AT - 31 * DAY))
    assert one(found).evidence["idle_days"] == 31


def test_young_statistics_and_a_silent_replica_judge_no_index() -> None:
    idle = index("idle", "a", scans=0)
    young = facts(idle, since=AT - 3 * DAY)
    assert advise(young) == []
    assert notes(young) == [
        "Statistics cover 3.0 days, since 2026-06-12: no index is called unused before 30."
    ]
    alone = facts(idle, replica="connection refused")
    assert advise(alone) == []
    assert "connection refused" in notes(alone)[0]
    assert "pg_read_all_stats" in notes(facts(idle, sees_all=False))[0]


def test_dropping_the_index_of_a_partitioned_table_locks_it_and_is_undone_leaf_by_leaf() -> None:
    table = Table(name="t", is_partitioned=True, leaves=(Leaf(schema="public", name="t_1"),))
    found = facts(index("idle", "a", scans=0))
    found.actual.tables["t"] = table
    (step,) = one(found).steps
    assert step.lock.startswith("ACCESS EXCLUSIVE on t and its partitions")
    assert [inverse.sql.split()[:3] for inverse in step.inverse] == [
        ["CREATE", "INDEX", '"idle"'],
        ["CREATE", "INDEX", "CONCURRENTLY"],
        ["ALTER", "INDEX", '"public"."idle"'],
    ]


# --------------------------------------------------------------------------- redundant


@pytest.mark.parametrize(
    ("short", "long"),
    [
        (index("s", "a"), index("l", "a", "b")),
        (index("s", "a", options=(3,)), index("l", "a", "b", options=(0, 0))),  # read backwards
        (index("s", "a", include=("b",)), index("l", "a", "b")),
        (index("s", "a", include=("c",)), index("l", "a", "b", include=("c", "d"))),
        (index("s", "a", predicate="x"), index("l", "a", "b", predicate="x")),
        (index("s", "a"), index("l", "a", is_unique=True)),
        (index("s", "a", is_declared=False), index("l", "a")),
        (index("s", "a", method="gin", is_declared=False), index("l", "a", method="gin")),
        (index("s", "a", is_unique=True), index("l", "a", is_unique=True, is_needed=True)),
    ],
)
def test_an_index_that_another_one_serves_is_redundant(short: IndexFact, long: IndexFact) -> None:
    advice = one(facts(short, long))
    assert (advice.kind, advice.subject) == ("redundant", "s")
    assert advice.evidence["served_by"] == "l"


@pytest.mark.parametrize(
    ("short", "long"),
    [
        (index("s", "b"), index("l", "a", "b")),
        (index("s", "a", "c", options=(0, 3)), index("l", "a", "c", options=(0, 0))),
        (index("s", "a", include=("c",)), index("l", "a", "b")),
        (index("s", "a"), index("l", "a", "b", predicate="x")),
        (index("s", "a", predicate="x"), index("l", "a", "b")),  # smaller, so of use
        (index("s", "a", is_unique=True), index("l", "a", "b")),
        (index("s", "a", is_needed=True), index("l", "a", "b")),
        (index("s", "a", method="gin"), index("l", "a", "b", method="gin")),
        (index("s", "a"), index("l", "a", "b", method="brin")),
        (index("s", "a"), index("l", "a", "b", is_valid=False)),
        (index("s", "a"), index("l", "a", "b", table="u")),
        (replace(index("s", "a"), keys=("a text_pattern_ops",)), index("l", "a", "b")),
    ],
)
def test_an_index_with_a_duty_of_its_own_is_not_redundant(
    short: IndexFact, long: IndexFact
) -> None:
    assert advise(facts(short, long)) == []


def test_of_three_twins_one_stays() -> None:
    found = facts(index("a", "x"), index("b", "x"), index("c", "x", is_declared=False))
    gone = {advice.subject: advice.evidence["served_by"] for advice in advise(found)}
    assert gone == {"a": "b", "c": "b"}


def test_a_much_larger_stand_in_is_a_reason_to_mind() -> None:
    found = facts(index("s", "a"), index("l", "a", "b", bytes=20 * MEGABYTE))
    assert "4.0 times as large" in one(found).caution


# --------------------------------------------------------------------------- bloat


def test_a_bloated_index_is_an_estimate_until_it_is_measured() -> None:
    large = index("i", "a", bytes=40 * MEGABYTE, fresh_bytes=15 * MEGABYTE)
    advice = one(facts(large))
    assert "This is an estimate" in advice.sentence
    assert advice.as_dict()["sql"] == ['REINDEX INDEX CONCURRENTLY "public"."i";']
    measured = one(facts(replace(large, leaf_density=31.2)))
    assert "31 % full" in measured.sentence
    assert advise(facts(replace(large, leaf_density=88.0))) == [], "the measurement refutes it"


@pytest.mark.parametrize(("size", "fresh"), [(40, 21), (15, 6), (40, None)])
def test_what_random_filling_leaves_is_no_bloat(size: int, fresh: int | None) -> None:
    estimate = fresh and fresh * MEGABYTE
    assert advise(facts(index("i", "a", bytes=size * MEGABYTE, fresh_bytes=estimate))) == []


# --------------------------------------------------------------------------- foreign keys

KEY = ForeignKeyFact(table="t", columns=("parent_id",), target="parents", rule="CASCADE")


def test_a_cascading_foreign_key_without_an_index_is_named_with_the_index() -> None:
    found = facts(
        index("i", "other"),
        foreign_keys=(KEY,),
        tables=(TableFact(name="t", root="t", rows=20_000),),
    )
    advice = one(found)
    assert "Deleting from parents reads all of t, about 20,000 rows" in advice.sentence
    assert advice.as_dict()["sql"] == [
        'CREATE INDEX CONCURRENTLY "idx_t_parent_id" ON "public"."t" USING btree (parent_id);'
    ]
    assert advice.as_dict()["inverse"] == [
        'DROP INDEX CONCURRENTLY IF EXISTS "public"."idx_t_parent_id";'
    ]


@pytest.mark.parametrize(
    ("found", "rows", "expected"),
    [
        (index("i", "parent_id", "x"), 20_000, 0),
        (index("i", "parent_id", predicate="(parent_id IS NOT NULL)"), 20_000, 0),
        (index("i", "parent_id", predicate="is_active"), 20_000, 1),
        (index("i", "x", "parent_id"), 20_000, 1),
        (index("i", "parent_id", is_valid=False), 20_000, 1),
        (index("i", "x"), 9_000, 0),
    ],
)
def test_which_index_serves_a_foreign_key(found: IndexFact, rows: int, expected: int) -> None:
    parts = [TableFact(name=name, root="t", rows=rows // 2) for name in ("t_1", "t_2")]
    told = facts(found, foreign_keys=(KEY,), tables=tuple(parts))
    assert len(advise(told)) == expected


# --------------------------------------------------------------------------- tables


def test_a_table_that_autovacuum_does_not_keep_up_with() -> None:
    table = TableFact(name="t", root="t", rows=100_000, dead=90_000, vacuum_at=20_050)
    advice = one(facts(tables=(table,)))
    assert "90,000 dead rows, 4.5 times the 20,050" in advice.sentence
    assert [step.sql for step in advice.steps] == ['VACUUM (ANALYZE) "public"."t";']
    off = one(facts(tables=(replace(table, is_autovacuumed=False),)))
    assert off.as_dict()["inverse"] == [
        'ALTER TABLE "public"."t" SET (autovacuum_enabled = false);'
    ]
    assert advise(facts(tables=(replace(table, dead=40_000),))) == []
    assert advise(facts(tables=(replace(table, dead=9_000, vacuum_at=50),))) == []


def test_updates_that_find_no_room_ask_for_room_and_others_for_fewer_indexes() -> None:
    table = TableFact(name="t", root="t", updates=50_000, hot_updates=5_000, moved_updates=40_000)
    found = facts(index("i", "state"), tables=(table,))
    advice = one(found)
    assert "Only 10%" in advice.sentence
    assert "89% of the others found no room" in advice.sentence
    assert "i (state)" in advice.sentence
    assert advice.as_dict()["sql"] == ['ALTER TABLE "public"."t" SET (fillfactor = 85);']
    assert advice.as_dict()["inverse"] == ['ALTER TABLE "public"."t" RESET (fillfactor);']
    indexed = one(facts(tables=(replace(table, moved_updates=4_500),)))
    assert "changed an indexed column" in indexed.sentence
    assert indexed.steps == ()
    assert one(facts(tables=(replace(table, moved_updates=None),))).steps
    assert advise(facts(tables=(replace(table, hot_updates=26_000),))) == []
    assert advise(facts(tables=(replace(table, updates=9_000),))) == []


# --------------------------------------------------------------------------- old snapshots


@pytest.mark.parametrize(
    ("kind", "name", "statement"),
    [
        ("session", "42", "SELECT pg_terminate_backend(42);"),
        ("standby", "43", "SELECT pg_terminate_backend(43);"),
        ("prepared transaction", "it's", "ROLLBACK PREPARED 'it''s';"),
        ("replication slot", "old", "SELECT pg_drop_replication_slot('old');"),
    ],
)
def test_what_holds_cleaning_up_back_is_named_with_its_owner(
    kind: str, name: str, statement: str
) -> None:
    holder = HolderFact(kind=kind, name=name, who="ann from home", transactions=5, seconds=7_200)
    advice = one(facts(holders=(holder,)))
    assert "ann from home, keeps dead rows for 2.0 hours: 5 transactions" in advice.sentence
    assert advice.as_dict()["sql"] == [statement]
    assert advise(facts(holders=(replace(holder, seconds=200),))) == []
    by_count = replace(holder, seconds=None, transactions=2_000_000)
    assert len(advise(facts(holders=(by_count,)))) == 1


# --------------------------------------------------------------------------- in a plan


def undeclared(name: str) -> Change:
    return Change(
        phase=1, kind="undeclared", name=name, table="t", reason="is not declared", is_fault=False
    )


def test_a_plan_names_the_index_that_makes_another_one_redundant() -> None:
    found = facts(
        index("spare", "a", is_declared=False),
        index("idle", "z", is_declared=False, scans=0),
        index("ours", "a", "b"),
        index("asleep", "y", scans=0),
        index("new", "x", scans=0, made=AT - DAY),
    )
    later = Change(phase=2, kind="unapplied", name="m", reason="")
    plan = with_use([undeclared("spare"), undeclared("idle"), later], found)
    assert [(change.kind, change.name) for change in plan] == [
        ("redundant", "spare"),
        ("undeclared", "idle"),
        ("unused", "asleep"),
        ("unused", "1 of 5 indexes"),
        ("unapplied", "m"),
    ]
    assert plan[0].reason == "is not declared, and ours begins with its columns"
    assert plan[1].reason == "is not declared; no scan since 2026-03-17, 90 days"
    assert not any(change.is_fault for change in plan[:4])
