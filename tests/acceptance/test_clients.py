"""Real clients against a real `up`: the official SDK in both eras, and the MCP Inspector."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from tests.integration.gateway.conftest import wait_until

ROOT = Path(__file__).resolve().parent.parent.parent
INSPECTOR = ROOT / ".local/peers/node_modules/.bin/mcp-inspector"
pytestmark = pytest.mark.xdist_group("clients")  # one `up` for all of them


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    local = tmp_path_factory.mktemp("up")
    environment = os.environ | {"GATEWAY_LOCAL_DIR": str(local)}
    environment.pop("DATABASE_URL", None)
    process = subprocess.Popen(
        [sys.executable, "manage.py", "up", "--json", "--port", "0"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        assert line, f"up ended with status {process.wait()}"
        yield json.loads(line)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28", "auto"])
def test_the_official_sdk_lists_and_calls(up: dict[str, Any], mode: str):
    async def scenario() -> None:
        headers = {"Authorization": f"Bearer {up['api_key']}"}
        async with (
            httpx2.AsyncClient(headers=headers, trust_env=False) as http,
            Client(streamable_http_client(up["mcp_url"], http_client=http), mode=mode) as client,
        ):
            assert "add" in {tool.name for tool in (await client.list_tools()).tools}
            result = await client.call_tool("add", {"a": 2, "b": 3})
            assert (result.is_error, result.content[0].text) == (False, "5")

    asyncio.run(scenario())


@pytest.mark.parametrize("era", ["legacy", "modern"])
def test_the_inspector_lists_and_calls(up: dict[str, Any], era: str):
    if not INSPECTOR.exists() or shutil.which("node") is None:
        pytest.skip("the MCP Inspector is not installed; .ci/install-peers installs it")

    def inspect(*arguments: str) -> dict[str, Any]:
        command = [str(INSPECTOR), "--cli", up["mcp_url"], "--transport", "http"]
        command += ["--protocol-era", era, "--format", "json"]
        command += ["--header", f"Authorization: Bearer {up['api_key']}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)["result"]

    listed = inspect("--method", "tools/list")
    assert "add" in {tool["name"] for tool in listed["tools"]}
    called = inspect(
        "--method", "tools/call", "--tool-name", "add", "--tool-arg", "a=2", "--tool-arg", "b=3"
    )
    assert called["content"][0]["text"] == "5"


def test_each_call_leaves_one_row_within_a_second(up: dict[str, Any]):
    response = httpx2.post(
        up["mcp_url"],
        headers={"X-API-Key": up["api_key"], "Accept": "application/json, text/event-stream"},
        json={"jsonrpc": "2.0", "id": 1, "method": "ping"},
        trust_env=False,
    )
    id_ = response.headers["x-request-id"]
    with psycopg.connect(up["database_url"], autocommit=True) as connection:
        counted = "SELECT count(*) FROM request_logs WHERE request_id = %s"
        rows = wait_until(
            lambda: connection.execute(counted, [id_]).fetchone()[0],
            seconds=1.0,
        )
    assert rows == 1
