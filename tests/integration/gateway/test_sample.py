"""The sample server as `up` runs it, asked by the official client in both its modes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from mcp import Client

from registry.db.ids import uuid7
from registry.mcp_client import Limits, Target, probe
from registry.upstream import current_policy

pytestmark = pytest.mark.xdist_group("sample")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    command = [sys.executable, "-m", "gateway.sample", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sample:
        try:
            found = json.loads(sample.stdout.readline())
            assert found["url"] == f"http://127.0.0.1:{found['port']}/mcp"
            yield found["url"]
        finally:
            sample.terminate()


def ask(url: str, mode: str, question: Any) -> Any:
    async def run() -> Any:
        async with Client(url, mode=mode) as client:
            return await question(client)

    return asyncio.run(run())


@pytest.mark.parametrize("mode", ["legacy", "auto"])
@pytest.mark.parametrize(
    ("tool", "arguments", "answer"),
    [
        ("add", {"a": 2, "b": 3}, "5"),
        ("add", {"a": 0.5, "b": 0.25}, "0.75"),
        ("reverse_text", {"text": "abc"}, "cba"),
    ],
)
def test_tools_answer(
    url: str, mode: str, tool: str, arguments: dict[str, Any], answer: str
) -> None:
    result = ask(url, mode, lambda client: client.call_tool(tool, arguments))
    assert not result.is_error
    assert result.content[0].text == answer


@pytest.mark.parametrize(("mode", "spoken"), [("legacy", "2025-11-25"), ("auto", "2026-07-28")])
def test_it_tells_the_versions_of_both_eras_and_speaks_them(
    url: str, mode: str, spoken: str, settings: Any
) -> None:
    settings.GATEWAY_ALLOW_PRIVATE_UPSTREAMS = True
    target = Target(id=uuid7(), url=url, transport="http", policy=current_policy())
    assert {"2025-11-25", "2026-07-28"} <= set(
        asyncio.run(probe(target, limits=Limits())).protocol_versions
    )

    async def version(client: Client) -> str:
        return client.protocol_version

    assert ask(url, mode, version) == spoken


def test_word_count_is_structured(url: str) -> None:
    result = ask(url, "auto", lambda client: client.call_tool("word_count", {"text": "a b\nc"}))
    assert result.structured_content == {"words": 3, "lines": 2, "characters": 5}


def test_current_time_knows_time_zones_and_refuses_others(url: str) -> None:
    arguments = {"timezone": "Asia/Tokyo"}
    result = ask(url, "auto", lambda client: client.call_tool("current_time", arguments))
    assert result.content[0].text.endswith("+09:00")
    for wrong in ("Mars/Olympus", "../../etc/passwd", ""):
        arguments = {"timezone": wrong}
        result = ask(url, "auto", lambda client, a=arguments: client.call_tool("current_time", a))
        assert result.is_error
        assert "There is no time zone" in result.content[0].text


@pytest.mark.parametrize("mode", ["legacy", "auto"])
def test_countdown_reports_progress(url: str, mode: str) -> None:
    heard: list[tuple[float, str | None]] = []

    async def on_progress(done: float, total: float | None, message: str | None) -> None:
        heard.append((done, message))

    arguments = {"start": 2, "seconds": 0.05}
    result = ask(
        url,
        mode,
        lambda client: client.call_tool("countdown", arguments, progress_callback=on_progress),
    )
    assert result.content[0].text == "Lift-off!"
    assert heard == [(0, "2 …"), (1, "1 …"), (2, "Lift-off!")]


def test_it_has_a_resource_and_a_prompt(url: str) -> None:
    read = ask(url, "auto", lambda client: client.read_resource("sample://welcome"))
    assert "# Welcome" in read.contents[0].text
    prompt = ask(url, "auto", lambda client: client.get_prompt("summarise", {"text": "Long."}))
    assert "Long." in prompt.messages[0].content.text
