"""The conditions of a retention policy: what is refused, and that nothing typed becomes SQL."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.retention.conditions import KINDS, ConditionError, compile_conditions

COLUMNS = {kind.replace(" ", "_"): kind for kind in KINDS} | {"details": "jsonb", "tags": "text[]"}
ORDERED = ["<", "<=", ">", ">="]
# Whatever a caller may send: JSON, with our own words now and then.
WORDS = st.sampled_from([*COLUMNS, "=", "!=", *ORDERED, "in", "is_null"]) | st.text(max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)


def test_no_conditions_mean_every_row():
    compiled = compile_conditions({}, columns=COLUMNS)
    assert (compiled.where.as_string(None), compiled.parameters) == ("TRUE", ())


def test_all_of_it_must_hold():
    told = {"integer": {">=": 1, "<": 9}, "text": {"in": ["a", "b"]}, "uuid": {"is_null": False}}
    compiled = compile_conditions(told, columns=COLUMNS)
    assert compiled.where.as_string(None) == (
        '"integer" >= %s AND "integer" < %s AND "text" IN (%s, %s) AND "uuid" IS NOT NULL'
    )
    assert compiled.parameters == (1, 9, "a", "b")


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        (["x"], "Write an object"),
        (None, "Write an object"),
        ({"nope": {"=": 1}}, "There is no column 'nope'"),
        ({"id; DROP TABLE users": {"=": 1}}, "There is no column"),
        ({"details": {"=": 1}}, "cannot be compared: it is of type jsonb"),
        ({"integer": 5}, "write what must hold, such as"),
        ({"integer": {}}, "write what must hold, such as"),
        ({"integer": {"LIKE": 5}}, "use one of ="),
        ({"boolean": {"<": True}}, "use one of =, !=, in, is_null"),
        ({"integer": {"=": "5"}}, "whole number"),
        ({"integer": {"=": True}}, "whole number"),
        ({"integer": {"=": 2**63}}, "whole number"),
        ({"double_precision": {"<": float("nan")}}, "finite number"),
        ({"boolean": {"=": 1}}, "true or false"),
        ({"text": {"=": 5}}, "text of at most"),
        ({"text": {"=": "a\0b"}}, "text of at most"),
        ({"text": {"=": "\ud800"}}, "surrogates"),
        ({"timestamp_with_time_zone": {"<": "2026-01-31T12:00:00"}}, "time with its zone"),
        ({"timestamp_with_time_zone": {"<": "0001-01-01T00:00:00+01:00"}}, "time with its zone"),
        ({"timestamp_with_time_zone": {">": "9999-12-31T23:30:00-01:00"}}, "time with its zone"),
        ({"date": {"<": "yesterday"}}, "a day such as"),
        ({"uuid": {"=": "abc"}}, "a UUID"),
        ({"inet": {"=": "fe80::1%eth0"}}, "an IP address"),
        ({"integer": {"in": []}}, "a list of 1 to 100 values"),
        ({"integer": {"in": [1, "2"]}}, "whole number"),
        ({"integer": {"in": list(range(101))}}, "a list of 1 to 100 values"),
        ({"integer": {"is_null": 1}}, "write true"),
    ],
)
def test_what_means_nothing_is_refused_in_words(conditions, words):
    with pytest.raises(ConditionError, match=re.escape(words)):
        compile_conditions(conditions, columns=COLUMNS)


@given(JSON | st.dictionaries(WORDS, st.dictionaries(WORDS, JSON, max_size=3), max_size=3))
def test_nothing_that_was_typed_becomes_sql(conditions):
    try:
        compiled = compile_conditions(conditions, columns=COLUMNS)
    except ConditionError as error:
        assert str(error)
        return
    column = "|".join(COLUMNS)
    one = rf'"(?:{column})" (?:(?:=|<>|<=?|>=?) %s|IN \(%s(?:, %s)*\)|IS (?:NOT )?NULL)'
    text = compiled.where.as_string(None)
    assert text == "TRUE" or re.fullmatch(rf"{one}(?: AND {one})*", text)
    assert text.count("%s") == len(compiled.parameters)
