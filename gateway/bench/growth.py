"""Two runs of different sizes side by side: does what a query reads grow with its table?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gateway.bench.arms import BARE, OPTIMISED

__all__ = ["Growth", "GrowthError", "growth", "read_document"]

FLAT = 1.5  # a tree that is one level higher reads one page more, of three or four


class GrowthError(Exception):
    """The other run's document cannot be compared with this one; the message says why."""


@dataclass(frozen=True, slots=True)
class Growth:
    """One query's median buffers in two runs, in arm C and, to compare, in arm A."""

    name: str
    title: str
    headline: bool
    before: int
    after: int
    bare_before: int
    bare_after: int

    @property
    def factor(self) -> float:
        return self.after / max(1, self.before)

    @property
    def bare_factor(self) -> float:
        return self.bare_after / max(1, self.bare_before)

    @property
    def is_flat(self) -> bool:
        return self.factor <= FLAT

    def as_dict(self) -> dict[str, Any]:
        factors = {"factor": self.factor, "bare_factor": self.bare_factor, "flat": self.is_flat}
        return {**asdict(self), **factors}


def read_document(path: Path) -> dict[str, Any]:
    """What `bench_db --json` printed."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        found["sizes"]["requests"], found["queries"]
    except OSError as error:
        raise GrowthError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError):
        raise GrowthError(f"{path} is no document of bench_db --json.") from None
    return dict(found)


def growth(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Growth]:
    """The queries that both runs asked, in the order of the second one."""
    known = {query["name"]: query for query in before["queries"]}
    return [
        Growth(
            query["name"],
            query["title"],
            query["headline"],
            *(
                run["arms"][arm.name]["buffers_median"]
                for arm in (OPTIMISED, BARE)
                for run in (known[query["name"]], query)
            ),
        )
        for query in after["queries"]
        if query["name"] in known
    ]
