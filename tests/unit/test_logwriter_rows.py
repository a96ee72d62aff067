"""Lines as COPY reads them, and the frames that the spool keeps them in."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from monitoring.logwriter import AuditRow, MetricRow, RequestRow, storable
from monitoring.logwriter.rows import Batch, fields_of
from monitoring.logwriter.spool import Damage, frame, records
from registry.db.ids import uuid7

AT = datetime(2026, 11, 23, 6, 30, tzinfo=UTC)
texts = st.text(st.characters(codec=None), max_size=40)
contents = st.lists(texts.map(lambda text: storable(text).encode()), min_size=1, max_size=8)


def named(row: Any) -> dict[str, str | None]:
    return dict(zip(row.table.columns, fields_of(row.line()), strict=True))


@given(texts, texts, st.dictionaries(texts, texts, max_size=3))
def test_a_line_reads_back_as_what_postgresql_can_store(path, message, metadata):
    row = RequestRow(
        request_time=AT,
        request_id=uuid7(),
        method="POST",
        path=path,
        error_message=message,
        request_metadata=metadata,
    )
    assert row.line().count(b"\n") == 1
    found = named(row)
    assert found["path"] == storable(path)[:512]
    assert found["error_message"] == storable(message)
    expected = {storable(key): storable(value) for key, value in metadata.items()}
    assert json.loads(found["request_metadata"]) == expected
    assert found["request_time"] == AT.isoformat()
    assert found["ip_address"] is None


def test_every_row_has_a_field_for_each_column_of_its_table():
    rows = (
        RequestRow(request_time=AT, request_id=uuid7(), method="GET", path="/"),
        AuditRow(timestamp=AT, action="call.deny", details={"nested": ["a\0", 1, None]}),
        MetricRow(timestamp=AT, server_id=uuid7(), error_rate=0.5),
    )
    for row in rows:
        assert named(row)["id"] == row.id.hex
    assert json.loads(named(rows[1])["details"]) == {"nested": ["a", 1, None]}
    assert named(rows[2])["error_rate"] == "0.5"


def test_an_empty_text_and_a_text_like_null_stay_texts():
    row = RequestRow(request_time=AT, request_id=uuid7(), method="", path="\\N")
    assert (named(row)["method"], named(row)["path"]) == ("", "\\N")


def test_a_batch_is_parted_by_day():
    rows = [MetricRow(timestamp=AT.replace(day=day), server_id=uuid7()) for day in (23, 24, 23, 25)]
    lines = [row.line() for row in rows]
    days = Batch.of(rows[0].table, lines).days()
    assert [day.lines for day in days] == [[lines[0], lines[2]], [lines[1]], [lines[3]]]


@given(contents)
def test_frames_read_back(found):
    assert list(records(b"".join(map(frame, found)))) == found


@given(contents, st.data())
def test_a_torn_end_costs_the_last_record_alone(found, data):
    whole = b"".join(map(frame, found))
    torn = data.draw(st.integers(1, len(frame(found[-1])) - 1))
    *kept, damage = records(whole[:-torn])
    assert kept == found[:-1]
    assert isinstance(damage, Damage)
    assert damage.offset + damage.length == len(whole) - torn


@given(contents, st.data())
def test_a_corrupt_byte_costs_its_own_record_alone(found, data):
    frames = [frame(content) for content in found]
    victim = data.draw(st.integers(0, len(found) - 1))
    at = data.draw(st.integers(0, len(frames[victim]) - 1))
    flipped = data.draw(st.integers(1, 255))
    broken = bytearray(frames[victim])
    broken[at] ^= flipped
    frames[victim] = bytes(broken)
    read = [part for part in records(b"".join(frames)) if not isinstance(part, Damage)]
    assert read == found[:victim] + found[victim + 1 :]


@given(st.binary(max_size=200))
def test_noise_is_told_and_never_loops(noise):
    read = list(records(noise))
    assert sum(part.length for part in read if isinstance(part, Damage)) == len(noise)
