"""Partitions that are archived before they are dropped, and what comes back from the files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as pq
import pytest
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.utils.timezone import now
from psycopg import sql

from monitoring import tasks
from monitoring.models import AuditLog, DataRetentionPolicy, RequestLog
from monitoring.retention import archive
from registry.db.partitions import PartitionsError, Place, read_partitions
from tests.factories import DataRetentionPolicyFactory, RequestLogFactory

# Partitions are made and dropped on a connection of their own.
pytestmark = pytest.mark.django_db(transaction=True)

TABLE = "request_logs"
LATER = timedelta(days=32)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, settings: Any, transactional_db: None) -> Iterator[Path]:
    """A folder for archives; afterwards the partitions are as before, and emptied by the flush."""
    settings.GATEWAY_ARCHIVE_DIR = tmp_path / "archive"
    yield settings.GATEWAY_ARCHIVE_DIR
    DataRetentionPolicy.objects.all().delete()
    with connection.cursor() as cursor:
        for name in tables() - attached():
            cursor.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(name)))
    tasks.partitions_create(at=now())


def attached() -> set[str]:
    return {
        found.name
        for table in ("request_logs", "audit_logs")
        for found in read_partitions(connection, table)
        if found.place is Place.ATTACHED
    }


def tables() -> set[str]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ~ '(request|audit)_logs_'"
        )
        return {name for (name,) in cursor.fetchall()}


def rows_of(table: str) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(
            sql.SQL("SELECT t::text FROM {} AS t ORDER BY id").format(sql.Identifier(table))
        )
        return cursor.fetchall()


def retire(**policy: Any) -> DataRetentionPolicy:
    made = DataRetentionPolicyFactory(retention_days=30, archive=True, **policy)
    tasks.partitions_remove(at=now() + LATER)
    made.refresh_from_db()
    return made


def todays(table: str = TABLE, at: datetime | None = None) -> str:
    return f"{table}_{at or now():%Y%m%d}"


def restore(*arguments: Any, **options: Any) -> str:
    out = StringIO()
    call_command("restore_archive", *map(str, arguments), stdout=out, **options)
    return out.getvalue()


def odd_rows() -> None:
    """What texts, numbers and empty columns can hold."""
    RequestLogFactory(error_message="tab\t, newline\n, \\N, \\, ', \", ☃ and 𝄞", duration_ms=1 / 3)
    RequestLogFactory(
        ip_address="2001:db8::1",
        request_metadata={"nested": ["\\u0001", None, 1e300]},
        duration_ms=float("inf"),
        upstream_ms=None,
        tenant_id=None,
        request_size_bytes=2**62,
    )
    RequestLogFactory(ip_address="192.0.2.1", error_message="", upstream_ms=float("nan"))
    RequestLogFactory.create_batch(50)


def test_what_goes_is_archived_and_comes_back_to_the_last_digit(folder: Path) -> None:
    odd_rows()
    before = rows_of(TABLE)
    policy = retire()
    assert policy.last_error == ""
    assert not RequestLog.objects.exists()
    [path] = folder.glob("*/*")  # no draft is left, and nothing for days without rows
    assert path.name == f"{todays()}.parquet"
    assert path.stat().st_mode & 0o077 == 0

    assert f"53 rows of {TABLE}" in restore()
    assert "Restored 53 rows into the table restored_" in restore(path)
    assert rows_of(f"restored_{todays()}") == before
    entry = AuditLog.objects.get(action="archive.restore")
    assert entry.details == {"file": path.name, "table": f"restored_{todays()}", "rows": 53}


def test_the_file_has_types_that_others_can_use(folder: Path) -> None:
    RequestLogFactory(status_code=404, tool_name="add", duration_ms=2.5)
    retire()
    [path] = folder.glob("*/*")
    table = pq.read_table(path)
    assert str(table.schema.field("request_time").type) == "timestamp[us, tz=UTC]"
    [row] = table.to_pylist()
    assert (row["status_code"], row["tool_name"], row["duration_ms"]) == (404, "add", 2.5)
    assert "/" not in (row["ip_address"] or "")


def test_an_archive_is_attached_again_where_no_policy_drops_it(folder: Path) -> None:
    RequestLogFactory.create_batch(3)
    before = rows_of(TABLE)
    retire()
    [path] = folder.glob("*/*")
    document = json.loads(restore(path, attach=True, json=True))
    assert (document["restored"], document["rows"]) == (todays(), 3)
    assert rows_of(TABLE) == before
    assert todays() in attached()


def test_attaching_what_the_next_night_drops_is_refused(folder: Path) -> None:
    RequestLogFactory()
    policy = retire()
    [path] = folder.glob("*/*")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("monitoring.management.commands.restore_archive.now", lambda: now() + LATER)
        with pytest.raises(CommandError, match=f"{policy.name} keeps 30 days"):
            restore(path, attach=True)
    assert todays() not in tables()


def test_a_file_that_does_not_prove_keeps_the_partition_until_it_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RequestLogFactory.create_batch(3)
    before = rows_of(TABLE)
    with monkeypatch.context() as patch:
        # A writer that loses every row but the first of a batch.
        patch.setattr(archive, "BATCH_ROWS", 1)
        write = archive._write_rows

        def lose(raw: Any, draft: Path, *rest: Any) -> None:
            write(raw, draft, *rest)
            whole = pq.read_table(draft)
            pq.write_table(whole.slice(0, 2), draft)

        patch.setattr(archive, "_write_rows", lose)
        with pytest.raises(PartitionsError, match="holds 2 rows"):
            retire()
    assert list(folder.glob("*/*")) == []
    assert rows_of(todays()) == before  # detached and whole
    policy = DataRetentionPolicy.objects.get()
    assert "holds 2 rows" in policy.last_error

    tasks.partitions_remove(at=now() + LATER)
    assert todays() not in tables()
    [path] = folder.glob("*/*")
    assert archive.archive_read(path).figures.rows == 3


def test_a_changed_value_does_not_prove(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RequestLogFactory(status_code=200)
    write = archive._write_rows

    def change(raw: Any, draft: Path, *rest: Any) -> None:
        write(raw, draft, *rest)
        whole = pq.read_table(draft)
        place = whole.schema.get_field_index("status_code")
        field = whole.schema.field(place)
        pq.write_table(whole.set_column(place, field, pyarrow.array([201], field.type)), draft)

    monkeypatch.setattr(archive, "_write_rows", change)
    with pytest.raises(PartitionsError, match="checksum"):
        retire()
    assert todays() in tables()


def test_a_run_that_was_killed_before_the_drop_is_completed(folder: Path) -> None:
    """The file is there, the partition too: it is dropped, and the file stays as it is."""
    RequestLogFactory()
    retire()
    [path] = folder.glob("*/*")
    written = path.read_bytes()
    restore(path, attach=True)
    tasks.partitions_remove(at=now() + LATER)
    assert todays() not in tables()
    assert path.read_bytes() == written


def test_another_file_of_the_name_is_not_overwritten(folder: Path) -> None:
    RequestLogFactory()
    retire()
    [path] = folder.glob("*/*")
    written = path.read_bytes()
    tasks.partitions_create(at=now())
    RequestLogFactory()
    with pytest.raises(PartitionsError, match="holds other rows"):
        tasks.partitions_remove(at=now() + LATER)
    assert path.read_bytes() == written
    assert len(rows_of(todays())) == 1


@pytest.mark.parametrize("obstacle", ["unset", "a file", "no pyarrow"])
def test_nothing_is_detached_that_cannot_be_archived(
    obstacle: str, folder: Path, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    RequestLogFactory()
    if obstacle == "unset":
        settings.GATEWAY_ARCHIVE_DIR = None
    elif obstacle == "a file":
        folder.write_text("")
    else:
        monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    words = {"unset": "GATEWAY_ARCHIVE_DIR is not set: give it", "a file": "cannot be made",
             "no pyarrow": "pip install"}[obstacle]  # fmt: skip
    with pytest.raises(PartitionsError, match=words):
        retire()
    assert RequestLog.objects.count() == 1
    assert words in DataRetentionPolicy.objects.get().last_error


def test_files_that_are_no_archives_are_refused_in_words(folder: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.parquet"
    pq.write_table(pyarrow.table({"a": [1]}), foreign)
    torn = tmp_path / "torn.parquet"
    torn.write_bytes(foreign.read_bytes()[:20])
    for file, words in [
        (foreign, "not written by this program"),
        (torn, "cannot be read as Parquet"),
        (tmp_path / "none.parquet", "There is no file"),
    ]:
        with pytest.raises(CommandError, match=words):
            restore(file)
    with pytest.raises(CommandError, match="needs the FILE") as refused:
        restore(attach=True)
    assert refused.value.returncode == 2
    assert "no archive" in restore()


def test_a_table_of_the_name_is_not_touched(folder: Path) -> None:
    RequestLogFactory()
    retire()
    [path] = folder.glob("*/*")
    restore(path)
    with pytest.raises(CommandError, match="drop or rename it first"):
        restore(path)


def test_only_partitioned_logs_are_archived() -> None:
    policy = DataRetentionPolicyFactory.build(
        table_name="sessions", date_column="expires_at", archive=True
    )
    with pytest.raises(ValidationError, match="loses single rows"):
        policy.full_clean()


def archived(**fields: Any) -> Path:
    """The file of one row of today."""
    RequestLogFactory(**fields)
    retire()
    return archive._folder() / TABLE / f"{todays()}.parquet"


def test_attaching_beside_a_partition_of_the_same_time_is_one_sentence() -> None:
    path = archived()
    day = now().replace(hour=0, minute=0, second=0, microsecond=0)
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE request_logs_other PARTITION OF request_logs"
            " FOR VALUES FROM (%s) TO (%s)",
            [day + timedelta(hours=6), day + timedelta(hours=7)],
        )
    before = tables()
    try:
        with pytest.raises(CommandError, match=r"^request_logs_other, a partition") as refused:
            restore(path, attach=True)
        assert refused.value.returncode == 1
        assert tables() == before
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TABLE request_logs_other")


def test_attaching_while_others_lock_the_log_is_one_sentence() -> None:
    path = archived()
    before = tables()
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("LOCK TABLE request_logs IN SHARE UPDATE EXCLUSIVE MODE")
        with pytest.raises(CommandError, match=r"locked by others .* try again later.$"):
            restore(path, attach=True)
    assert tables() == before


def test_rows_that_postgresql_refuses_are_not_told() -> None:
    path = archived(tool_name="a secret")
    whole = pq.read_table(path)
    place = whole.schema.get_field_index("status_code")
    field = whole.schema.field(place)
    pq.write_table(whole.set_column(place, field, pyarrow.array([None], field.type)), path)
    before = tables()
    with pytest.raises(CommandError, match='null value in column "status_code"') as refused:
        restore(path)
    assert "a secret" not in str(refused.value)
    assert "\n" not in str(refused.value)
    assert tables() == before


TOLD = {
    "table": TABLE,
    "since": "2026-01-01T00:00:00+00:00",
    "until": "2026-01-02T00:00:00+00:00",
    "figures": {"rows": 1, "checksum": "1"},
}


def parquet(path: Path, metadata: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = pyarrow.table({"a": [1]})
    pq.write_table(rows.replace_schema_metadata({archive.METADATA: metadata.encode()}), path)
    return path


@pytest.mark.parametrize(
    "metadata",
    [
        "{",
        "[" * 100_000,
        "[]",
        "{}",
        json.dumps(TOLD | {"table": None}),
        json.dumps(TOLD | {"table": "a\0b"}),
        json.dumps(TOLD | {"since": "x"}),
        json.dumps(TOLD | {"since": 1}),
        json.dumps(TOLD | {"since": "2026-01-01T00:00:00"}),
        json.dumps(TOLD | {"since": "0001-01-01T00:00:00+10:00"}),
        json.dumps(TOLD | {"until": TOLD["since"]}),
        json.dumps(TOLD | {"figures": []}),
        json.dumps(TOLD | {"figures": {"rows": 1, "checksum": "1", "more": 1}}),
        json.dumps(TOLD | {"figures": {"rows": 1, "checksum": 1}}),
        json.dumps(TOLD | {"figures": {"rows": 1.0, "checksum": "1"}}),
    ],
    ids=lambda metadata: metadata[:90],
)
def test_metadata_that_say_nothing_are_told_in_words(folder: Path, metadata: str) -> None:
    path = parquet(folder / TABLE / "odd.parquet", metadata)
    with pytest.raises(CommandError, match="its metadata do not say what it holds") as refused:
        restore(path)
    assert refused.value.returncode == 1
    assert "its metadata do not say" in restore()


def test_a_file_that_cannot_be_read_does_not_hide_the_others(folder: Path) -> None:
    torn = folder / TABLE / "a.parquet"
    parquet(folder / TABLE / "b.parquet", json.dumps(TOLD))
    torn.write_text("torn")
    first, second = restore().splitlines()
    assert first.startswith(f"{torn} cannot be read as Parquet")
    assert "b.parquet: 1 rows of request_logs from 2026-01-01 00:00 until" in second
    broken, whole = json.loads(restore(json=True))
    assert (broken["file"], "rows" in broken, whole["rows"]) == (str(torn), False, 1)
    assert broken["error"] == first
