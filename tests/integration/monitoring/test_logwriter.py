"""The log writer over a real PostgreSQL: what is refused costs its own row and no other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from django.utils.timezone import now

from monitoring.logwriter import LogWriter, RequestRow
from monitoring.models import RequestLog
from registry.db.ids import uuid7
from registry.db.pool import async_pool

pytestmark = pytest.mark.django_db(transaction=True)


def row(**changes: Any) -> RequestRow:
    fields = {"request_time": now(), "request_id": uuid7(), "method": "POST", "path": "/mcp/x"}
    return RequestRow(**(fields | {"status_code": 200} | changes))


def written(work: Callable[[LogWriter], Coroutine[Any, Any, None]]) -> LogWriter:
    async def scenario() -> LogWriter:
        pool = async_pool(max_size=2, timeout=2)
        await pool.open()
        writer = LogWriter(pool)
        writer.start()
        await work(writer)
        await writer.stop()
        await pool.close()
        return writer

    return asyncio.run(scenario())


def test_rows_that_postgresql_cannot_take_are_dropped_alone_and_counted():
    rows = [row() for _ in range(5)]
    bad = [row(status_code=-1), row(ip_address="nonsense"), row(status_code=99_999)]

    async def put(writer: LogWriter) -> None:
        for item in (*rows[:2], bad[0], rows[2], bad[1], *rows[3:], bad[2]):
            writer.put(item)

    writer = written(put)
    assert set(RequestLog.objects.values_list("id", flat=True)) == {item.id for item in rows}
    assert (writer.refused, writer.dropped) == (len(bad), 0)


def test_a_batch_that_was_written_already_is_not_written_twice_and_holds_nothing_up():
    first, second = row(), row()

    async def put(writer: LogWriter) -> None:
        writer.put(first)
        await writer._round()
        writer.put(first)  # the answer to its COMMIT was lost, so it is tried again
        writer.put(second)

    writer = written(put)
    assert RequestLog.objects.count() == 2
    assert writer.dropped == 0


def test_texts_that_no_column_holds_are_made_to_fit():
    async def put(writer: LogWriter) -> None:
        writer.put(row(tool_name="a\0b" + "x" * 1000, error_message="\ud800", path="/" * 9999))

    written(put)
    saved = RequestLog.objects.get()
    assert saved.tool_name.startswith("abx")
    assert len(saved.tool_name) == 255
    assert (saved.error_message, len(saved.path)) == ("?", 512)
