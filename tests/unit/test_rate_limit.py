from __future__ import annotations

from uuid import uuid4

from hypothesis import given, settings
from hypothesis import strategies as st

from security.rate_limit import RateLimiter

START = 1_800_000_000.0 - 1_800_000_000.0 % 86_400


def test_the_limit_is_exact_in_a_fresh_window_and_per_key():
    limiter, key, other = RateLimiter(), uuid4(), uuid4()

    def take(who):
        return limiter.take(who, per_hour=3, per_day=100, at=START + 10)

    assert [take(key) for _ in range(3)] == [None] * 3
    assert take(key).reason == "rate_limited"
    assert take(other) is None


def test_a_limit_of_zero_lets_nothing_through():
    for limits in ({"per_hour": 0, "per_day": 10}, {"per_hour": 10, "per_day": 0}):
        refusal = RateLimiter().take(uuid4(), **limits, at=START)
        assert "its limit is 0" in refusal.message


def test_the_day_s_limit_holds_over_hours():
    limiter, key = RateLimiter(), uuid4()
    for hour in range(5):
        at = START + hour * 3600
        assert limiter.take(key, per_hour=100, per_day=5, at=at) is None
    refused = limiter.take(key, per_hour=100, per_day=5, at=START + 5 * 3600)
    assert refused.retry_after > 3600


@settings(max_examples=200)
@given(
    limit=st.integers(1, 20),
    gaps=st.lists(st.floats(0, 2000), min_size=1, max_size=120),
)
def test_retry_after_is_true_and_the_window_never_holds_twice_the_limit(
    limit: int, gaps: list[float]
):
    limiter, key, at = RateLimiter(), uuid4(), START
    taken: list[float] = []
    for gap in gaps:
        at += gap
        refusal = limiter.take(key, per_hour=limit, per_day=10**6, at=at)
        if refusal is None:
            taken.append(at)
            continue
        assert refusal.retry_after > 0
        at += refusal.retry_after + 0.001
        assert limiter.take(key, per_hour=limit, per_day=10**6, at=at) is None
        taken.append(at)
    for end in taken:
        # The blend of two windows is an estimate: at most twice the limit, in bursts.
        assert sum(end - 3600 < t <= end for t in taken) <= 2 * limit


def test_forgotten_keys_bound_the_memory():
    limiter = RateLimiter(max_keys=10)
    for _ in range(100):
        limiter.take(uuid4(), per_hour=1, per_day=1, at=START)
    assert len(limiter._usage) == 10
