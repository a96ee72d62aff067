"""Fixtures that tests of several rooms share."""

from __future__ import annotations

import os
import socket
import sys

import pytest


@pytest.fixture
def free_port() -> int:
    """A port of 127.0.0.1 that nothing listened on a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


_skipped: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        _skipped.append(report.nodeid)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """CI installs every peer, so there a skipped test is a failure."""
    if _skipped and os.environ.get("GATEWAY_TESTS_ALLOW_NO_SKIP") and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        sys.stderr.write(f"\nskipped, and no skip is allowed: {', '.join(_skipped)}\n")
