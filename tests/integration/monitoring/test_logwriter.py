"""The log writer over a real PostgreSQL that refuses, goes away, and loses answers."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from django.utils.timezone import now

from monitoring.logwriter import (
    AuditRow,
    Backlog,
    Denial,
    LogWriter,
    MetricRow,
    RequestRow,
    store,
    writer,
)
from monitoring.logwriter import spool as spool_files
from monitoring.logwriter.rows import Batch, fields_of
from monitoring.logwriter.spool import Spool
from monitoring.models import AuditLog, RequestLog
from registry.db.ids import uuid7
from registry.db.pool import Pool, async_pool
from registry.db.tenancy import OPERATOR_ROLE
from registry.models import ServerMetric
from tests.pgproxy import PgProxy, pg_proxy, pool_through

pytestmark = pytest.mark.django_db(transaction=True)

ROOT = Path(__file__).resolve().parents[3]
Work = Callable[[LogWriter], Coroutine[Any, Any, None]]


def row(**changes: Any) -> RequestRow:
    fields = {"request_time": now(), "request_id": uuid7(), "method": "POST", "path": "/mcp/x"}
    return RequestRow(**(fields | {"status_code": 200} | changes))


def audit(**changes: Any) -> AuditRow:
    return AuditRow(**({"timestamp": now(), "action": "test.note"} | changes))


def denial(**changes: Any) -> Denial:
    fields = {"reason": "invalid_credentials", "message": "No.", "ip_address": "203.0.113.9"}
    return Denial(**(fields | changes))


@asynccontextmanager
async def running(pool: Pool, folder: Path, **options: Any) -> AsyncIterator[LogWriter]:
    """A writer that is stopped at the end, whatever its pool leads to."""
    await pool.open()
    log = LogWriter(pool, folder=folder, **options)
    log.start()
    try:
        yield log
    finally:
        await log.stop()
        await pool.close(timeout=1)


async def until(condition: Callable[[], Any], *, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        await asyncio.sleep(0.02)


def written(work: Work, folder: Path, pool: Pool | None = None, **options: Any) -> LogWriter:
    """Run `work` with a writer; everything is written or spooled when it returns."""

    async def scenario() -> LogWriter:
        async with running(pool or async_pool(max_size=2, timeout=2), folder, **options) as log:
            await work(log)
        return log

    return asyncio.run(scenario())


def put(*rows: Any) -> Work:
    async def work(log: LogWriter) -> None:
        for item in rows:
            (log.journal if isinstance(item, AuditRow) else log.put)(item)

    return work


def ids(model: Any) -> list[Any]:
    return sorted(model.objects.values_list("id", flat=True))


def notes() -> list[Any]:
    return sorted(AuditLog.objects.filter(action="test.note").values_list("id", flat=True))


def sorted_ids(rows: list[Any]) -> list[Any]:
    return sorted(item.id for item in rows)


def spooled(folder: Path, suffix: str = "spool") -> list[Path]:
    return sorted(folder.glob(f"*.{suffix}"))


@pytest.fixture
def proxy() -> Iterator[PgProxy]:
    with pg_proxy() as running_proxy:
        yield running_proxy


# ---------------------------------------------------------------- what PostgreSQL refuses


def test_rows_that_postgresql_cannot_take_are_left_out_alone_and_counted(tmp_path):
    rows = [row() for _ in range(5)]
    bad = [row(status_code=-1), row(ip_address="nonsense"), row(status_code=99_999)]
    mixed = (*rows[:2], bad[0], rows[2], bad[1], *rows[3:], bad[2])
    log = written(put(*mixed), tmp_path)
    assert ids(RequestLog) == sorted_ids(rows)
    assert (log.refused, log.dropped) == (len(bad), 0)


def test_a_refused_audit_row_is_kept_aside(tmp_path):
    good = audit()
    log = written(put(audit(ip_address="nonsense"), good), tmp_path)
    assert ids(AuditLog) == [good.id]
    assert log.refused == 1
    (kept,) = spooled(tmp_path, "refused")
    assert b"nonsense" in kept.read_bytes()
    assert spooled(tmp_path) == []


@pytest.mark.parametrize("journalled", [True, False])
def test_a_refused_audit_row_that_no_file_takes_waits_and_holds_up_no_others(
    tmp_path, monkeypatch, journalled
):
    good, bad, calls = audit(), audit(ip_address="nonsense"), [row() for _ in range(5)]

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    async def work(log: LogWriter) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(log._spool, "set_aside", full)
            patch.setattr(log._spool, "save", full)
            if not journalled:
                patch.setattr(log._spool, "append", full)
            await put(good, bad)(log)
            await until(lambda: log.written == 1)
            await put(*calls)(log)
            await until(lambda: log.written == 6)
            assert log.refused == 0
        await log._end_minute()
        await until(lambda: log.refused == 1)

    log = written(work, tmp_path)
    assert ids(AuditLog) == [good.id]
    assert ids(RequestLog) == sorted_ids(calls)
    assert len(spooled(tmp_path, "refused")) == 1
    assert (log.refused, spooled(tmp_path)) == (1, [])


def test_a_row_that_is_there_already_is_not_written_twice_and_holds_nothing_up(tmp_path):
    first, second = row(), row()

    async def work(log: LogWriter) -> None:
        log.put(first)
        await log._round()
        log.put(first)
        log.put(second)

    log = written(work, tmp_path)
    assert ids(RequestLog) == sorted_ids([first, second])
    assert (log.dropped, log.refused) == (0, 0)


def test_a_row_that_cannot_be_made_into_a_line_costs_no_other(tmp_path):
    good = row()
    log = written(put(row(path=7), good, row(request_metadata={"x": object()})), tmp_path)
    assert ids(RequestLog) == [good.id]
    assert log.refused == 2


def test_texts_that_no_column_holds_are_made_to_fit(tmp_path):
    odd = row(tool_name="a\0b" + "x" * 1000, error_message="\ud800\t\\N\n", path="/" * 9999)
    written(put(odd), tmp_path)
    saved = RequestLog.objects.get()
    assert saved.tool_name.startswith("abx")
    assert len(saved.tool_name) == 255
    assert (saved.error_message, len(saved.path)) == ("?\t\\N\n", 512)


def test_all_three_kinds_of_rows_come_back_as_they_were_left(tmp_path):
    id_ = uuid7()
    call = row(tenant_id=id_, ip_address="2001:db8::1", queue_ms=0.25, request_metadata={"n": "ä"})
    note = audit(details={"reason": "a\nb"}, user_agent="x\ty", success=False, api_key_id=id_)
    metric = MetricRow(timestamp=now(), server_id=id_, error_rate=0.5, active_connections=3)
    written(put(call, note, metric), tmp_path)
    for model, left in ((RequestLog, call), (AuditLog, note), (ServerMetric, metric)):
        saved = model.objects.get(id=left.id)
        for column in left.table.columns:
            assert getattr(saved, column) == getattr(left, column), column


@pytest.fixture
def own_schema() -> Iterator[Callable[[str], None]]:
    """A schema before the usual one, for tables of the same names that behave otherwise."""
    with connection.cursor() as cursor:
        cursor.execute("CREATE SCHEMA logwriter_test")
        cursor.execute(f"GRANT USAGE ON SCHEMA logwriter_test TO {OPERATOR_ROLE}")
        try:
            yield cursor.execute
        finally:
            cursor.execute("DROP SCHEMA logwriter_test CASCADE")


SEARCH_PATH = {"options": "-c search_path=logwriter_test,public"}
PARTITIONED = """
CREATE TABLE logwriter_test.request_logs (LIKE request_logs INCLUDING DEFAULTS)
    PARTITION BY RANGE (request_time);
