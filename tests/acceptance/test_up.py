"""`up` from outside: a real process in an empty `.local`, ended in every way there is."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from registry.db.embedded import Cluster
from registry.db.tenancy import APP_ROLE

ROOT = Path(__file__).resolve().parents[2]
READY_SECONDS = 60
STOP_SECONDS = 30
pytestmark = [
    pytest.mark.xdist_group("up"),
    pytest.mark.skipif(sys.platform != "linux", reason="follows processes through /proc"),
]


class Up:
    """One run of `up --json` and every process that belongs to it."""

    def __init__(self, local: Path, *arguments: str) -> None:
        self.local = local
        self.process = subprocess.Popen(
            [sys.executable, "manage.py", "up", "--json", *arguments],
            cwd=ROOT,
            env=environment(local),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ready(self) -> dict[str, Any]:
        started = time.monotonic()
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        assert time.monotonic() - started < READY_SECONDS
        return json.loads(line)

    def family(self) -> set[int]:
        """It, its descendants, and the database server, which is a process of its own."""
        found = {self.process.pid}
        while fresh := {pid for parent in found for pid in children_of(parent)} - found:
            found |= fresh
        server = Cluster(self.local)._postmaster()
        assert server
        return found | {server, *children_of(server)}

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        self.process.communicate(timeout=STOP_SECONDS)
        return self.process.returncode


def environment(local: Path) -> dict[str, str]:
    unwanted = {"DATABASE_URL", "SECRET_KEY", "ENCRYPTION_KEYS", "DEBUG", "NO_PROXY"}
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    # A proxy that nobody answers at: nothing of `up` may ask it for this machine's addresses.
    proxy = {"http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    return kept | proxy | {"GATEWAY_LOCAL_DIR": str(local)}


def children_of(pid: int) -> set[int]:
    with suppress(OSError):
        tasks = Path(f"/proc/{pid}/task").glob("*/children")
        return {int(child) for task in tasks for child in task.read_text().split()}
    return set()


def alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if state(pid) not in {"", "Z"}}


def state(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def wait_until_gone(pids: set[int]) -> None:
    deadline = time.monotonic() + STOP_SECONDS
    while alive(pids):
        assert time.monotonic() < deadline, alive(pids)
        time.sleep(0.1)


def sockets(local: Path) -> list[Path]:
    folders = (local, Cluster(local)._socket_folder)
    return [path for folder in folders for path in folder.rglob("*") if path.is_socket()]


def opened(folder: Path) -> Path:
    """A folder that another user can pass through, as which root's server runs."""
    for above in (folder, folder.parent):
        above.chmod(0o711)
    return folder / ".local"


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Empty for a module's first test; the others find what it has made, which saves a minute."""
    found = opened(tmp_path_factory.mktemp("up"))
    yield found
    Cluster(found).remove()


@pytest.fixture
def runs() -> Iterator[list[Up]]:
    """What was started in the test; whatever is left of it at the end is stopped."""
    started: list[Up] = []
    yield started
    for run in started:
        try:
            if run.process.poll() is None:
                run.stop()
        finally:
            run.process.kill()  # nothing, once it has ended


@pytest.fixture
def up(local: Path, runs: list[Up]) -> Callable[..., Up]:
    """Starts runs in one folder."""

    def start(*arguments: str) -> Up:
        runs.append(Up(local, *arguments))
        return runs[-1]

    return start


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def signs_in(url: str, *, username: str, password: str) -> bool:
    """Whether the admin's form opens the admin, with cookies as a browser keeps them."""
    with httpx2.Client(base_url=url, follow_redirects=True, trust_env=False) as browser:
        browser.get("/admin/login/")
        form = {"username": username, "password": password, "next": "/admin/"}
        form["csrfmiddlewaretoken"] = browser.cookies["csrftoken"]
        page = browser.post("/admin/login/", data=form, headers={"Origin": url})
        return page.status_code == 200 and page.url.path == "/admin/"


def lists_servers(found: dict[str, Any]) -> list[str]:
    """The slugs of the key's own enabled servers that are no development data."""
    key = {"Authorization": f"Bearer {found['api_key']}"}
    address = f"{found['url']}/api/v1/servers?slug={found['server']}"
    answer = httpx2.get(address, headers=key, trust_env=False)
    return [row["slug"] for row in answer.json()["results"]]


def register_and_wait(found: dict[str, Any], connection: psycopg.Connection[Any]) -> None:
    """Register the sample once more, through the API; the worker checks it soon after."""
    [address] = connection.execute(
        "SELECT endpoint_url FROM mcp_servers WHERE slug = 'sample'"
    ).fetchone()
    key = {"Authorization": f"Bearer {found['api_key']}"}
    body = {"name": "Again", "slug": "again", "endpoint_url": address}
    url = f"{found['url']}/api/v1/servers"
    assert httpx2.post(url, headers=key, json=body, trust_env=False).status_code == 201
    checked = "SELECT health_status FROM mcp_servers WHERE slug = 'again'"
    deadline = time.monotonic() + READY_SECONDS
    while connection.execute(checked).fetchone() != ("healthy",):
        assert time.monotonic() < deadline, "the worker did not check it"
        time.sleep(0.1)


