"""How many rows a batch of retention has."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from monitoring.retention.run import BATCH_SECONDS, FEWEST_ROWS, next_rows


def test_a_batch_grows_while_it_is_quick_and_shrinks_when_it_is_not() -> None:
    assert next_rows(200, seconds=0.0001, most=1000) == 400, "twice as many at most"
    assert next_rows(800, seconds=BATCH_SECONDS, most=1000) == 800
    assert next_rows(800, seconds=2 * BATCH_SECONDS, most=1000) == 400
    assert next_rows(400, seconds=0.0, most=600) == 600


@given(rows=st.integers(1, 50_000), seconds=st.floats(0, 60), most=st.integers(1, 50_000))
def test_a_batch_keeps_to_the_policy(rows: int, seconds: float, most: int) -> None:
    assert min(FEWEST_ROWS, most) <= next_rows(rows, seconds=seconds, most=most) <= most
