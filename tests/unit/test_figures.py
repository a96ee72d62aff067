from __future__ import annotations

import pytest

from registry.figures import counted


@pytest.mark.parametrize(
    ("count", "many", "words"),
    [
        (0, "rows", "0 rows"),
        (1, "rows", "1 row"),
        (1, "API keys", "1 API key"),
        (1, "whole partitions", "1 whole partition"),
        (1234, "views", "1,234 views"),
    ],
)
def test_what_is_counted_stands_in_its_number(count: int, many: str, words: str) -> None:
    assert counted(count, many) == words