async def call_add(url: str, key: str) -> str:
    async with (
        httpx2.AsyncClient(headers={"Authorization": f"Bearer {key}"}, trust_env=False) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        result = await client.call_tool("add", {"a": 2, "b": 3})
    return result.content[0].text


def test_up_serves_stops_and_finds_its_data_again(
    up: Callable[..., Up], local: Path, free_port: int
) -> None:
    first = up("--port", str(free_port))
    found = first.ready()
    assert set(found) == {"url", "mcp_url", "server", "api_key", "database_url", "admin"}
    assert found["url"] == f"http://127.0.0.1:{free_port}"
    assert asyncio.run(call_add(found["mcp_url"], found["api_key"])) == "5"
    assert signs_in(found["url"], **found["admin"])
    with psycopg.connect(found["database_url"]) as connection:
        tools = connection.execute("SELECT count(*) FROM server_tools WHERE name = 'add'")
        assert tools.fetchone() == (1,)
        assert lists_servers(found) == ["sample"]
        register_and_wait(found, connection)
        # The data plane, the admin, the API and the worker: all of them are walled in. What the
        # worker does as the tables' owner, for a moment now and then, has names of its own.
        logins = connection.execute(
            "SELECT DISTINCT usename FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name IN ('mcp-gateway', 'mcp-gateway changes')"
        )
        assert logins.fetchall() == [(APP_ROLE,)]
        with connection.transaction():
            connection.execute("SET LOCAL ROLE mcp_gateway_app")
            assert connection.execute("SELECT FROM mcp_servers").fetchall() == []

    for secret in ("development-key", "admin-password", "up.lock"):
        assert mode(local / secret) == 0o600
    assert mode(local / "secrets") == mode(local / "logs") == 0o700

    second = up("--port", "0")
    _, said = second.process.communicate(timeout=30)
    assert second.process.returncode == 1
    assert f"process {first.process.pid}, {found['url']}" in said
    assert "Traceback" not in said

    family = first.family()
    assert len(family) > 6
    assert first.stop() == 0
    wait_until_gone(family)
    assert sockets(local) == []

    again = up("--port", str(free_port)).ready()
    assert again == found


def test_up_recovers_after_kill_9_of_everything(up: Callable[..., Up], local: Path) -> None:
    first = up("--port", "0", "--no-seed")
    found = first.ready()
    family = first.family()
    for pid in family:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    first.process.communicate()
    wait_until_gone(family)
    assert sockets(local) != []

    again = up("--port", "0", "--no-seed").ready()
    assert again["api_key"] == found["api_key"]
    assert again["admin"] == found["admin"]


def test_a_killed_database_comes_back_by_itself(up: Callable[..., Up], local: Path) -> None:
    running = up("--no-seed", "--port", "0")
    ready = running.ready()
    server = Cluster(local)._postmaster()
    assert server
    os.kill(server, signal.SIGKILL)
    deadline = time.monotonic() + READY_SECONDS
    while Cluster(local)._postmaster() in {None, server} and time.monotonic() < deadline:
        time.sleep(0.05)
    while not _is_ready(ready["url"]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert asyncio.run(call_add(ready["mcp_url"], ready["api_key"])) == "5"
    assert running.stop() == 0


def _is_ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health/ready", timeout=10, trust_env=False).status_code == 200
    except httpx2.HTTPError:
        return False


def test_children_do_not_outlive_up(up: Callable[..., Up]) -> None:
    run = up("--port", "0", "--no-seed")
    run.ready()
    family = run.family()
    run.process.kill()
    run.process.communicate()
    wait_until_gone(family)


def test_killed_children_are_started_again(up: Callable[..., Up]) -> None:
    run = up("--port", "0", "--no-seed")
    found = run.ready()
    killed = {role: child(run, role) for role in ("gateway.sample", "worker", "serve")}
    [inner] = children_of(killed["serve"])  # it holds the port, too
    for pid in (*killed.values(), inner):
        os.kill(pid, signal.SIGKILL)
    wait_until_gone({*killed.values(), inner})
    deadline = time.monotonic() + READY_SECONDS
    while not _is_ready(found["url"]) and time.monotonic() < deadline:
        time.sleep(0.05)
    while not (worker := child(run, "worker")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert asyncio.run(call_add(found["mcp_url"], found["api_key"])) == "5"
    assert worker != killed["worker"]

    run.process.send_signal(signal.SIGINT)
    _, said = run.process.communicate(timeout=STOP_SECONDS)
    assert run.process.returncode == 0
    for name in ("sample", "worker", "server"):
        assert f"The {name} was ended by signal 9; it is started again" in said
    steps = ["Stopping the server", "Stopping the worker", "Stopping the sample", "Stopped."]
    assert sorted(steps, key=said.index) == steps


def child(run: Up, role: str) -> int | None:
    found = [pid for pid in children_of(run.process.pid) if role in arguments_of(pid)]
    return found[0] if found else None


def arguments_of(pid: int) -> list[str]:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    return []


def test_a_taken_port_is_told_before_anything_is_made(
    tmp_path: Path, runs: list[Up], free_port: int
) -> None:
    local = opened(tmp_path)
    with socket.create_server(("127.0.0.1", free_port)):
        runs.append(run := Up(local, "--port", str(free_port)))
        _, said = run.process.communicate(timeout=30)
    assert run.process.returncode == 1
    assert f"Cannot listen on 127.0.0.1:{free_port}: the port is taken" in said
    assert not (local / "postgres").exists()
