"""What the database is doing: sizes and growth, indexes, statements, everything measured."""

from __future__ import annotations

from typing import Any

from django.urls import reverse
from django.utils.safestring import SafeString

from gateway.dashboard.metrics import Measured
from gateway.dashboard.tables import Table, chip, link
from monitoring import queries
from registry.admin_base import NOTHING, byte_size, duration, percentage

__all__ = ["database_tables"]

MOST_STATEMENTS = 15
MOST_INDEXES = 200


def database_tables() -> list[Table]:
    """In four reads, whatever the tables hold: catalogue, statistics and the worker's readings."""
    return [_tables(), _statements(), _indexes(), _measured()]


def _tables() -> Table:
    return Table(
        title="Tables",
        heads=("table", "rows", "table size", "indexes", "together", "partitions", "in 30 days"),
        numbers=frozenset({1, 2, 3, 4, 5, 6}),
        rows=[
            (
                row["table_name"],
                f"about {row['row_estimate']:,.0f}",
                byte_size(row["table_size"]),
                byte_size(row["index_size"]),
                byte_size(row["total_size"]),
                str(row["partitions"]) if row["partitions"] else NOTHING,
                _growth(row["growth_30d_percent"]),
            )
            for row in queries.database_sizes()
        ],
        empty="There are no tables.",
        note="The largest first. Growth compares with the readings that the worker takes.",
    )


def _growth(percent: float | None) -> str | SafeString:
    if percent is None:
        return NOTHING
    words = f"{'+' if percent > 0 else ''}{percentage(percent / 100)}"
    return chip(words, "warning") if percent > 20 else words


def _statements() -> Table:
    rows = queries.slowest_statements(limit=MOST_STATEMENTS)
    return Table(
        title="Slowest statements",
        heads=("statement", "calls", "each", "together", "plan"),
        long=frozenset({0}),
        numbers=frozenset({1, 2, 3}),
        rows=[
            (
                _shortened(row["query"]),
                f"{row['window_calls']:,}",
                duration(row["window_mean_ms"]),
                duration(row["window_mean_ms"] * row["window_calls"]),
                link(reverse("admin:statement", args=[row["id"]]), "show"),
            )
            for row in rows
        ],
        empty="Nothing was read yet: the worker does, from the extension pg_stat_statements.",
        note=f"Between the last two readings, until {rows[0]['taken_at']:%H:%M} UTC."
        if rows
        else "",
    )


def _shortened(query: str) -> str:
    words = " ".join(query.split())
    return words if len(words) <= 160 else f"{words[:160]} …"


def _indexes() -> Table:
    """The rarely used first, the large ones of them before the others."""
    rank = {"Unused": 0, "Low": 1, "Moderate": 2, "High": 3}
    found = queries.index_usage()
    found.sort(key=lambda row: (row["is_valid"], rank[row["usage_category"]], -row["index_size"]))
    return Table(
        title="Indexes",
        heads=("index", "table", "size", "scans", "rows read", "use", "remarks"),
        numbers=frozenset({2, 3, 4}),
        rows=[
            (
                row["index_name"],
                row["table_name"],
                byte_size(row["index_size"]),
                f"{row['scans']:,}",
                f"{row['rows_read']:,}",
                _use(row),
                _remarks(row),
            )
            for row in found[:MOST_INDEXES]
        ],
        empty="There are no indexes.",
        note="Unused: since the statistics were last reset.",
    )


def _use(row: dict[str, Any]) -> SafeString:
    """What keeps rows unique is no waste when nobody reads it."""
    is_waste = row["usage_category"] == "Unused" and not row["is_unique"]
    return chip(row["usage_category"].lower(), "warning" if is_waste else "")


def _remarks(row: dict[str, Any]) -> str | SafeString:
    if not row["is_valid"]:
        return chip("invalid: run optimize_db", "critical")
    words = [
        *(["unique"] if row["is_unique"] else []),
        *([] if row["is_declared"] else ["not declared"]),
    ]
    return ", ".join(words) or NOTHING


def _measured() -> Table:
    figures = [Measured(**row) for row in queries.performance_metrics()]
    return Table(
        title="Measured now",
        heads=("metric", "of", "value", "bound", "status"),
        numbers=frozenset({2, 3}),
        rows=[
            (
                link(one.url, one.title),
                one.subject,
                one.written,
                one.limit,
                chip(one.status, one.status),
            )
            for one in figures
        ],
        empty="Nothing is measured.",
        note="The rows of the SQL view performance_monitoring, which alerts look at too.",
    )
