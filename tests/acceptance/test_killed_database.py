"""PostgreSQL killed under load: every call's row is there afterwards, once."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest

from registry.db.embedded import Cluster
from tests.acceptance.test_up import Up, _is_ready, local, runs, up

__all__ = ["local", "runs", "up"]  # fixtures

pytestmark = [
    pytest.mark.xdist_group("up"),
    pytest.mark.timeout(420),
    pytest.mark.skipif(sys.platform != "linux", reason="follows processes through /proc"),
]

CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
CALLERS = 4
KILLS = 2


def answers(ready: dict[str, Any], over: threading.Event, *, key: bool) -> Counter[str]:
    """Call without pause until it is over; the request ids of all answers, by how often."""
    headers = {"authorization": f"Bearer {ready['api_key']}"} if key else {}
    seen: Counter[str] = Counter()
    with httpx2.Client(trust_env=False, timeout=60, headers=headers) as client:
        while not over.is_set():
            response = client.post(ready["mcp_url"], json=CALL)
            assert key or response.status_code == 401
            seen[response.headers["x-request-id"]] += 1
    return seen


def kill_and_wait(local: Path, url: str) -> None:
    server = Cluster(local)._postmaster()
    assert server
    os.kill(server, signal.SIGKILL)
    deadline = time.monotonic() + 150  # recovery takes its time on a busy machine
    while Cluster(local)._postmaster() in {None, server} or not _is_ready(url):
        assert time.monotonic() < deadline, "the database did not come back"
        time.sleep(0.1)


def logged(url: str) -> Counter[str]:
    """How often each request is in the log; none while the database is starting up."""
    try:
        connected = psycopg.connect(url)
    except psycopg.OperationalError:
        return Counter()
    with connected as connection:
        rows = connection.execute("SELECT request_id::text, count(*) FROM request_logs GROUP BY 1")
        return Counter(dict(rows.fetchall()))


def test_a_killed_database_costs_no_row_and_doubles_none(
    up: Callable[..., Up], local: Path
) -> None:
    began = time.monotonic()
    running = up("--no-seed", "--port", "0")
    ready = running.ready()
    over = threading.Event()
    with ThreadPoolExecutor(CALLERS + 1) as pool:
        callers = [pool.submit(answers, ready, over, key=True) for _ in range(CALLERS)]
        stranger = pool.submit(answers, ready, over, key=False)
        try:
            for _ in range(KILLS):
                kill_and_wait(local, ready["url"])
        finally:
            over.set()
    refused = stranger.result()
    expected = sum((caller.result() for caller in callers), refused)
    assert set(expected.values()) == {1}

    deadline = time.monotonic() + 30
    while len(found := logged(ready["database_url"])) < len(expected):
        assert time.monotonic() < deadline, f"{len(expected) - len(found)} rows are missing"
        time.sleep(0.2)
    assert found == expected

    assert running.stop() == 0
    minutes = int((time.monotonic() - began) // 60)
    with Cluster(local).running() as cluster, psycopg.connect(cluster.url("mcp_gateway")) as after:
        assert logged(cluster.url("mcp_gateway")) == expected
        denied = after.execute(
            "SELECT count(*), sum((details->>'count')::int) FROM audit_logs"
            " WHERE action = 'call.deny' AND details->>'reason' = 'missing_credentials'"
        ).fetchone()
    assert denied is not None
    assert denied[0] <= 2 + minutes  # one at once, one for each minute that began
    assert denied[1] == len(refused)
