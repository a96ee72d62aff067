"""`serve` and other commands as processes of their own, on a database of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx2
from cryptography.fernet import Fernet

__all__ = ["PING", "Gateway", "environment", "manage", "port_now", "start", "stop", "wait_for"]

ROOT = Path(__file__).resolve().parents[1]
PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
STOP_SECONDS = 30.0


def wait_for(condition: Callable[[], Any], seconds: float = 30) -> Any:
    """The condition's first true value."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.05)
    return found


def port_now() -> int:
    """A port of 127.0.0.1 that nothing listened on a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def environment(folder: Path, **more: str) -> dict[str, str]:
    """What production sets, and private upstreams. `more` names the databases."""
    others = ("DEBUG", "DATABASE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    return {
        **kept,
        "SECRET_KEY": "k" * 50,
        "ENCRYPTION_KEYS": Fernet.generate_key().decode(),
        "GATEWAY_ALLOW_PRIVATE_UPSTREAMS": "on",
        "GATEWAY_SECURE_COOKIES": "off",
        "GATEWAY_LOCAL_DIR": str(folder / "local"),
        "PYTHONUNBUFFERED": "1",
        **more,
    }


def manage(env: Mapping[str, str], *arguments: str, status: int = 0) -> str:
    """Run a command to its end; what it printed, or its complaint where it is to fail."""
    done = subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return done.stderr if status else done.stdout


def start(env: Mapping[str, str], log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a command that goes on running; what it says goes to a file."""
    with log.open("wb") as file:
        command = [sys.executable, "manage.py", *arguments]
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=file, stderr=file)


def stop(process: subprocess.Popen[bytes], *, seconds: float = STOP_SECONDS) -> float:
    """SIGTERM; how many seconds it took to end. Fails past the limit, and kills it."""
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(seconds)
    finally:
        process.kill()  # nothing, once it has ended
    return time.monotonic() - began


class Gateway:
    """`serve` on a port."""

    def __init__(self, env: Mapping[str, str], *, port: int, log: Path) -> None:
        self.url, self.log = f"http://127.0.0.1:{port}", log
        self.process = start(env, log, "serve", "--port", str(port))
        self._http = httpx2.Client(base_url=self.url, trust_env=False)  # for any thread

    def call(self, key: str, slug: str, *, seconds: float = 10) -> httpx2.Response:
        """One MCP call."""
        headers = {"x-api-key": key}
        return self._http.post(f"/mcp/{slug}", json=PING, headers=headers, timeout=seconds)

    def api(self, key: str, path: str, *, seconds: float = 10, **options: Any) -> httpx2.Response:
        """A request to the REST API; a POST when it has `json`."""
        method, headers = "POST" if "json" in options else "GET", {"x-api-key": key}
        url = f"/api/v1/{path}"
        return self._http.request(method, url, headers=headers, timeout=seconds, **options)

    def ready(self) -> tuple[int, dict[str, str]]:
        try:
            answer = self._http.get("/health/ready", timeout=10)
        except httpx2.HTTPError:
            return 0, {}
        return answer.status_code, answer.json()
