"""The spool where its thread and the event loop meet."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import connection

from monitoring.logwriter import AuditRow, spool, writer
from monitoring.logwriter.rows import Batch
from monitoring.logwriter.spool import Spool


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Spool]:
    one = Spool(tmp_path, max_bytes=10**9)
    one.open()
    yield one
    one.close()


def batch() -> Batch:
    row = AuditRow(timestamp=datetime(2026, 11, 23, tzinfo=UTC), action="test.note")
    return Batch.of(row.table, [row.line()])


class SealedBetween(dict[str, Any]):
    """The open segments, which another thread seals between a look and what follows it."""

    seal: Callable[[], None]

    def __contains__(self, purpose: object) -> bool:
        found = super().__contains__(purpose)
        self.seal()
        return found

    def get(self, purpose: str, default: Any = None) -> Any:
        found = super().get(purpose, default)
        self.seal()
        return found


def test_a_segment_that_is_sealed_while_it_is_forced_to_the_disk_hurts_nobody(opened):
    opened.append("audit", batch())
    opened._open = between = SealedBetween(opened._open)
    between.seal = lambda: opened.seal("audit")
    opened.sync("audit")
    assert len(opened.pending) == 1


def test_what_is_sealed_is_forced_to_the_disk_by_whoever_syncs_next(opened, monkeypatch):
    forced: list[tuple[int, str]] = []
    real = os.fsync

    def noted(descriptor: int) -> None:
        forced.append((os.fstat(descriptor).st_ino, threading.current_thread().name))
        real(descriptor)

    monkeypatch.setattr(spool, "SEGMENT_BYTES", 1)
    monkeypatch.setattr(os, "fsync", noted)
    opened.append("audit", batch())  # full at once, and sealed
    assert forced == []  # the loop does not wait for the disk
    inode = opened.pending[0].path.stat().st_ino
    worker = threading.Thread(target=opened.sync, args=["audit"], name="worker")
    worker.start()
    worker.join()
    assert forced == [(inode, "worker")]
    opened.sync("audit")
    assert len(forced) == 1


def test_rows_are_counted_and_whoever_inherits_them_counts_them_again(tmp_path):
    one, two = Spool(tmp_path, max_bytes=10**9), Spool(tmp_path, max_bytes=10**9)
    one.open()
    for purpose in ("audit", "away", "away"):
        one.append(purpose, batch())
    assert (one.rows(), one.rows(but=["audit"])) == (3, 2)
    one.seal("audit")
    assert one.rows(but=["audit"]) == 3, "what is sealed waits to be loaded"
    one.close()
    two.open()
    two.inherit()
    assert two.rows() == 3
    two.rest(two.pending[0])
    two.remove(two.pending[0])
    assert 0 < two.rows() < 3
    two.close()


def test_rows_for_the_database_under_another_address_are_told_of_and_may_be_moved(
    tmp_path, settings, caplog
):
    settings.GATEWAY_SPOOL_DIR = tmp_path
    ours, alive, left = writer.default_folder(), tmp_path / "alive", tmp_path / "left"
    running, ended = Spool(alive, max_bytes=10**9), Spool(left, max_bytes=10**9)
    for one in (running, ended):
        one.open()
        one.append("away", batch())
    ended.close()
    (left / "database").write_text("gateway at localhost")

    writer.spool_check()
    [told] = caplog.messages
    assert f"{left} (files: 1; database: gateway at localhost)" in told
    assert f"move its *.spool files to {ours}" in told
    assert (ours / "database").read_text().startswith(connection.settings_dict["NAME"])
    running.close()

    [file] = left.glob("*.spool")
    heir = Spool(ours, max_bytes=10**9)
    heir.open()
    file.rename(ours / file.name)
    assert (heir.inherit(), heir.rows()) == (1, 1)
    heir.close()


def test_no_server_starts_with_a_folder_that_cannot_be_written(tmp_path, settings, monkeypatch):
    settings.SECRETS_ARE_OWN, settings.GATEWAY_SPOOL_DIR = True, tmp_path / "file"
    (tmp_path / "file").touch()
    monkeypatch.setattr("gateway.management.commands.serve.serve", pytest.fail)
    with pytest.raises(ImproperlyConfigured, match=r"GATEWAY_SPOOL_DIR: .* this user may write"):
        call_command("serve", port=0)
