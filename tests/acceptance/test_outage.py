"""A gateway under traffic whose PostgreSQL is really stopped, and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest
from cryptography.fernet import Fernet

from registry.db.embedded import DATABASE, Cluster
from tests.peers import Peer, running_peer

ROOT = Path(__file__).resolve().parents[2]
PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
FAST = {"fsync": "off", "max_connections": "30", "shared_buffers": "16MB"}


def wait_for(condition: Callable[[], Any], seconds: float = 30) -> Any:
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.05)
    return found


class Gateway:
    """`serve` as a process of its own, with a registered server and two keys."""

    def __init__(self, folder: Path, cluster: Cluster, port: int, peer: Peer) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.env = {name: value for name, value in os.environ.items() if name != "DEBUG"} | {
            "DATABASE_URL": cluster.url(DATABASE),
            "SECRET_KEY": "k" * 50,
            "ENCRYPTION_KEYS": Fernet.generate_key().decode(),
            "GATEWAY_ALLOW_PRIVATE_UPSTREAMS": "on",
            "GATEWAY_LOCAL_DIR": str(folder / "local"),
            "GATEWAY_STALE_SECONDS": "300",
        }
        self.manage("init_db")
        self.manage("register_server", "peer", peer.url)
        made = [
            json.loads(self.manage("create_api_key", name, "--scope", "proxy", "--json"))
            for name in ("warm", "cold")
        ]
        self.warm, self.cold = (key["key"] for key in made)
        self.warm_id = made[0]["id"]
        self.process = subprocess.Popen(
            [sys.executable, "manage.py", "serve", "--port", str(port)], cwd=ROOT, env=self.env
        )

    def manage(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT,
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def call(self, key: str) -> int:
        answer = httpx2.post(
            f"{self.url}/mcp/peer",
            json=PING,
            headers={"x-api-key": key},
            trust_env=False,
            timeout=10,
        )
        return int(answer.status_code)

    def ready(self) -> tuple[int, dict[str, str]]:
        try:
            answer = httpx2.get(f"{self.url}/health/ready", trust_env=False, timeout=10)
        except httpx2.HTTPError:
            return 0, {}
        return answer.status_code, answer.json()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


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
            gateway = Gateway(tmp_path, cluster, free_port, peer)
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
            gateway.stop()
    assert gateway.process.returncode == 0
