"""`serve`, from outside."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography.fernet import Fernet
from django.db import connection

from monitoring.models import RequestLog
from tests.factories import EnhancedAPIKeyFactory

MCP = "/mcp/x"
ROOT = Path(__file__).resolve().parents[3]
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def serve(*arguments: str, **changed: str) -> subprocess.Popen[str]:
    unwanted = {"SECRET_KEY", "ENCRYPTION_KEYS", "DEBUG"}
    env = {name: value for name, value in os.environ.items() if name not in unwanted}
    return subprocess.Popen(
        [sys.executable, "manage.py", "serve", *arguments],
        cwd=ROOT,
        env=env | changed,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def own_secrets() -> dict[str, str]:
    return {"SECRET_KEY": "k" * 50, "ENCRYPTION_KEYS": Fernet.generate_key().decode()}


@pytest.mark.parametrize("given", [[], ["SECRET_KEY"], ["ENCRYPTION_KEYS"]])
def test_refuses_secrets_that_were_made_for_development(given: list[str]) -> None:
    secrets = own_secrets()
    with serve(**{name: secrets[name] for name in given}) as process:
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "Set SECRET_KEY and ENCRYPTION_KEYS" in said


def test_a_taken_port_is_one_sentence(free_port: int) -> None:
    with (
        socket.create_server(("127.0.0.1", free_port)),
        serve("--port", str(free_port), **own_secrets()) as process,
    ):
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "the port is taken" in said
    assert "Traceback" not in said


def test_wrong_workers_are_wrong_usage() -> None:
    with serve("--workers", "0") as process:
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "whole number above 0" in said


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serves_refuses_broken_bodies_and_stops_when_asked(free_port: int, number: int) -> None:
    url, key = f"http://127.0.0.1:{free_port}/health/live", EnhancedAPIKeyFactory()
    with serve(
        "--port", str(free_port), **own_secrets(), DATABASE_URL=url_of_test_database()
    ) as process:
        try:
            deadline = time.monotonic() + 40
            while not answers(url):
                assert process.poll() is None, process.stdout.read()
                assert time.monotonic() < deadline
                time.sleep(0.1)
            broken = {path: send_broken(free_port, path, key.text) for path in (MCP, "/api/v1/x")}
            process.send_signal(number)
            said, _ = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 0, said
    assert "Traceback" not in said
    assert not answers(url)
    for path, answer in broken.items():
        assert answer.startswith("HTTP/1.1 400"), (path, answer)
        assert "x-request-id: " in answer
        assert "body ended before it was whole, or its chunks are malformed" in answer
    assert '"jsonrpc"' in broken.pop(MCP)
    assert '{"detail": ' in broken.popitem()[1]
    row = RequestLog.objects.get(path=MCP)
    assert (row.status_code, row.error_type, row.api_key_id) == (400, "invalid_request", key.pk)


def send_broken(port: int, path: str, key: str) -> str:
    """The answer to a body whose chunks have no size."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {key}\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=10) as own:
        own.sendall(head.encode() + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n")
        return b"".join(iter(lambda: own.recv(65536), b"")).decode()


def answers(url: str) -> bool:
    try:
        with DIRECT.open(url, timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def url_of_test_database() -> str:
    """The server of DATABASE_URL with the name of the database that this test runs in."""
    parts = urlsplit(os.environ["DATABASE_URL"])
    return parts._replace(path=f"/{connection.settings_dict['NAME']}").geturl()
