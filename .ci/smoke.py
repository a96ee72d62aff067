"""Start `up` on a free port, call a tool as a client would, in both protocol eras, and stop."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

ROOT = Path(__file__).resolve().parent.parent
ERAS = ("legacy", "2026-07-28")


async def call_add(url: str, key: str, mode: str) -> str:
    """The text that the sample's tool `add` answers for 2 and 3."""
    async with (
        httpx2.AsyncClient(headers={"Authorization": f"Bearer {key}"}, trust_env=False) as http,
        Client(streamable_http_client(url, http_client=http), mode=mode) as client,
    ):
        tools = [tool.name for tool in (await client.list_tools()).tools]
        assert "add" in tools, tools
        result = await client.call_tool("add", {"a": 2, "b": 3})
        return str(result.content[0].text)


def read_ready(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"up ended with status {process.wait()} before it was ready")
    return dict(json.loads(line))


def main() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with tempfile.TemporaryDirectory() as local:
        Path(local).chmod(0o711)
        environment = os.environ | {"GATEWAY_LOCAL_DIR": f"{local}/local"}
        environment.pop("DATABASE_URL", None)
        process = subprocess.Popen(
            [sys.executable, "manage.py", "up", "--json", "--port", str(port)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            ready = read_ready(process)
            for mode in ERAS:
                text = asyncio.run(call_add(ready["mcp_url"], ready["api_key"], mode))
                assert text == "5", text
                sys.stdout.write(f"{mode}: add(2, 3) = {text}\n")
            page = httpx2.get(f"{ready['url']}/admin/login/", trust_env=False)
            assert page.status_code == 200, page
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(30)
    assert status == 0, f"up ended with status {status}"
    sys.stdout.write("up: started, answered, stopped\n")


if __name__ == "__main__":
    main()