ALTER TABLE logwriter_test.request_logs ADD PRIMARY KEY (id, request_time);
CREATE TABLE logwriter_test.today PARTITION OF logwriter_test.request_logs
    FOR VALUES FROM ('2026-03-01') TO ('2026-03-02');
GRANT INSERT ON logwriter_test.request_logs TO mcp_gateway_operator;
"""


def test_rows_without_a_partition_wait_for_it_and_hold_up_no_others(
    tmp_path, own_schema, proxy, caplog
):
    own_schema(PARTITIONED)
    today = [row(request_time=f) for f in [now().replace(year=2026, month=3, day=1)] * 5]
    later = [row(request_time=f) for f in [now().replace(year=2026, month=3, day=2)] * 5]
    both = [item for pair in zip(today, later, strict=True) for item in pair]
    log = written(put(*both), tmp_path, pool_through(proxy, **SEARCH_PATH))
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM logwriter_test.request_logs")
        assert cursor.fetchone() == (5,)
    assert len(spooled(tmp_path)) == 1
    assert "run_maintenance" in caplog.text
    assert (log.dropped, log.refused) == (0, 0)
    own_schema(
        "CREATE TABLE logwriter_test.tomorrow PARTITION OF logwriter_test.request_logs"
        " FOR VALUES FROM ('2026-03-02') TO ('2026-03-03')"
    )
    written(put(), tmp_path, pool_through(proxy, **SEARCH_PATH))
    with connection.cursor() as cursor:
        cursor.execute("SELECT id FROM logwriter_test.request_logs ORDER BY id")
        assert [id_ for (id_,) in cursor.fetchall()] == sorted_ids(both)
    assert spooled(tmp_path) == []


def test_rows_before_the_oldest_partition_are_left_out_and_audit_rows_kept_aside(tmp_path, caplog):
    old = now() - timedelta(days=60)
    calls, notes = [row() for _ in range(3)], [audit()]
    late = [row(request_time=old) for _ in range(4)], audit(timestamp=old)
    log = written(put(*late[0], late[1], *calls, *notes), tmp_path)
    assert ids(RequestLog) == sorted_ids(calls)
    assert set(ids(AuditLog)) >= {note.id for note in notes}
    assert (log.dropped, log.refused) == (5, 0)
    assert spooled(tmp_path) == []
    (kept,) = spooled(tmp_path, "refused")
    assert late[1].id.hex.encode() in kept.read_bytes()
    assert "older than its oldest partition" in caplog.text


def test_rows_that_wait_for_a_partition_stay_in_one_file_and_rest_longer_each_time(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(writer, "FLUSH_SECONDS", 600)  # no round but those of this test
    ahead = [row(request_time=now() + timedelta(days=60)) for _ in range(4)]
    tries: list[int] = []

    async def work(log: LogWriter) -> None:
        write = log._store._write

        async def counted(batch: Batch) -> None:
            tries[-1] += 1
            await write(batch)

        await put(*ahead)(log)
        log._wake.set()
        await until(lambda: log.backlog == Backlog(waiting=0, spooled=4, lost=0))
        log._store._write = counted  # type: ignore[method-assign]
        for _ in range(8):
            tries.append(0)
            await log._end_minute()
            await log._round()
        assert log.backlog.spooled == 4
        assert len({path.stat().st_ino for path in spooled(tmp_path)}) == 1

    log = written(work, tmp_path)
    assert tries[:8] == [1, 1, 0, 1, 0, 0, 0, 1]
    assert (log.dropped, log.refused) == (0, 0)
    assert len(spooled(tmp_path)) == 1


WALLED = """
CREATE TABLE logwriter_test.request_logs (LIKE request_logs INCLUDING ALL);
ALTER TABLE logwriter_test.request_logs ENABLE ROW LEVEL SECURITY;
CREATE POLICY anything ON logwriter_test.request_logs FOR INSERT WITH CHECK (status_code <> 555);
"""


def test_where_copy_is_refused_under_row_level_security_rows_are_inserted(
    tmp_path, own_schema, proxy
):
    own_schema(WALLED)
    name = f"logwriter_{uuid7().hex}"
    own_schema(f"CREATE ROLE {name} LOGIN")  # may take no other role
    own_schema(f"GRANT USAGE ON SCHEMA logwriter_test TO {name}")
    own_schema(f"GRANT INSERT ON logwriter_test.request_logs TO {name}")
    rows = [row(error_message="a\tb\\", request_metadata={"x": "\\N"}), *(row() for _ in range(9))]
    bad = row(status_code=-1)
    try:
        log = written(put(*rows, bad), tmp_path, pool_through(proxy, user=name, **SEARCH_PATH))
        with connection.cursor() as cursor:
            cursor.execute("SELECT id FROM logwriter_test.request_logs ORDER BY id")
            assert [id_ for (id_,) in cursor.fetchall()] == sorted_ids(rows)
            cursor.execute(
                "SELECT error_message, request_metadata->>'x' FROM logwriter_test.request_logs"
                " WHERE id = %s",
                [rows[0].id],
            )
            assert cursor.fetchone() == ("a\tb\\", "\\N")
    finally:
        own_schema(f"DROP OWNED BY {name}; DROP ROLE {name}")
    assert (log.refused, log.dropped) == (1, 0)


def test_rows_are_inserted_in_slices_that_let_calls_go_on(monkeypatch):
    rows = [row() for _ in range(950)]
    taken = longest = 0

    def counted(line: bytes) -> list[str | None]:
        nonlocal taken, longest
        taken += 1
        longest = max(longest, taken)
        return fields_of(line)

    async def others() -> None:
        nonlocal taken
        while True:
            taken = 0
            await asyncio.sleep(0)

    async def scenario() -> None:
        async with async_pool(max_size=1, timeout=5) as pool:
            inserting = store.Store(pool)
            inserting._copies = False
            calls = asyncio.create_task(others())
            await inserting.write(Batch.of(rows[0].table, [r.line() for r in rows]), seconds=30)
            calls.cancel()

    monkeypatch.setattr(store, "fields_of", counted)
    asyncio.run(scenario())
    assert ids(RequestLog) == sorted_ids(rows)
    assert longest <= store.INSERT_ROWS


# ---------------------------------------------------------------- while PostgreSQL is away


def test_rows_of_an_outage_are_loaded_afterwards_once_each(tmp_path, proxy, caplog):
    rows, notes = [row() for _ in range(300)], [audit() for _ in range(20)]

    async def work(log: LogWriter) -> None:
        await put(*rows[:100], *notes[:5])(log)
        await until(lambda: log.written == 105)
        proxy.cut()
        for at in range(100, 300, 50):
            await put(*rows[at : at + 50])(log)
            await log._round()
        await put(*notes[5:])(log)
        assert not log.status.available
        assert log.status.waiting == 0
        assert log.backlog == Backlog(waiting=0, spooled=200, lost=0)
        assert "takes log rows again" not in caplog.text
        assert {stat.S_IMODE(path.stat().st_mode) for path in spooled(tmp_path)} == {0o600}
        proxy.mend()
        await until(lambda: log.status.spooled_bytes == 0)
        assert log.backlog.spooled == 0

    log = written(work, tmp_path, pool_through(proxy))
    assert ids(RequestLog) == sorted_ids(rows)
    assert ids(AuditLog) == sorted_ids(notes)
    assert log.dropped == 0
    assert [path.name for path in tmp_path.iterdir()] == ["spool.lock"]
    assert caplog.text.count("PostgreSQL does not take log rows, they go to files") == 1
    assert caplog.text.count("PostgreSQL takes log rows again; still in files: 0") == 1


def test_what_cannot_be_written_at_the_end_waits_for_the_next_process(tmp_path, proxy, caplog):
    rows, notes = [row() for _ in range(10)], [audit() for _ in range(3)]

    async def work(log: LogWriter) -> None:
        proxy.cut()
        await put(*rows, *notes)(log)

    written(work, tmp_path, pool_through(proxy))
    assert RequestLog.objects.count() == AuditLog.objects.count() == 0
    assert "the next gateway process loads them" in caplog.text
    written(put(), tmp_path)
    assert ids(RequestLog) == sorted_ids(rows)
    assert ids(AuditLog) == sorted_ids(notes)


def test_a_postgresql_that_does_not_answer_is_given_up_for_now(tmp_path, proxy, monkeypatch):
    monkeypatch.setattr(writer, "BATCH_SECONDS", 0.3)
    rows = [row() for _ in range(10)]

    async def work(log: LogWriter) -> None:
        proxy.hold_up()
        await put(*rows)(log)
        await until(lambda: log.status.spooled_bytes > 0, seconds=30)
        assert not log.status.available
        proxy.mend()
        await until(lambda: log.status.spooled_bytes == 0, seconds=30)

    written(work, tmp_path, pool_through(proxy))
    assert ids(RequestLog) == sorted_ids(rows)


def test_past_the_bound_request_rows_are_counted_and_audit_rows_kept(tmp_path, proxy):
    rows, notes = [row() for _ in range(200)], [audit() for _ in range(100)]

    async def work(log: LogWriter) -> None:
        proxy.cut()
        for at in range(0, 200, 10):
            await put(*rows[at : at + 10], *notes[at // 2 : at // 2 + 5])(log)
            await log._round()
        assert log.dropped > 0
        assert log.status.dropped == log.backlog.lost == log.dropped
        proxy.mend()
        await until(lambda: log.status.spooled_bytes == 0)

    log = written(work, tmp_path, pool_through(proxy), max_bytes=20_000)
    assert RequestLog.objects.count() == 200 - log.dropped
    kept = AuditLog.objects.filter(action="test.note").values_list("id", flat=True)
    assert sorted(kept) == sorted_ids(notes)
    (told,) = AuditLog.objects.filter(action="request_log.drop")
    assert told.details["count"] == log.dropped


def test_a_stop_that_takes_too_long_leaves_the_rest_in_files(tmp_path, proxy, monkeypatch):
    monkeypatch.setattr(writer, "STOP_SECONDS", 0.3)
    rows, notes = [row() for _ in range(10)], [audit() for _ in range(3)]

    async def work(log: LogWriter) -> None:
        await put(*rows[:5])(log)
        await until(lambda: log.written == 5)
        proxy.hold_up()
        await put(*rows[5:], *notes)(log)

    written(work, tmp_path, pool_through(proxy))
    assert len(spooled(tmp_path)) == 2
    proxy.mend()
    written(put(), tmp_path)
    assert ids(RequestLog) == sorted_ids(rows)
    assert ids(AuditLog) == sorted_ids(notes)


def test_a_full_disk_stops_no_call_and_loses_no_audit_row(tmp_path, proxy, monkeypatch, caplog):
    notes, calls = [audit() for _ in range(3)], [row() for _ in range(4)]

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    async def work(log: LogWriter) -> None:
        proxy.cut()
        with monkeypatch.context() as patch:
            patch.setattr(log._spool, "append", full)
            await put(*notes, *calls)(log)
            await log._round()
        assert (log.dropped, log.status.waiting) == (4, 3)
        proxy.mend()
        await until(lambda: log.written == 3)

    written(work, tmp_path, pool_through(proxy))
    assert ids(AuditLog)[:3] == sorted_ids(notes)
    assert RequestLog.objects.count() == 0
    assert "GATEWAY_SPOOL_DIR" in caplog.text


def test_a_flood_during_one_slow_write_goes_to_files_and_drops_nothing(
    tmp_path, proxy, monkeypatch
):
    monkeypatch.setattr(writer, "MAX_WAITING", 100)
    rows = [row() for _ in range(400)]

    async def work(log: LogWriter) -> None:
        await put(rows[0])(log)
        await until(lambda: log.written == 1)
        proxy.hold_up()
        await put(rows[1])(log)
        await until(lambda: log.status.waiting == 1 and log._batches)
        for at in range(2, 400, 50):
            await put(*rows[at : at + 50])(log)
            await until(lambda: len(log._waiting) < 50 and log._relief is None)
        assert log.status.available
        proxy.mend()
        await until(lambda: log.status.spooled_bytes == 0)

    log = written(work, tmp_path, pool_through(proxy))
    assert log.dropped == 0
    assert ids(RequestLog) == sorted_ids(rows)


def test_audit_rows_that_no_file_takes_are_never_dropped_for_others(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "MAX_WAITING", 4)
    notes, calls = [audit() for _ in range(3)], [row() for _ in range(10)]

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    async def work(log: LogWriter) -> None:
        monkeypatch.setattr(log._spool, "append", full)
        await put(*notes, *calls)(log)

    log = written(work, tmp_path)
    assert set(ids(AuditLog)) >= {note.id for note in notes}
    assert log.dropped >= 6


def test_a_folder_that_cannot_be_used_is_said_at_the_start(tmp_path):
    (tmp_path / "file").touch()

    async def scenario() -> None:
        LogWriter(async_pool(max_size=1, timeout=1), folder=tmp_path / "file").start()

    with pytest.raises(ImproperlyConfigured, match="GATEWAY_SPOOL_DIR"):
        asyncio.run(scenario())


# ---------------------------------------------------------------- a disk that fails


async def minute_ends(log: LogWriter) -> None:
    """Have the writer's own task end its minute, and everything that belongs to it."""
    log._minute_began -= writer.MINUTE
    before = log._minute_began
    log._wake.set()
    await until(lambda: log._minute_began != before)
    await log._in_thread(lambda: None)


