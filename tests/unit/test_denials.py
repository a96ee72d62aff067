"""Refused calls: each is counted, and a flood is no flood of rows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.logwriter import AuditRow, Denial, denials
from registry.db.ids import uuid7

AT = datetime(2026, 11, 23, 6, 30, tzinfo=UTC)


class Book:
    """What a writer was given: complete rows, first versions, last versions."""

    def __init__(self) -> None:
        self.put: list[AuditRow] = []
        self.held: list[tuple[object, int]] = []
        self.closed: list[AuditRow] = []
        self.denials = denials.Denials(
            put=self.put.append,
            hold=lambda row: self.held.append((row.id, row.details["count"])),
        )

    def close(self) -> list[AuditRow]:
        rows = self.denials.close_window()
        self.closed += rows
        return rows

    @property
    def total(self) -> int:
        return sum(row.details["count"] for row in (*self.put, *self.closed))


def denial(*, ip: str = "203.0.113.9", reason: str = "invalid_credentials", key=None) -> Denial:
    return Denial(reason=reason, message="No.", ip_address=ip, api_key_id=key)


@given(st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 6), st.sampled_from("ab")))))
def test_the_counts_sum_up_to_the_denials(events):
    """None ends a minute; a pair is a denial of a caller for a reason. Four callers have slots."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(denials, "MAX_SLOTS", 4)
        book = Book()
        for event in events:
            if event is None:
                assert len(book.close()) <= 5
            else:
                book.denials.note(denial(ip=f"203.0.113.{event[0]}", reason=event[1]), at=AT)
        book.close()
    assert book.total == sum(event is not None for event in events)
    ids = [row.id for row in (*book.put, *book.closed)]
    assert len(ids) == len(set(ids))
    # Each last version was journalled in a first one, and the other way round.
    assert {id_ for id_, _ in book.held} == {row.id for row in book.closed}
    assert all(count == 1 for _, count in book.held)


def test_the_first_is_a_row_at_once_and_repetitions_are_one_a_minute():
    book = Book()
    for second in range(180):
        book.denials.note(denial(), at=AT + timedelta(seconds=second))
        if second % 60 == 59:
            book.close()
    assert [row.details["count"] for row in book.put] == [1]
    assert [row.details["count"] for row in book.closed] == [59, 60, 60]
    assert book.closed[0].details["first"] == (AT + timedelta(seconds=1)).isoformat()
    assert book.closed[0].details["last"] == (AT + timedelta(seconds=59)).isoformat()
    book.close()
    book.denials.note(denial(), at=AT)
    assert len(book.put) == 2  # a quiet minute, and it is a first one again


def test_a_key_is_one_caller_wherever_it_calls_from_and_reasons_stay_apart():
    book, key = Book(), uuid7()
    for number in range(5):
        book.denials.note(denial(ip=f"203.0.113.{number}", key=key), at=AT)
    book.denials.note(denial(reason="rate_limited", key=key), at=AT)
    assert len(book.put) == 2
    assert [row.details["count"] for row in book.close()] == [4]


def test_rotating_addresses_grow_neither_memory_nor_rows(monkeypatch):
    monkeypatch.setattr(denials, "MAX_SLOTS", 10)
    book = Book()
    for number in range(5000):
        book.denials.note(denial(ip=f"2001:db8::{number:x}"), at=AT)
    assert len(book.put) == 11
    (others,) = book.close()
    assert others.details["count"] == 4989
    assert (others.ip_address, others.details["reason"]) == (None, "various")


def test_who_tries_several_names_hides_none_behind_the_first(monkeypatch):
    monkeypatch.setattr(denials, "MOST_NAMES", 3)
    book = Book()
    for name in ("alice", "bob", "admin", "bob", "carol", "dave"):
        login = Denial(
            action=denials.LOGIN,
            reason="no",
            message="No.",
            ip_address="203.0.113.9",
            username=name,
        )
        book.denials.note(login, at=AT)
    assert [row.details["username"] for row in book.put] == ["alice"]
    (row,) = book.close()
    assert (row.details["username"], row.details["count"]) == ("bob", 5)
    assert row.details["usernames"] == ["bob", "admin", "carol"]


def test_logins_beyond_the_bound_are_no_calls(monkeypatch):
    monkeypatch.setattr(denials, "MAX_SLOTS", 1)
    book = Book()
    for number in range(3):
        login = Denial(
            action=denials.LOGIN, reason="no", message="No.", ip_address=f"203.0.113.{number}"
        )
        book.denials.note(login, at=AT)
    assert [row.action for row in book.put] == [denials.LOGIN] * 2
    assert "request log" not in book.put[1].error_message
