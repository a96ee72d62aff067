"""What README tells to type is what the program prints and what the tests run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from gateway.management.commands.up import INSPECTOR, snippets
from gateway.up import Running

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_inspector_is_the_one_that_the_tests_run() -> None:
    tested = re.search(r"^INSPECTOR=(\S+)$", (ROOT / ".ci/install-peers").read_text(), re.MULTILINE)
    assert tested
    assert tested[1] == INSPECTOR
    assert f"npx {INSPECTOR} --cli" in README
    running = Running(
        url="http://x", server="sample", api_key="k", database_url="d", username="a", password="p"
    )
    name, command = snippets(running).popitem()
    assert f"{name}:" in README, "with the version of Node that it needs"
    assert shlex.split(command)[:2] == ["npx", INSPECTOR]
