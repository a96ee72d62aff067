"""The embedded PostgreSQL, with real servers in folders of their own."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from gateway import env
from registry.db import embedded
from registry.db.embedded import DATABASE, Cluster, EmbeddedError

FAST = {"fsync": "off", "max_connections": "10", "shared_buffers": "16MB"}
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs it as somebody else")


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An open folder with a difficult name, and no server left in it."""
    base = tmp_path_factory.mktemp("it's a")
    for above in (base, base.parent, base.parent.parent):
        if above.stat().st_uid == os.geteuid():
            above.chmod(0o711)
    yield base / ".local"
    Cluster(base / ".local").remove()


def ask(cluster: Cluster, query: str) -> Any:
    with psycopg.connect(cluster.url(DATABASE), autocommit=True) as connection:
        row = connection.execute(query).fetchone()
        return row[0] if row else None


def postmaster_pid(cluster: Cluster) -> int:
    return int((cluster._data / "postmaster.pid").read_text().splitlines()[0])


def is_up(cluster: Cluster) -> bool:
    try:
        psycopg.connect(cluster.url(DATABASE), connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def test_starts_with_what_the_gateway_needs_and_stops(folder: Path) -> None:
    cluster = Cluster(folder, settings=FAST)
    with cluster.running():
        assert ask(cluster, "SHOW server_version").startswith("18.")
        assert "pg_stat_statements" in ask(cluster, "SHOW shared_preload_libraries")
        assert ask(cluster, "SHOW listen_addresses") == ""
        assert ask(cluster, "SHOW timezone") == "UTC"
        assert ask(cluster, "SHOW max_connections") == "10"
        assert ask(cluster, "SELECT 'a' < 'B' COLLATE \"default\"") is False
    assert not is_up(cluster)
    assert not list(cluster._socket_folder.iterdir())


def test_data_are_there_the_next_time_and_faster(folder: Path) -> None:
    cluster = Cluster(folder, settings=FAST)
    with cluster.running(), psycopg.connect(cluster.url(DATABASE)) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
    with Cluster(folder, settings=FAST).running() as again:
        assert ask(again, "SELECT number FROM kept") == 7


def test_url_is_made_without_touching_anything(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "not there" / ".local")
    url = cluster.url("mcp_gateway")
    assert not (tmp_path / "not there").exists()
    assert urlsplit(url).username == "postgres"
    assert urlsplit(url).path == "/mcp_gateway"
    [host] = parse_qs(urlsplit(url).query)["host"]
    assert env.database(url)["OPTIONS"]["host"] == host


def test_long_paths_get_a_short_socket(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / ("x" * 120) / ".local")
    [host] = parse_qs(urlsplit(cluster.url("d")).query)["host"]
    assert len(host) < 90
    assert cluster.url("d") == Cluster(tmp_path / ("x" * 120) / ".local").url("d")


def test_the_last_to_leave_stops_it(folder: Path) -> None:
    first, second = Cluster(folder, settings=FAST), Cluster(folder, settings=FAST)
    with first.running():
        pid = postmaster_pid(first)
        with second.running():
            assert postmaster_pid(second) == pid
        assert is_up(first)
    assert not is_up(first)


def test_a_server_that_outlived_its_parent_is_adopted(folder: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from registry.db.embedded import Cluster\n"
        "running = Cluster(Path(sys.argv[1])).running()\n"
        "running.__enter__(); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(folder)], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    cluster = Cluster(folder)
    assert is_up(cluster)
    pid = postmaster_pid(cluster)
    with cluster.running():
        assert postmaster_pid(cluster) == pid
    assert not is_up(cluster)


def kill_all(cluster: Cluster) -> None:
    """kill -9 for the server and its processes, as a power cut would."""
    pid = postmaster_pid(cluster)
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for victim in (pid, *map(int, children)):
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    while Path(f"/proc/{pid}").exists() and not is_zombie(pid):
        time.sleep(0.01)


def is_zombie(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
@pytest.mark.parametrize("reused", [False, True], ids=["pid gone", "pid reused"])
def test_recovers_after_kill_9(folder: Path, reused: bool) -> None:
    cluster = Cluster(folder, settings={**FAST, "fsync": "on"})
    with cluster.running():
        with psycopg.connect(cluster.url(DATABASE)) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
        kill_all(cluster)
    stale = cluster._data / "postmaster.pid"
    assert stale.exists()
    with subprocess.Popen(
        ["sleep", "60"], user=cluster._account.uid if os.geteuid() == 0 else None
    ) as other:
        try:
            if reused:
                lines = stale.read_text().splitlines()
                stale.write_text("\n".join([str(other.pid), *lines[1:], ""]))
            with cluster.running():
                assert ask(cluster, "SELECT number FROM kept") == 7
        finally:
            other.kill()


def test_two_that_start_at_once_share_one_server(folder: Path) -> None:
    """Real processes, released together: one makes the data, both use it, the last stops it."""
    program = (
        "import sys; from pathlib import Path; from registry.db.embedded import Cluster\n"
        "sys.stdin.readline()\n"
        "with Cluster(Path(sys.argv[1])).running() as cluster:\n"
        "    print((cluster._data / 'postmaster.pid').read_text().split()[0], flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    pids = {racer.stdout.readline() for racer in racers}
    assert len(pids) == 1
    assert pids != {""}
    for racer in racers:
        racer.communicate("leave\n", timeout=60)
        assert racer.returncode == 0
    assert not is_up(Cluster(folder))


def test_a_draft_that_a_killed_initdb_left_is_replaced(folder: Path) -> None:
    cluster = Cluster(folder, settings=FAST)
    draft = cluster._home / "data.partial"
    draft.mkdir(parents=True)
    (draft / "PG_VERSION").write_text("18\n")
    with cluster.running():
        assert is_up(cluster)
    assert not draft.exists()


def test_a_failure_shows_the_log(folder: Path) -> None:
    cluster = Cluster(folder, settings={**FAST, "no_such_setting": "1"})
    with (
        pytest.raises(EmbeddedError, match="unrecognized configuration parameter") as failure,
        cluster.running(),
    ):
        pass
    assert str(cluster._home) in str(failure.value)


def test_a_missing_wheel_says_what_to_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    with pytest.raises(EmbeddedError, match="set DATABASE_URL"), Cluster(folder).running():
        pass


@ROOT_ONLY
def test_root_in_a_closed_folder_uses_a_private_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    cluster = Cluster(closed / ".local", settings=FAST)
    try:
        with cluster.running():
            assert is_up(cluster)
            assert not cluster._data.is_relative_to(closed)
            assert stat.S_IMODE(cluster._data.stat().st_mode) == 0o700
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700
        assert "cannot enter" in caplog.text
    finally:
        cluster.remove()
    assert not cluster._private.exists()


@ROOT_ONLY
def test_a_new_local_folder_finds_no_old_data(tmp_path: Path) -> None:
    """The private folder outlives a deleted `.local`; its secrets and data must not mix."""
    tmp_path.chmod(0o700)
    cluster = Cluster(tmp_path / ".local", settings=FAST)
    try:
        with cluster.running(), psycopg.connect(cluster.url(DATABASE)) as connection:
            connection.execute("CREATE TABLE kept ()")
        for file in cluster.folder.iterdir():
            file.unlink()
        with cluster.running():
            assert ask(cluster, "SELECT to_regclass('kept')") is None
    finally:
        cluster.remove()


@ROOT_ONLY
def test_somebody_elses_private_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    cluster = Cluster(tmp_path / ".local", settings=FAST)
    cluster._private.mkdir()
    os.chown(cluster._private, 12345, 12345)
    try:
        with pytest.raises(EmbeddedError, match="belongs to this user alone"), cluster.running():
            pass
    finally:
        cluster._private.rmdir()
