"""Plans for partitions hold whatever there is already, whenever they are made."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from registry.db.partitions import (
    AHEAD,
    BEHIND,
    Partition,
    Place,
    Span,
    Step,
    Verb,
    partition_name,
    plan_expired,
    plan_missing,
)

TABLE = "logs"
DAY = timedelta(days=1)
START = datetime(2026, 1, 1, tzinfo=UTC)

moments = st.integers(0, 200 * 86_400).map(lambda seconds: START + timedelta(seconds=seconds))
sizes = st.integers(1, 31).map(lambda days: days * DAY)
ages = st.none() | st.integers(1, 120).map(lambda days: days * DAY)
places = st.sampled_from([Place.ATTACHED, Place.ATTACHED, Place.ATTACHED, *Place])


@st.composite
def partitions(draw: st.DrawFn) -> list[Partition]:
    """Without overlaps, with gaps, of any length: made with other sizes, or by hand."""
    hours = sorted(draw(st.sets(st.integers(0, 200 * 24), max_size=12)))
    spans = [
        Span(START + timedelta(hours=since), START + timedelta(hours=until))
        for since, until in zip(hours[::2], hours[1::2], strict=False)
    ]
    return [
        Partition(name=partition_name(TABLE, span), span=span, place=draw(places)) for span in spans
    ]


def after(found: list[Partition], steps: list[Step]) -> list[Partition]:
    """What a database has once the steps ran; it refuses what PostgreSQL would refuse."""
    there = {partition.name: partition for partition in found}
    for step in steps:
        if step.verb is Verb.DROP:
            assert there.pop(step.name).place is Place.LOOSE
            continue
        if step.verb is Verb.CREATE:
            assert step.name not in there
        else:
            before = {
                Verb.DETACH: Place.ATTACHED,
                Verb.FINALIZE: Place.LEAVING,
                Verb.ATTACH: Place.LOOSE,
            }
            assert there[step.name].place is before[step.verb]
        joins = step.verb in {Verb.CREATE, Verb.ATTACH}
        if joins:
            assert not any(other.span.overlaps(step.span) for other in attached(there.values()))
        place = Place.ATTACHED if joins else Place.LOOSE
        there[step.name] = Partition(name=step.name, span=step.span, place=place)
    return sorted(there.values(), key=lambda partition: partition.span)


def attached(found) -> list[Partition]:
    return [partition for partition in found if partition.place is Place.ATTACHED]


def covers(found: list[Partition], since: datetime, until: datetime) -> bool:
    for partition in attached(found):
        if partition.span.since <= since < partition.span.until:
            since = partition.span.until
    return since > until


@given(found=partitions(), at=moments, size=sizes, keep=ages)
def test_no_gap_from_the_oldest_partition_to_the_days_ahead(found, at, size, keep) -> None:
    done = after(found, plan_missing(found, table=TABLE, at=at, size=size, keep=keep))
    oldest = at - keep if keep else datetime.min.replace(tzinfo=UTC)
    kept = [p.span.until for p in attached(found) if p.span.until > oldest]
    since = max(oldest, min([at - BEHIND, *kept]))
    assert covers(done, since, at + AHEAD)


@given(found=partitions(), at=moments, size=sizes, keep=ages)
def test_a_second_run_finds_nothing_to_make(found, at, size, keep) -> None:
    done = after(found, plan_missing(found, table=TABLE, at=at, size=size, keep=keep))
    assert plan_missing(done, table=TABLE, at=at, size=size, keep=keep) == []


@given(found=partitions(), at=moments, sizes=st.lists(sizes, min_size=2, max_size=4))
def test_any_change_of_size_leaves_no_gap_and_moves_nothing(found, at, sizes) -> None:
    for size in sizes:
        before = set(attached(found))
        found = after(found, plan_missing(found, table=TABLE, at=at, size=size))
        assert before <= set(attached(found))
        assert covers(found, at - BEHIND, at + AHEAD)
        at += 3 * DAY


@given(found=partitions(), at=moments, size=sizes, keep=ages.filter(bool))
def test_what_is_made_is_not_removed_and_what_is_removed_is_not_made(found, at, size, keep) -> None:
    made = after(found, plan_missing(found, table=TABLE, at=at, size=size, keep=keep))
    removed = {step.name for step in plan_expired(made, table=TABLE, at=at, keep=keep)}
    assert removed <= {partition.name for partition in found}
    left = after(made, plan_expired(made, table=TABLE, at=at, keep=keep))
    assert plan_missing(left, table=TABLE, at=at, size=size, keep=keep) == []
    assert plan_expired(left, table=TABLE, at=at, keep=keep) == []


@given(found=partitions(), at=moments, keep=ages.filter(bool))
def test_only_partitions_without_a_row_to_keep_are_removed(found, at, keep) -> None:
    left = after(found, plan_expired(found, table=TABLE, at=at, keep=keep))
    assert left == [partition for partition in found if partition.span.until > at - keep]


@given(at=moments, size=sizes, days=st.integers(0, 100))
def test_partitions_reach_back_when_asked_whatever_is_kept(at, size, days) -> None:
    back_to = at - days * DAY
    steps = plan_missing([], table=TABLE, at=at, size=size, keep=DAY, back_to=back_to)
    assert covers(after([], steps), back_to, at + AHEAD)


def test_new_partitions_lie_on_the_grid_and_are_named_by_their_day() -> None:
    at = datetime(2026, 11, 23, 13, 5, tzinfo=UTC)
    steps = plan_missing([], table=TABLE, at=at, size=DAY)
    days = [*range(15), -2, -1]  # what is needed from now on comes first
    assert [step.name for step in steps] == [f"logs_{at + day * DAY:%Y%m%d}" for day in days]
    assert steps[0].span == Span(
        datetime(2026, 11, 23, tzinfo=UTC), datetime(2026, 11, 24, tzinfo=UTC)
    )