def refuse_everybody(log: LogWriter, number: int) -> None:
    """So many denials, of three callers in turn."""
    for at in range(number):
        log.deny(denial(ip_address=f"203.0.113.{at % 3}"), at=now())


def half_written(descriptor: int, data: bytes) -> None:
    os.write(descriptor, data[: len(data) // 2])
    raise OSError(28, "No space left on device")


def counted_denials() -> int:
    counts = AuditLog.objects.filter(action="call.deny").values_list("details__count", flat=True)
    return sum(counts)


@pytest.mark.parametrize("is_up", [True, False], ids=["postgresql up", "postgresql away"])
def test_a_full_disk_that_is_freed_later_costs_no_denial(tmp_path, proxy, monkeypatch, is_up):
    async def work(log: LogWriter) -> None:
        refuse_everybody(log, 300)
        await until(lambda: log.written == 3)
        if not is_up:
            proxy.cut()
            await log._pool.drain()
        with monkeypatch.context() as patch:
            patch.setattr(spool_files, "_write_all", half_written)
            for _ in range(3):
                refuse_everybody(log, 300)
                await minute_ends(log)
            # A caller that comes only now.
            log.deny(denial(ip_address="203.0.113.9"), at=now())
            refuse_everybody(log, 299)
        proxy.mend()
        await minute_ends(log)
        await until(lambda: log.status.available and log.status.waiting == 0)

    log = written(work, tmp_path, pool_through(proxy))
    written(put(), tmp_path)  # what came to the journal at the very end
    assert counted_denials() == 1500
    assert (log.dropped, log.refused) == (0, 0)
    assert (spooled(tmp_path), spooled(tmp_path, "refused")) == ([], [])


@pytest.mark.parametrize("is_up", [True, False], ids=["postgresql up", "postgresql away"])
def test_a_full_disk_is_told_once_and_not_for_each_row(tmp_path, proxy, monkeypatch, caplog, is_up):
    async def work(log: LogWriter) -> None:
        if not is_up:
            proxy.cut()
        with monkeypatch.context() as patch:
            patch.setattr(spool_files, "_write_all", half_written)
            for at in range(50):
                log.deny(denial(ip_address=f"203.0.113.{at}"), at=now())
            await minute_ends(log)
            await until(lambda: log.status.available == is_up)
        proxy.mend()

    written(work, tmp_path, pool_through(proxy))
    assert caplog.text.count("wait in memory") == 1
    written(put(), tmp_path)  # whoever comes next loads what went to files in the end
    assert counted_denials() == 50


def test_with_a_full_disk_and_no_database_denials_take_a_bounded_place(
    tmp_path, proxy, monkeypatch
):
    monkeypatch.setattr("monitoring.logwriter.denials.MAX_SLOTS", 10)

    async def work(log: LogWriter) -> None:
        proxy.cut()
        with monkeypatch.context() as patch:
            patch.setattr(spool_files, "_write_all", half_written)
            for minute in range(4):
                for at in range(200):
                    log.deny(denial(ip_address=f"2001:db8::{minute}:{at % 100:x}"), at=now())
                await minute_ends(log)
            assert log.status.waiting <= 2 * 11
        proxy.mend()

    written(work, tmp_path, pool_through(proxy))
    written(put(), tmp_path)
    assert counted_denials() == 800


def removed(folder: Path) -> None:
    shutil.rmtree(folder)


def moved(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def made_a_file(folder: Path) -> None:
    """It cannot be made again: as where this user may not write beside it."""
    shutil.rmtree(folder)
    folder.touch()


@pytest.mark.parametrize("is_up", [True, False], ids=["postgresql up", "postgresql away"])
@pytest.mark.parametrize("change", [removed, moved, made_a_file])
def test_a_spool_folder_that_vanishes_costs_no_denial(tmp_path, proxy, change, is_up):
    folder = tmp_path / "spool"

    async def work(log: LogWriter) -> None:
        refuse_everybody(log, 300)
        await until(lambda: log.written == 3)
        if not is_up:
            proxy.cut()
            await log._pool.drain()
        log.deny(denial(ip_address="203.0.113.9"), at=now())  # in a file that is open
        change(folder)
        refuse_everybody(log, 399)
        await minute_ends(log)
        refuse_everybody(log, 800)
        proxy.mend()
        await minute_ends(log)
        await until(lambda: log.status.available and log.status.waiting == 0)

    written(work, folder, pool_through(proxy))
    assert counted_denials() == 1500
    assert not folder.is_dir() or spooled(folder) == []


def test_a_folder_that_was_made_again_is_shared_as_before(tmp_path):
    """Another process must not take the segments of one that lives for left ones."""
    folder = tmp_path / "spool"
    first, second = Spool(folder, max_bytes=10**9), Spool(folder, max_bytes=10**9)
    first.open()
    second.open()
    shutil.rmtree(folder)
    batch = Batch.of(audit().table, [audit().line()])
    first.append("left", batch)
    second.append("left", batch)
    assert (first.inherit(), second.inherit()) == (0, 0)
    first.close()
    assert second.inherit() == 1
    second.close()


# ---------------------------------------------------------------- an answer that got lost


@pytest.mark.parametrize("copies", [True, False], ids=["copy", "insert"])
def test_a_commit_whose_answer_is_lost_counts_once(tmp_path, proxy, copies):
    rows, notes = [row() for _ in range(50)], [audit() for _ in range(5)]

    async def work(log: LogWriter) -> None:
        log._store._copies = copies
        proxy.lose_answer_to(b"COMMIT")
        await put(*rows)(log)
        await until(lambda: proxy.lost == 1)
        await until(lambda: log.written >= 50)
        proxy.lose_answer_to(b"COMMIT")
        await put(*notes)(log)
        await until(lambda: proxy.lost == 2)
        await until(lambda: log.status.spooled_bytes == 0)

    log = written(work, tmp_path, pool_through(proxy))
    assert ids(RequestLog) == sorted_ids(rows)
    assert ids(AuditLog) == sorted_ids(notes)
    assert (log.dropped, log.refused) == (0, 0)


@pytest.mark.parametrize(("size", "piece"), [(16, 1), (16, 2), (16, 3), (16, 5), (3000, 2)])
def test_a_lost_answer_to_a_piece_of_a_batch_loses_no_other_piece(tmp_path, proxy, size, piece):
    """A batch with a bad row is cut up; whichever piece's answer is lost, the rest is right.

    Of 3000 rows PostgreSQL meets those that are there before it meets the bad one.
    """
    rows = [row() for _ in range(size)]
    mixed = [*rows[:-5], row(status_code=-1), *rows[-5:]]

    async def work(log: LogWriter) -> None:
        write, tries = log._store._write, []

        async def losing(batch: Batch) -> None:
            tries.append(len(batch.lines))
            if len(tries) == piece:
                proxy.lose_answer_to(b"COMMIT")
            await write(batch)

        log._store._write = losing  # type: ignore[method-assign]
        await put(*mixed)(log)
        await until(lambda: proxy.lost == 1)
        await until(lambda: log.refused >= 1 and log.status.spooled_bytes == 0)

    written(work, tmp_path, pool_through(proxy))
    assert ids(RequestLog) == sorted_ids(rows)


# ---------------------------------------------------------------- killed processes, left files

KILLED = """
import asyncio, sys
import django
django.setup()
from django.utils.timezone import now
from monitoring.logwriter import AuditRow, Denial, LogWriter
from registry.db.pool import async_pool
from pathlib import Path

async def main():
    pool = async_pool(max_size=1, timeout=1)
    pool.kwargs = dict(pool.kwargs) | {"host": "127.0.0.1", "port": 1}
    await pool.open()
    log = LogWriter(pool, folder=Path(sys.argv[1]))
    log.start()
    number = 0
    while True:
        row = AuditRow(timestamp=now(), action="test.note")
        log.journal(row)
        log.deny(Denial(reason="key_expired", message="No.", ip_address="203.0.113.9"), at=now())
        print(row.id, flush=True)
        await asyncio.sleep(0.001)

asyncio.run(main())
"""


def test_audit_rows_of_a_killed_process_are_loaded_once_by_the_next(tmp_path):
    environment = os.environ | {"DJANGO_SETTINGS_MODULE": "gateway.settings"}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    told = [process.stdout.readline().strip() for _ in range(300)]
    process.send_signal(signal.SIGKILL)
    told += process.stdout.read().split()
    process.wait()
    process.stdout.close()
    written(put(), tmp_path)
    notes = AuditLog.objects.filter(action="test.note")
    found = {str(id_) for id_ in notes.values_list("id", flat=True)}
    # One more may have been taken between the journal and the line that tells of it.
    assert set(told) <= found
    assert len(found) <= len(told) + 1
    first, repeated = AuditLog.objects.filter(action="call.deny").order_by("timestamp")
    assert (first.details["count"], repeated.details["count"]) == (1, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["spool.lock"]


def left_over(folder: Path, rows: list[Any]) -> None:
    """What a process leaves that was killed: segments, and a lock that nobody holds."""
    spool = Spool(folder, max_bytes=10**9)
    spool.open()
    for number, item in enumerate(rows):
        spool.append("left", Batch.of(item.table, [item.line()]))
        if number % 3 == 2:
            spool.seal("left")
    spool.close()


def test_running_writers_that_race_for_left_files_load_them_once(tmp_path):
    rows = [row() for _ in range(40)]
    for at in range(0, 40, 10):
        left_over(tmp_path, rows[at : at + 10])

    async def scenario() -> int:
        async with (
            running(async_pool(max_size=2, timeout=5), tmp_path) as first,
            running(async_pool(max_size=2, timeout=5), tmp_path) as second,
        ):
            await asyncio.gather(first._end_minute(), second._end_minute())
            await until(lambda: first.written + second.written >= len(rows))
        return first.written + second.written

    assert asyncio.run(scenario()) == len(rows)
    assert ids(RequestLog) == sorted_ids(rows)


def test_a_segment_with_a_torn_end_and_a_damaged_middle_gives_all_else(tmp_path, caplog):
    rows = [audit() for _ in range(9)]
    left_over(tmp_path, rows)
    first, second, _third = spooled(tmp_path)
    first.write_bytes(first.read_bytes()[:-7])
    data = bytearray(second.read_bytes())
    data[len(data) // 2] ^= 0xFF
    second.write_bytes(bytes(data))
    damaged = sorted([first.read_bytes(), second.read_bytes()])
    log = written(put(), tmp_path)
    assert notes() == sorted_ids([*rows[:2], rows[3], *rows[5:]])
    assert caplog.text.count("no whole records") == 2
    assert spooled(tmp_path) == []
    # Nothing is thrown away, and the audit log says what is missing in it.
    assert sorted(path.read_bytes() for path in spooled(tmp_path, "refused")) == damaged
    told = AuditLog.objects.filter(action="log_spool.damage").values_list("details", flat=True)
    assert [details["rows_estimated"] for details in told] == [1, 1]
    assert {details["file"] for details in told} == set(map(str, spooled(tmp_path, "refused")))
    status = log.status
    assert (status.damaged_rows, status.damaged_bytes) == (2, sum(d["bytes"] for d in told))
    assert status.damaged_bytes > 0


def unlinked(bad: Path) -> None:
    bad.unlink()


def made_a_folder(bad: Path) -> None:
    bad.unlink()
    bad.mkdir()


@pytest.mark.parametrize("damage", [unlinked, made_a_folder])
def test_a_file_that_cannot_be_read_holds_up_no_other(tmp_path, caplog, damage):
    rows = [audit() for _ in range(9)]
    left_over(tmp_path, rows)

    async def work(log: LogWriter) -> None:
        bad = log._spool.pending[0].path
        damage(bad)
        log.journal(audit())  # what comes meanwhile does not wait either
        await until(lambda: log.written == 7)
        for _ in range(writer.LONGEST_REST + 1):
            await minute_ends(log)
        assert caplog.text.count("is left out") == 1
        assert str(bad) in caplog.text
        assert log.status.unreadable_files == 1

    written(work, tmp_path)
    assert set(notes()) > {item.id for item in rows[3:]}
    assert "failed and goes on" not in caplog.text


def test_a_file_that_can_be_read_again_is_loaded_after_a_while(tmp_path, monkeypatch):
    rows = [audit() for _ in range(6)]
    left_over(tmp_path, rows)
    read = Path.read_bytes

    async def work(log: LogWriter) -> None:
        bad = log._spool.pending[0].path

        def refused(path: Path) -> bytes:
            if path == bad:
                raise OSError(5, "Input/output error", str(bad))
            return read(path)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", refused)
            await until(lambda: log.written == 3 and log.status.unreadable_files == 1)
        for _ in range(writer.LONGEST_REST):
            await minute_ends(log)
        await until(lambda: log.status.unreadable_files == 0)

    written(work, tmp_path)
    assert notes() == sorted_ids(rows)
    assert spooled(tmp_path) == []


def test_rows_of_another_version_are_kept_and_not_loaded(tmp_path, caplog):
    left_over(tmp_path, [audit()])
    spool = Spool(tmp_path, max_bytes=10**9)
    spool.open()
    batch = Batch.of(audit().table, [audit().line()])
    spool.append("left", Batch(batch.table, (*batch.columns, "colour"), batch.lines))
    spool.close()
    written(put(), tmp_path)
    assert AuditLog.objects.count() == 1
    assert len(spooled(tmp_path, "refused")) == 1
    assert "another version" in caplog.text


# ---------------------------------------------------------------- denials and metrics


def test_denials_are_one_row_at_once_and_one_with_the_count_at_the_end(tmp_path):
    async def work(log: LogWriter) -> None:
        for _ in range(100):
            log.deny(denial(), at=now())
        await log._round()
        await log._round()
        assert log.written == 1

    written(work, tmp_path)
    first, repeated = AuditLog.objects.order_by("timestamp")
    assert (first.details["count"], repeated.details["count"]) == (1, 99)
    assert (first.action, first.success, first.service_name) == ("call.deny", False, "proxy")


def test_a_minute_of_calls_is_one_metrics_row_a_server(tmp_path):
    busy, quiet = uuid7(), uuid7()
    calls = [row(target_server_id=busy, upstream_ms=ms) for ms in (10.0, 20.0, 30.0)]
    calls.append(row(target_server_id=busy, upstream_ms=40.0, status_code=502))
    calls.append(row(target_server_id=quiet))  # refused before its server was asked
    written(put(*calls), tmp_path, gauges=lambda server: (2, 10) if server == busy else None)
    metric = ServerMetric.objects.get()
    assert (metric.server_id, metric.response_time_ms, metric.error_rate) == (busy, 25.0, 0.25)
    assert (metric.active_connections, metric.connection_pool_size) == (2, 10)
    assert metric.custom_metrics == {"calls": 4, "errors": 1}
    assert metric.requests_per_second > 0
