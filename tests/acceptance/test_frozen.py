"""PostgreSQL that says nothing any more: its processes are stopped (SIGSTOP), not ended."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from psycopg import sql

from registry.db.embedded import DATABASE, Cluster
from tests.acceptance.test_up import children_of
from tests.peers import running_peer
from tests.serving import Gateway, environment, manage, port_now, start, stop, wait_for

FAST = {"fsync": "off", "max_connections": "40", "shared_buffers": "16MB"}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    for above in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        above.chmod(0o711)  # root's server is another user, who has to pass through
    cluster = Cluster(tmp_path / "cluster", settings=FAST)
    yield cluster
    cluster.remove()


@contextmanager
def frozen(cluster: Cluster) -> Iterator[None]:
    """Every process of the server is stopped inside."""
    postmaster = cluster._postmaster()
    assert postmaster
    os.kill(postmaster, signal.SIGSTOP)  # first: it starts no more
    family = [postmaster, *children_of(postmaster)]
    for pid in family:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in family:
            with suppress(ProcessLookupError):  # its client is gone, and so is it by now
                os.kill(pid, signal.SIGCONT)


class Scene:
    """Two gateways and a worker, with a server, a key that they know and one that they do not."""

    def __init__(self, folder: Path, cluster: Cluster, upstream: str, at_last: ExitStack) -> None:
        env = environment(folder, DATABASE_URL=cluster.url(DATABASE))
        manage(env, "init_db")
        manage(env, "register_server", "peer", upstream)
        scopes = ("--scope", "proxy", "--scope", "read", "--json")
        made = [manage(env, "create_api_key", name, *scopes) for name in ("warm", "cold")]
        self.warm, self.cold = (str(json.loads(text)["key"]) for text in made)
        self.stopped, self.kept = (
            Gateway(env, port=port_now(), log=folder / f"{name}.log")
            for name in ("stopped", "kept")
        )
        self.worker = start(env, folder / "worker.log", "worker")
        self.answered: Counter[str] = Counter()
        for process in (self.stopped.process, self.kept.process, self.worker):
            at_last.callback(process.kill)  # nothing, once it has ended

    def call(self, gateway: Gateway, key: str) -> tuple[int, float]:
        """The answer's status and how long it took."""
        answer = gateway.call(key, "peer", seconds=60)
        self.answered[answer.headers["x-request-id"]] += 1
        return answer.status_code, answer.elapsed.total_seconds()

    def list(self, gateway: Gateway) -> tuple[int, float]:
        """The same of the control plane."""
        answer = gateway.api(self.warm, "servers", seconds=60)
        return answer.status_code, answer.elapsed.total_seconds()

    def is_warm(self) -> bool:
        gateways = (self.stopped, self.kept)
        return all(gateway.ready()[0] == 200 for gateway in gateways) and all(
            self.call(gateway, self.warm)[0] == self.list(gateway)[0] == 200 for gateway in gateways
        )


@contextmanager
def held_up(cluster: Cluster, table: LiteralString) -> Iterator[None]:
    """Statements on a table wait inside, so that a freeze meets them half-way."""
    with psycopg.connect(cluster.url(DATABASE)) as own:
        own.execute(sql.SQL("LOCK {} IN ACCESS EXCLUSIVE MODE").format(sql.Identifier(table)))
        yield
        own.rollback()


def waits_for_lock(cluster: Cluster, *, sessions: int) -> bool:
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with psycopg.connect(cluster.url(DATABASE)) as own:
        [(found,)] = own.execute(query).fetchall()
    return int(found) >= sessions


@pytest.mark.timeout(240)
def test_a_frozen_database_holds_up_nobody_for_long(tmp_path: Path, cluster: Cluster) -> None:
    with running_peer() as peer, ExitStack() as at_last, cluster.running():
        scene = Scene(tmp_path, cluster, peer.url, at_last)
        stopped, kept = scene.stopped, scene.kept
        wait_for(scene.is_warm)
        wait_for((tmp_path / "worker.log").read_text)
        pool = at_last.enter_context(ThreadPoolExecutor())
        with held_up(cluster, "mcp_servers"):
            stuck = [pool.submit(scene.list, gateway) for gateway in (stopped, kept)]
            wait_for(lambda: waits_for_lock(cluster, sessions=2))
            with frozen(cluster):
                began = time.monotonic()
                cold = [pool.submit(scene.call, gateway, scene.cold) for gateway in (stopped, kept)]
                new = [pool.submit(scene.list, kept) for _ in range(3)]
                warm = [scene.call(kept, scene.warm)]
                while "database_away_since" not in kept.ready()[1] or len(warm) < 50:
                    warm.append(scene.call(kept, scene.warm))
                    time.sleep(0.02)  # the others want the processor, too
                assert {status for status, _ in warm} == {200}
                assert max(seconds for _, seconds in warm) < 3

                assert_refused(cold, within=9)  # it asks for five seconds, and calls it off for one
                assert_refused(new, within=9)  # five for a connection
                assert_refused(stuck, within=20)  # until the database is known to be away
                status, seconds = scene.call(kept, scene.cold)
                assert (status, seconds < 1) == (503, True)

                ends = [pool.submit(stop, process) for process in (stopped.process, scene.worker)]
                assert all(end.result() < 15 for end in ends)
                assert time.monotonic() - began < 45
        assert stopped.process.returncode == 0
        assert "Killing" not in stopped.log.read_text(), "it did not end by itself"
        assert scene.worker.returncode == 1
        assert "without an answer of PostgreSQL" in (tmp_path / "worker.log").read_text()

        wait_for(lambda: scene.call(kept, scene.cold)[0] == scene.list(kept)[0] == 200)
        assert stop(kept.process) < 15
        assert kept.process.returncode == 0
        # Those of the gateway that ended meanwhile waited in files, and the other one loads them.
        with psycopg.connect(cluster.url(DATABASE)) as own:
            rows = own.execute("SELECT request_id::text, count(*) FROM request_logs GROUP BY 1")
            assert Counter(dict(rows.fetchall())) == scene.answered


def assert_refused(answers: list[Future[tuple[int, float]]], *, within: float) -> None:
    found = [answer.result() for answer in answers]
    assert {status for status, _ in found} == {503}
    assert max(seconds for _, seconds in found) < within, found
