"""The small language in which a policy says which old rows it means.

A JSON object: `{"column": {"operator": value, …}, …}`; all of it must hold. Operators are
`=`, `!=`, `<`, `<=`, `>`, `>=`, `in` (a list) and `is_null` (true or false). An example:
`{"status_code": {"<": 400}, "tool_name": {"in": ["ping", "echo"]}}`.

As in SQL nothing but `is_null` is true of an empty column, `!=` included: in doubt a row stays.
Columns come from the catalogue, operators from a table in here and values go as parameters, so
nothing that anybody typed ever becomes SQL.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from ipaddress import ip_address
from typing import Any
from uuid import UUID

from psycopg import sql

__all__ = ["Compiled", "ConditionError", "compile_conditions"]

EXAMPLE = '{"status_code": {"<": 400}}'
MOST_VALUES = 100
LONGEST_TEXT = 1000
BIGGEST = 2**63

EQUALITY = {"=": "=", "!=": "<>"}
ORDER = {"<": "<", "<=": "<=", ">": ">", ">=": ">="}
OTHERS = ("in", "is_null")


class ConditionError(ValueError):
    """A condition that means nothing; the message says which, and what to write instead."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """What goes after WHERE, with its parameters. `TRUE` for no conditions."""

    where: sql.Composable
    parameters: tuple[Any, ...]


def compile_conditions(conditions: Any, *, columns: Mapping[str, str]) -> Compiled:
    """Conditions over the columns of one table, `{name: type}`; ConditionError in words."""
    if not isinstance(conditions, dict):
        raise ConditionError(f"Write an object such as {EXAMPLE}, or {{}} for every old row.")
    parts = [part for name, told in conditions.items() for part in _column(name, told, columns)]
    if not parts:
        return Compiled(sql.SQL("TRUE"), ())
    return Compiled(
        sql.SQL(" AND ").join(part.where for part in parts),
        tuple(value for part in parts for value in part.parameters),
    )


def _column(name: str, told: Any, columns: Mapping[str, str]) -> Iterator[Compiled]:
    if name not in columns:
        raise ConditionError(f"There is no column {name!r}; choose among {', '.join(columns)}.")
    kind = KINDS.get(columns[name])
    if kind is None:
        raise ConditionError(f"{name} cannot be compared: it is of type {columns[name]}.")
    if not isinstance(told, dict) or not told:
        raise ConditionError(f'{name}: write what must hold, such as {{"=": {kind.example}}}.')
    for operator, value in told.items():
        try:
            yield _comparison(sql.Identifier(name), kind, operator, value)
        except ValueError as error:
            raise ConditionError(f"{name} {operator}: {error}") from None


def _comparison(column: sql.Identifier, kind: Kind, operator: str, value: Any) -> Compiled:
    if operator == "is_null":
        return _is_null(column, value)
    if operator == "in":
        return _is_among(column, kind, value)
    known = EQUALITY | ORDER if kind.is_ordered else EQUALITY
    if operator not in known:
        raise ConditionError(f"use one of {', '.join([*known, *OTHERS])}.")
    where = sql.SQL("{} {} {}").format(column, sql.SQL(known[operator]), sql.Placeholder())
    return Compiled(where, (kind.read(value),))


def _is_null(column: sql.Identifier, value: Any) -> Compiled:
    if not isinstance(value, bool):
        raise ConditionError("write true (the column is empty) or false (it is not).")
    test = sql.SQL("IS NULL" if value else "IS NOT NULL")
    return Compiled(sql.SQL("{} {}").format(column, test), ())


def _is_among(column: sql.Identifier, kind: Kind, value: Any) -> Compiled:
    if not isinstance(value, list) or not 0 < len(value) <= MOST_VALUES:
        raise ConditionError(f"write a list of 1 to {MOST_VALUES} values.")
    marks = sql.SQL(", ").join([sql.Placeholder()] * len(value))
    where = sql.SQL("{} IN ({})").format(column, marks)
    return Compiled(where, tuple(kind.read(item) for item in value))


# --------------------------------------------------------------------------- values


@dataclass(frozen=True, slots=True)
class Kind:
    """How values of a type are written in JSON. `read` raises ValueError in words."""

    read: Callable[[Any], Any]
    example: str
    is_ordered: bool = True


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConditionError("write true or false.")
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not -BIGGEST <= value < BIGGEST:
        raise ConditionError("write a whole number.")
    return value


def _number(value: Any) -> float:
    if isinstance(value, float) and math.isfinite(value):
        return value
    try:
        return _whole(value)
    except ValueError:
        raise ConditionError("write a finite number.") from None


def _text(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value or len(value) > LONGEST_TEXT:
        raise ConditionError(f"write a text of at most {LONGEST_TEXT} characters.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ConditionError("leave out unpaired surrogates.") from None
    return value


def _of_text(read: Callable[[str], Any], words: str) -> Callable[[Any], Any]:
    def checked(value: Any) -> Any:
        try:
            return read(_text(value))
        except ValueError:
            raise ConditionError(f"write {words}.") from None

    return checked


def _moment(value: str) -> datetime:
    found = datetime.fromisoformat(value)
    if found.tzinfo is None:
        raise ValueError(value)
    try:
        # PostgreSQL knows no offset of 16 hours and more; Python does.
        return found.astimezone(UTC)
    except OverflowError:
        raise ValueError(value) from None


def _address(value: str) -> Any:
    if "%" in value:  # a zone, which inet does not know
        raise ValueError(value)
    return ip_address(value)


_TEXT = Kind(_text, '"ping"')
_WHOLE = Kind(_whole, "200")
_NUMBER = Kind(_number, "12.5")
_MOMENT = Kind(
    _of_text(_moment, "a time with its zone, such as 2026-01-31T12:00:00Z"),
    '"2026-01-31T12:00:00Z"',
)
KINDS = {
    "boolean": Kind(_truth, "true", is_ordered=False),
    "smallint": _WHOLE,
    "integer": _WHOLE,
    "bigint": _WHOLE,
    "real": _NUMBER,
    "double precision": _NUMBER,
    "numeric": _NUMBER,
    "character varying": _TEXT,
    "text": _TEXT,
    "timestamp with time zone": _MOMENT,
    "date": Kind(_of_text(date.fromisoformat, "a day such as 2026-01-31"), '"2026-01-31"'),
    "uuid": Kind(
        _of_text(UUID, "a UUID"), '"01890000-0000-7000-8000-000000000000"', is_ordered=False
    ),
    "inet": Kind(_of_text(_address, "an IP address"), '"192.0.2.1"', is_ordered=False),
}
