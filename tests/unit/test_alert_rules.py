"""When an alert triggers, reminds and resolves: held against what the rule says in words."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.alerts.rules import (
    CLEAR_AT_LEAST,
    NO_DATA_AFTER,
    Change,
    Rule,
    Standing,
    step,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
LOOK = timedelta(seconds=30)
HOUR = timedelta(hours=1)

operators = st.sampled_from([">", "<", ">=", "<=", "=="])
# Few different ones, so that they meet the threshold, its margin and each other.
figures = st.sampled_from([0.0, 76.0, 77.0, 80.0, 83.9, 84.0, 85.0, 100.0])
values = st.none() | figures
minutes = st.integers(0, 6).map(lambda count: timedelta(minutes=count))


@dataclass
class Look:
    """One look, and what it did."""

    at: datetime
    value: float | None
    standing: Standing
    changes: tuple[Change, ...]


@st.composite
def rules(draw) -> Rule:
    return Rule(
        operator=draw(operators),
        threshold=draw(figures),
        duration=draw(minutes),
        cooldown=draw(minutes),
        ceiling=draw(st.sampled_from([None, 100.0])),
    )


histories = st.lists(
    st.tuples(values, st.sampled_from([LOOK, LOOK, LOOK, timedelta(minutes=4)]), st.booleans()),
    min_size=1,
    max_size=60,
)


def watch(rule: Rule, history) -> list[Look]:
    """Look after look; somebody acknowledges now and then, just after a look."""
    at, standing, looks = START, Standing(), []
    for value, pause, answered in history:
        at += pause
        standing, changes = step(rule, standing, value=value, at=at)
        looks.append(Look(at, value, standing, changes))
        if answered and standing.is_triggered:
            standing = replace(standing, acknowledged_at=at)
    return looks


def steady(values, rule: Rule) -> list[Look]:
    return watch(rule, [(value, LOOK, False) for value in values])


def changes(looks: list[Look]) -> list[Change]:
    return [change for look in looks for change in look.changes]


def held_since(looks: list[Look], fits) -> datetime | None:
    """Since when every look, up to the last one, fits."""
    since = None
    for look in looks:
        since = (since or look.at) if look.value is not None and fits(look.value) else None
    return since


# ---------------------------------------------------------------- properties


@given(rules(), histories)
def test_it_triggers_exactly_when_the_condition_has_held_for_its_duration(rule, history):
    looks = watch(rule, history)
    fires, begun = False, 0
    for index, look in enumerate(looks):
        since = held_since(looks[begun : index + 1], rule.holds)
        due = not fires and since is not None and look.at - since >= rule.duration
        assert (Change.TRIGGERED in look.changes) == due
        if Change.RESOLVED in look.changes:
            begun = index + 1
        fires = look.standing.is_triggered
        assert not due or fires


@given(rules(), histories)
def test_it_resolves_exactly_when_the_value_was_clear_for_long_enough(rule, history):
    looks = watch(rule, history)
    wanted = max(rule.duration, CLEAR_AT_LEAST)
    fires, begun = False, 0
    for index, look in enumerate(looks):
        since = held_since(looks[begun : index + 1], rule.clear)
        due = fires and since is not None and look.at - since >= wanted
        assert (Change.RESOLVED in look.changes) == due
        if Change.TRIGGERED in look.changes:
            begun = index + 1
        fires = look.standing.is_triggered


@given(rules(), histories)
def test_triggers_and_resolutions_take_turns_and_the_standing_agrees(rule, history):
    fires = False
    for look in watch(rule, history):
        for change in look.changes:
            if change in (Change.TRIGGERED, Change.RESOLVED):
                assert fires == (change == Change.RESOLVED)
                fires = not fires
        assert look.standing.is_triggered == fires


@given(rules(), histories)
def test_reminders_keep_their_distance_and_end_with_an_acknowledgement(rule, history):
    last = acknowledged = None
    for look, (_, _, answered) in zip(watch(rule, history), history, strict=True):
        if Change.TRIGGERED in look.changes:
            last, acknowledged = look.at, None
        if Change.REMINDED in look.changes:
            assert rule.cooldown
            assert look.at - last >= rule.cooldown
            assert acknowledged is None
            assert look.standing.is_triggered
            last = look.at
        if answered and look.standing.is_triggered:
            acknowledged = look.at


@given(rules(), histories)
def test_without_a_value_nothing_triggers_or_resolves_and_soon_it_is_said(rule, history):
    since = None
    for look in watch(rule, history):
        if look.value is not None:
            since = None
            assert look.standing.no_data_since is None
            continue
        since = since or look.at
        assert not {Change.TRIGGERED, Change.RESOLVED} & set(look.changes)
        assert look.standing.pending_since is None
        silent = look.at - since >= NO_DATA_AFTER
        assert (look.standing.no_data_since is not None) == silent


@given(rules(), histories)
def test_losing_and_finding_the_value_take_turns(rule, history):
    told = [
        change
        for change in changes(watch(rule, history))
        if change in (Change.NO_DATA, Change.MEASURED)
    ]
    assert told == [Change.NO_DATA, Change.MEASURED] * (len(told) // 2) + told[:1] * (len(told) % 2)


@given(
    operators,
    st.floats(-1e9, 1e9, allow_nan=False),
    st.floats(-1e9, 1e9, allow_nan=False),
    st.sampled_from([None, 1.0, 100.0]),
)
def test_no_value_is_clear_and_beyond_the_threshold_at_once(operator, threshold, value, ceiling):
    rule = Rule(operator, threshold, LOOK, HOUR, ceiling)
    assert not (rule.holds(value) and rule.clear(value))


@given(st.sampled_from(["<", "<="]), st.floats(0, 0.999, allow_nan=False))
def test_a_ratio_that_is_whole_again_is_clear_of_every_lower_limit(operator, threshold):
    assert Rule(operator, threshold, LOOK, HOUR, ceiling=1.0).clear(1.0)


# ---------------------------------------------------------------- examples


def rule(**given) -> Rule:
    fields = {"duration": timedelta(minutes=1), "cooldown": HOUR, **given}
    return Rule(operator=">", threshold=80.0, **fields)


def test_a_duration_of_zero_triggers_at_the_first_look():
    [look] = steady([81], rule(duration=timedelta(0)))
    assert look.changes == (Change.TRIGGERED,)
    assert look.standing.first_triggered == look.standing.last_notification == look.at


def test_a_short_dip_begins_the_wait_anew():
    assert changes(steady([81, 81, 80, 81, 81], rule())) == []
    assert changes(steady([81, 81, 81], rule())) == [Change.TRIGGERED]


def test_between_threshold_and_margin_it_goes_on_firing():
    looks = steady([81, 81, 81] + [77] * 60, rule())
    assert changes(looks) == [Change.TRIGGERED]
    assert looks[-1].standing.is_triggered


def test_it_resolves_a_twentieth_below_after_two_minutes_at_least():
    looks = steady([81, 81, 81] + [76] * 4, rule())
    assert looks[-1].standing.is_triggered
    looks = steady([81, 81, 81] + [76] * 5, rule())
    assert looks[-1].changes == (Change.RESOLVED,)


@pytest.mark.parametrize(
    ("operator", "threshold", "ceiling", "clear", "not_clear"),
    [
        (">", 0.0, None, 0.0, 0.1),
        ("<", 80.0, 100.0, 84.0, 83.9),
        ("<", 0.98, 1.0, 0.9901, 0.9899),
        (">=", 100.0, 100.0, 94.9, 95.0),
        ("<", 10.0, None, 10.5, 10.4),
        ("==", 3.0, None, 4.0, 3.0),
    ],
)
def test_what_is_clear(operator, threshold, ceiling, clear, not_clear):
    found = Rule(operator, threshold, LOOK, HOUR, ceiling)
    assert found.clear(clear)
    assert not found.clear(not_clear)


def test_it_reminds_every_cooldown_until_somebody_answers():
    every = rule(duration=timedelta(0), cooldown=timedelta(minutes=10))
    reminders = [look for look in steady([81] * 61, every) if Change.REMINDED in look.changes]
    assert [look.at - START - LOOK for look in reminders] == [
        timedelta(minutes=10 * number) for number in (1, 2, 3)
    ]
    answered = watch(every, [(81, LOOK, True)] + [(81, LOOK, False)] * 60)
    assert changes(answered) == [Change.TRIGGERED]


def test_an_acknowledgement_does_not_silence_the_next_firing():
    once = rule(duration=timedelta(0), cooldown=timedelta(minutes=1))
    history = [(81, LOOK, True)] + [(0, LOOK, False)] * 5 + [(81, LOOK, False)] * 3
    assert changes(watch(once, history)) == [
        Change.TRIGGERED,
        Change.RESOLVED,
        Change.TRIGGERED,
        Change.REMINDED,
    ]


def test_a_firing_alert_that_loses_its_figure_goes_on_firing_and_reminding():
    lost = rule(duration=timedelta(0), cooldown=timedelta(minutes=10))
    looks = steady([81] + [None] * 45, lost)
    assert changes(looks) == [
        Change.TRIGGERED,
        Change.REMINDED,
        Change.NO_DATA,
        Change.REMINDED,
    ]
    assert looks[-1].standing.is_triggered


def test_what_is_measured_within_a_quarter_of_an_hour_was_never_missing():
    assert changes(steady([None] * 30 + [0] + [None] * 30 + [0], rule())) == []
    assert changes(steady([None] * 31, rule())) == [Change.NO_DATA]


def test_a_figure_of_too_few_calls_neither_fires_nor_goes_on_firing():
    few = replace(rule(duration=timedelta(0)), counts=False)
    assert changes(steady([100] * 5, few)) == []
    fires = Standing(is_triggered=True, first_triggered=START)
    after, told = step(few, fires, value=100.0, at=START)
    assert told == ()
    assert step(few, after, value=100.0, at=START + CLEAR_AT_LEAST)[1] == (Change.RESOLVED,)


@pytest.mark.parametrize(
    ("operator", "threshold", "can"),
    [
        (">", 1.0, False), (">", 0.99, True), (">=", 1.0, True), (">=", 1.1, False),
        ("<", 0.0, False), ("<", 0.1, True), ("<=", 0.0, True), ("==", 5.0, False),
        ("==", 0.5, True),
    ],
)  # fmt: skip
def test_whether_a_rule_can_hold_at_all(operator, threshold, can):
    assert Rule(operator, threshold, LOOK, HOUR).can_hold(0.0, 1.0) is can
