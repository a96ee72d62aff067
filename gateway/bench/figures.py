"""The arithmetic of the benchmark: pure functions over lists of times."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

__all__ = ["Saving", "Slope", "difference", "quantile", "saving", "sens_slope"]

RESAMPLES = 400
SEED = 7


@dataclass(frozen=True, slots=True)
class Saving:
    """How much less time one arm took than another, as a share of the other's.

    `low` to `high` is the bootstrap's 95 % interval; `noise` is what two passes of one arm
    differed by, and `share` is None where the saving does not stand out from it.
    """

    share: float | None
    low: float
    high: float
    noise: float


@dataclass(frozen=True, slots=True)
class Slope:
    """How much a figure gains in a unit of time; `low` to `high` is the 95 % interval."""

    value: float
    low: float
    high: float


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0 to 1) of them do not exceed."""
    ordered = sorted(values)
    place = max(0, -int(-share * len(ordered) // 1) - 1)
    return ordered[min(place, len(ordered) - 1)]


def difference(first: Sequence[float], second: Sequence[float]) -> float:
    """By how much two passes over the same work differ, as a share of the longer one."""
    one, other = sum(first), sum(second)
    longest = max(one, other)
    return abs(one - other) / longest if longest else 0.0


def sens_slope(points: Sequence[tuple[float, float]]) -> Slope:
    """Sen's slope of two and more (time, figure): the median of the slopes of all pairs.

    A single step or a few odd points do not sway it. The interval comes from the variance of
    Kendall's S (P. K. Sen, 1968); it takes points as independent, so that it is too narrow where
    a figure keeps to its last value.
    """
    slopes = sorted(
        (later - figure) / (then - at)
        for (at, figure), (then, later) in combinations(points, 2)
        if then != at
    )
    n, pairs = len(points), len(slopes)
    spread = 1.96 * math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    low, high = int((pairs - spread) / 2), math.ceil((pairs + spread) / 2)
    return Slope(median(slopes), slopes[max(0, low)], slopes[min(pairs - 1, high)])


def saving(slow: Sequence[float], fast: Sequence[float], *, noise: float) -> Saving:
    """What `fast` saves against `slow`, times of the same parameters in the same order.

    Parameters are drawn again as pairs: one that is expensive is expensive in both arms.
    """
    chance = random.Random(SEED)  # noqa: S311  (no secret hangs on it)
    places = range(len(slow))
    drawn = [_share(slow, fast, chance.choices(places, k=len(places))) for _ in range(RESAMPLES)]
    share = _share(slow, fast, places) if difference(slow, fast) > noise else None
    return Saving(share, quantile(drawn, 0.025), quantile(drawn, 0.975), noise)


def _share(slow: Sequence[float], fast: Sequence[float], places: Sequence[int]) -> float:
    before, after = sum(slow[i] for i in places), sum(fast[i] for i in places)
    return 1 - after / before if before else 0.0
