"""When an alert triggers, reminds and resolves. Pure: the time is an argument.

- It triggers when the condition has held at every look for `duration`; 0: at once.
- It resolves when the value has been clear at every look for `duration`, two minutes at least.
  Clear is a twentieth of the threshold away from it on the good side, but no more than half of
  what is left to 100 % where the figure ends there. In between, a firing alert goes on firing.
- While it fires and nobody has acknowledged it, it reminds every `cooldown`; 0: never.
- Without a value it neither triggers nor resolves. That there is none is said after a quarter of
  an hour of looks: figures come and go with the traffic, and on a new database they come one after
  another.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

__all__ = ["CLEAR_AT_LEAST", "NO_DATA_AFTER", "Change", "Rule", "Standing", "step"]

CLEAR_AT_LEAST = timedelta(minutes=2)
NO_DATA_AFTER = timedelta(minutes=15)
HYSTERESIS = 0.05  # of the threshold

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
}


class Change(StrEnum):
    """What a step may cause; `AlertEventKind` knows these and the acknowledgement."""

    TRIGGERED = "triggered"
    REMINDED = "reminded"
    RESOLVED = "resolved"
    NO_DATA = "no_data"
    MEASURED = "measured"


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition over one figure; `ceiling` is the most that the figure can be, if there is.

    Where the figure `counts` for nothing, as of too few calls, it never holds and is always clear.
    """

    operator: str
    threshold: float
    duration: timedelta
    cooldown: timedelta
    ceiling: float | None = None
    counts: bool = True

    def holds(self, value: float) -> bool:
        return self.counts and _COMPARE[self.operator](value, self.threshold)

    def clear(self, value: float) -> bool:
        """Whether the value is far enough on the good side for a firing alert to resolve."""
        return not (self.counts and _COMPARE[self.operator](value, self._clear_limit()))

    def can_hold(self, lowest: float, highest: float) -> bool:
        """Whether some value between these, both included, fulfils the condition."""
        nearest = min(max(self.threshold, lowest), highest)
        return any(map(self.holds, (lowest, nearest, highest)))

    def always_holds(self, lowest: float, highest: float) -> bool:
        """Whether every value between these, both included, fulfils the condition."""
        return lowest < highest and self.holds(lowest) and self.holds(highest)

    def _clear_limit(self) -> float:
        margin = abs(self.threshold) * HYSTERESIS
        if self.operator in (">", ">="):
            return self.threshold - margin
        if self.operator == "==":
            return self.threshold
        if self.ceiling is not None:
            margin = min(margin, max(self.ceiling - self.threshold, 0.0) / 2)
        return self.threshold + margin


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What one look leaves for the next one."""

    is_triggered: bool = False
    pending_since: datetime | None = None  # the condition holds, not yet for long enough
    clear_since: datetime | None = None  # fires, and the value is clear, not yet for long enough
    unmeasured_since: datetime | None = None  # the first look of those without a value
    no_data_since: datetime | None = None  # when the lack of a value was said
    first_triggered: datetime | None = None  # the beginning of the present or last firing
    last_notification: datetime | None = None
    acknowledged_at: datetime | None = None

    def silenced(self) -> bool:
        """Whether somebody looks after this firing; an older acknowledgement counts as none."""
        if self.acknowledged_at is None:
            return False
        return self.first_triggered is None or self.acknowledged_at >= self.first_triggered


Outcome = tuple[Standing, tuple[Change, ...]]


def step(rule: Rule, before: Standing, *, value: float | None, at: datetime) -> Outcome:
    """The standing after a look at `at`, and what changed, in order.

    `value` is None where nothing could be measured.
    """
    if value is None:
        return _unmeasured(rule, before, at)
    before = replace(before, unmeasured_since=None)
    changes: tuple[Change, ...] = ()
    if before.no_data_since is not None:
        before, changes = replace(before, no_data_since=None), (Change.MEASURED,)
    judge = _firing if before.is_triggered else _quiet
    after, more = judge(rule, before, value, at)
    return after, (*changes, *more)


def _unmeasured(rule: Rule, before: Standing, at: datetime) -> Outcome:
    since = before.unmeasured_since or at
    after = replace(before, pending_since=None, clear_since=None, unmeasured_since=since)
    changes: tuple[Change, ...] = ()
    if before.no_data_since is None and at - since >= NO_DATA_AFTER:
        after, changes = replace(after, no_data_since=at), (Change.NO_DATA,)
    if not after.is_triggered:
        return after, changes
    after, more = _reminded(rule, after, at)
    return after, (*changes, *more)


def _quiet(rule: Rule, before: Standing, value: float, at: datetime) -> Outcome:
    if not rule.holds(value):
        return replace(before, pending_since=None), ()
    since = before.pending_since or at
    if at - since < rule.duration:
        return replace(before, pending_since=since), ()
    fired = replace(
        before,
        is_triggered=True,
        pending_since=None,
        clear_since=None,
        first_triggered=at,
        last_notification=at,
    )
    return fired, (Change.TRIGGERED,)


def _firing(rule: Rule, before: Standing, value: float, at: datetime) -> Outcome:
    if not rule.clear(value):
        return _reminded(rule, replace(before, clear_since=None), at)
    since = before.clear_since or at
    if at - since < max(rule.duration, CLEAR_AT_LEAST):
        return replace(before, clear_since=since), ()
    return replace(before, is_triggered=False, clear_since=None), (Change.RESOLVED,)


def _reminded(rule: Rule, before: Standing, at: datetime) -> Outcome:
    last = before.last_notification or before.first_triggered
    due = last is None or at - last >= rule.cooldown
    if not rule.cooldown or before.silenced() or not due:
        return before, ()
    return replace(before, last_notification=at), (Change.REMINDED,)
