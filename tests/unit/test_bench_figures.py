"""The benchmark's arithmetic, and its charts."""

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.bench.charts import bar_chart
from gateway.bench.figures import difference, quantile, saving

SVG = "{http://www.w3.org/2000/svg}"
times = st.floats(min_value=0.001, max_value=1e6)
pairs = st.lists(st.tuples(times, times), min_size=1, max_size=30)


@given(st.lists(times, min_size=1), st.floats(min_value=0.01, max_value=1))
def test_a_quantile_is_the_smallest_value_that_covers_its_share(values, share):
    found = quantile(values, share)
    below = [value for value in values if value < found]
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert len(below) < share * len(values) + 1e-9


def test_quantiles_of_a_hundred():
    values = list(range(1, 101))
    assert [quantile(values, share) for share in (0.5, 0.95, 0.99, 1)] == [50, 95, 99, 100]


@given(pairs)
def test_a_saving_compares_the_sums_and_lies_within_its_interval_of_pairs(both):
    slow, fast = zip(*both, strict=True)
    found = saving(slow, fast, noise=0.0)
    ratios = [1 - quick / long for long, quick in both]
    assert min(ratios) - 1e-6 <= found.low <= found.high <= max(ratios) + 1e-6
    if found.share is not None:
        assert found.share == pytest.approx(1 - sum(fast) / sum(slow))


@given(pairs, st.floats(min_value=0, max_value=1))
def test_no_share_is_told_that_does_not_stand_out_from_the_noise(both, noise):
    slow, fast = zip(*both, strict=True)
    found = saving(slow, fast, noise=noise)
    assert (found.share is None) == (difference(slow, fast) <= noise)


@given(st.lists(times), st.lists(times))
def test_the_difference_of_two_passes_has_no_order_and_is_a_share(first, second):
    assert difference(first, second) == difference(second, first)
    assert 0 <= difference(first, second) <= 1
    assert difference(first, first) == 0


labels = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=20)
groups = st.lists(
    st.tuples(labels, st.lists(st.floats(0, 1e7), min_size=3, max_size=3)), max_size=5
)


@given(labels, groups)
def test_a_chart_is_well_formed_and_every_bar_lies_on_it(title, found):
    root = ET.fromstring(bar_chart(title, found))  # noqa: S314  (our own text)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    bars = [node.attrib for node in root.iter(f"{SVG}rect")]
    assert len(bars) == 3 + 3 * len(found)  # the legend's, and one an arm
    for bar in bars:
        assert float(bar["width"]) > 0
        assert float(bar["x"]) + float(bar["width"]) <= width
        assert float(bar["y"]) + float(bar["height"]) <= height
    assert (root.findtext(f"{SVG}title") or "").split() == title.split()
