"""A PostgreSQL of their own for the tests, unless DATABASE_URL names one.

Loaded by `-p tests.cluster` (pyproject.toml) before Django's settings. What the settings read is
put into the environment, which the workers of pytest-xdist inherit; the server itself starts
with the session and ends with it. What a killed run leaves behind, the next run removes.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Generator
from pathlib import Path
from types import FrameType

import pytest

from registry.db.embedded import Cluster
from registry.db.filelock import lock_alone, open_lock

PREFIX = f"mcp-gateway-tests-{os.geteuid()}-"
# Tests may lose their data, so nothing waits for the disk.
SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "max_connections": "300",
    "max_locks_per_transaction": "256",
    # What optimize_db --advise looks for.
    "max_prepared_transactions": "5",
    "wal_level": "logical",
}


class _Run:
    """The folder of this run: what would be in .local, and the cluster if it is ours."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self.folder.chmod(0o711)  # root's server is another user, who has to pass through
        self.alive = open_lock(self.folder / "alive.lock")
        lock_alone(self.alive)
        self.cluster: Cluster | None = None
        if not os.environ.get("DATABASE_URL"):
            self.cluster = _cluster_in(self.folder)
            os.environ["DATABASE_URL"] = self.cluster.url("mcp_gateway")
        local = self.folder / "local"
        local.mkdir()
        os.environ["GATEWAY_LOCAL_DIR"] = str(local)

    def end(self) -> None:
        _remove(self.folder)
        self.alive.close()


run_key = pytest.StashKey[_Run]()


def _cluster_in(folder: Path) -> Cluster:
    return Cluster(folder / "cluster", settings=SETTINGS)


def _remove(folder: Path) -> None:
    _cluster_in(folder).remove()
    shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers() -> None:
    """Folders whose run has ended without clearing up: nobody holds their lock."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        lock = folder / "alive.lock"
        if folder.stat().st_uid != os.geteuid() or not lock.exists():
            continue
        with open_lock(lock) as file:
            if lock_alone(file):
                _remove(folder)


def _stop_like_ctrl_c(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None]:
    """Before pytest-django reads the settings; a wrapper comes before every plain hook."""
    if not hasattr(early_config, "workerinput") and "PYTEST_XDIST_WORKER" not in os.environ:
        _remove_leftovers()
        early_config.stash[run_key] = _Run()
        early_config.add_cleanup(early_config.stash[run_key].end)
        signal.signal(signal.SIGTERM, _stop_like_ctrl_c)
    return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """In the controller alone, before it starts workers."""
    run = session.config.stash.get(run_key, None)
    if run and run.cluster and not session.config.option.collectonly:
        running = run.cluster.running()
        running.__enter__()
        session.config.add_cleanup(lambda: running.__exit__(None, None, None))


@pytest.hookimpl(tryfirst=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two for each core: many tests wait for a process, a socket or a time-out."""
    return 2 * (os.cpu_count() or 1)
