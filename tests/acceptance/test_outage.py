"""A gateway under traffic whose PostgreSQL is really stopped, and started again."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from registry.db.embedded import DATABASE, Cluster
from tests.peers import Peer, running_peer
from tests.serving import Gateway, environment, manage, stop, wait_for

FAST = {"fsync": "off", "max_connections": "30", "shared_buffers": "16MB"}


class Scene:
    """`serve` with a registered server and two keys."""

    def __init__(self, folder: Path, cluster: Cluster, port: int, peer: Peer) -> None:
        env = environment(folder, DATABASE_URL=cluster.url(DATABASE), GATEWAY_STALE_SECONDS="300")
        manage(env, "init_db")
        manage(env, "register_server", "peer", peer.url)
        made = [
            json.loads(manage(env, "create_api_key", name, "--scope", "proxy", "--json"))
            for name in ("warm", "cold")
        ]
        self.warm, self.cold = (key["key"] for key in made)
        self.warm_id = made[0]["id"]
        self.gateway = Gateway(env, port=port, log=folder / "serve.log")
        self.process, self.ready = self.gateway.process, self.gateway.ready

    def call(self, key: str) -> int:
        return int(self.gateway.call(key, "peer").status_code)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    for above in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        above.chmod(0o711)  # root's server is another user, who has to pass through
    cluster = Cluster(tmp_path / "cluster", settings=FAST)
    yield cluster
    cluster.remove()


@pytest.mark.timeout(240)
def test_calls_go_on_while_postgresql_is_stopped(
    tmp_path: Path, cluster: Cluster, free_port: int
) -> None:
    with running_peer() as peer, ExitStack() as at_last:
        with cluster.running():
            gateway = Scene(tmp_path, cluster, free_port, peer)
            at_last.callback(gateway.process.kill)  # nothing, once it has ended
            wait_for(lambda: gateway.ready()[0] == 200)
            wait_for(lambda: gateway.call(gateway.warm) == 200)
            codes: list[int] = []
            enough = threading.Event()

            def traffic() -> None:
                while not enough.is_set():
                    codes.append(gateway.call(gateway.warm))

            threads = [threading.Thread(target=traffic) for _ in range(3)]
            for thread in threads:
                thread.start()
        # PostgreSQL is stopped now.
        try:
            so_far = len(codes)
            assert gateway.call(gateway.cold) == 503
            status, body = wait_for(lambda: (r := gateway.ready())[1].keys() > {"status"} and r)
            assert (status, set(body)) == (200, {"status", "database_away_since"})
            wait_for(lambda: len(codes) > so_far + 50)
        finally:
            enough.set()
            for thread in threads:
                thread.join(30)
        assert set(codes) == {200}

        with cluster.running():
            with psycopg.connect(cluster.url(DATABASE), autocommit=True) as operator:
                operator.execute(
                    "UPDATE enhanced_api_keys SET is_active = false WHERE id = %s",
                    [gateway.warm_id],
                )
            wait_for(lambda: gateway.call(gateway.warm) == 401)
            assert gateway.call(gateway.cold) == 200
            assert gateway.ready() == (200, {"status": "ok"})
            stop(gateway.process)
    assert gateway.process.returncode == 0
