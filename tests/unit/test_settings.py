"""What the environment makes of the settings that keep cookies and forms safe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHOWN = (
    "SESSION_COOKIE_SECURE", "CSRF_COOKIE_SECURE", "SECURE_HSTS_SECONDS",
    "CSRF_TRUSTED_ORIGINS", "GATEWAY_ALLOWED_ORIGINS", "GATEWAY_HEARTBEAT_URL",
    "EMAIL_HOST", "EMAIL_PORT", "EMAIL_HOST_PASSWORD", "EMAIL_USE_TLS",
)  # fmt: skip
SHOW = (
    "import json; from gateway import settings as s;"
    f"print(json.dumps({{name: getattr(s, name, None) for name in {SHOWN}}}))"
)


def run(**changed: str) -> subprocess.CompletedProcess[str]:
    unwanted = {"DEBUG", "GATEWAY_SECURE_COOKIES"}
    env = {name: value for name, value in os.environ.items() if name not in unwanted}
    return subprocess.run(
        [sys.executable, "-c", SHOW],
        cwd=ROOT,
        env=env | changed,
        capture_output=True,
        text=True,
        check=False,
    )


def settings(**changed: str) -> dict[str, Any]:
    return json.loads(run(**changed).stdout)


@pytest.mark.parametrize(
    ("changed", "secure"),
    [
        ({}, True),
        ({"DEBUG": "on"}, False),
        ({"GATEWAY_SECURE_COOKIES": "off"}, False),
        ({"DEBUG": "on", "GATEWAY_SECURE_COOKIES": "on"}, True),
    ],
)
def test_cookies_are_secure_unless_said_otherwise(changed: dict[str, str], secure: bool) -> None:
    found = settings(**changed)
    assert (found["SESSION_COOKIE_SECURE"], found["CSRF_COOKIE_SECURE"]) == (secure, secure)


def test_pages_that_may_call_mcp_may_not_post_the_admins_forms() -> None:
    found = settings(GATEWAY_ALLOWED_ORIGINS="https://app.example.org")
    assert found["GATEWAY_ALLOWED_ORIGINS"] == ["https://app.example.org"]
    assert found["CSRF_TRUSTED_ORIGINS"] == []
    found = settings(CSRF_TRUSTED_ORIGINS="https://admin.example.org/")
    assert found["CSRF_TRUSTED_ORIGINS"] == ["https://admin.example.org"]


def test_hsts_is_told_only_when_asked_for() -> None:
    assert settings()["SECURE_HSTS_SECONDS"] == 0
    assert settings(GATEWAY_HSTS_SECONDS="3600")["SECURE_HSTS_SECONDS"] == 3600
    refused = run(GATEWAY_HSTS_SECONDS="-1")
    assert refused.returncode == 1
    assert "GATEWAY_HSTS_SECONDS: '-1' is not a whole number from 0." in refused.stderr


def test_mail_goes_where_one_variable_says() -> None:
    found = settings(EMAIL_URL="smtp+tls://ops:p%40ss@mail.example.org:587")
    assert [found[name] for name in SHOWN if name.startswith("EMAIL_")] == [
        "mail.example.org", 587, "p@ss", True,
    ]  # fmt: skip
    refused = run(EMAIL_URL="mail.example.org:587")
    assert "EMAIL_URL: write smtp+tls://user:password@mail.example.org:587." in refused.stderr


def test_a_heartbeat_is_off_unless_a_whole_url_is_given() -> None:
    assert settings()["GATEWAY_HEARTBEAT_URL"] == ""
    url = "https://watcher.example.org/ping/4711"
    assert settings(GATEWAY_HEARTBEAT_URL=url)["GATEWAY_HEARTBEAT_URL"] == url
    refused = run(GATEWAY_HEARTBEAT_URL="watcher.example.org")
    assert refused.returncode == 1
    assert "GATEWAY_HEARTBEAT_URL: write a whole URL" in refused.stderr


@pytest.mark.parametrize("debug", ["on", "off"])
def test_nothing_warns_at_start(debug: str) -> None:
    """Neither the admin's pages, which `check` looks at, nor the server's application."""
    load = "import gateway.asgi; from django.core.management import call_command as c; c('check')"
    done = subprocess.run(
        [sys.executable, "-c", load],
        cwd=ROOT,
        env=os.environ | {"DEBUG": debug, "DJANGO_SETTINGS_MODULE": "gateway.settings"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_pages_are_imported_when_they_are_checked_and_not_at_every_start() -> None:
    """Nor what only the server needs: together they were a third of a command's start."""
    dear = {"aiohttp", "rest_framework.views", "drf_spectacular.plumbing", "registry.admin"}
    ask = f"""
import sys, django
django.setup()
print(sorted({dear} & sys.modules.keys()))
django.core.management.call_command("check", tags=["admin"])
print("registry.admin" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", ask],
        cwd=ROOT,
        env=os.environ | {"DJANGO_SETTINGS_MODULE": "gateway.settings"},
        capture_output=True,
        text=True,
        check=False,
    )
    at_start, *_, after_check = done.stdout.splitlines()
    assert (at_start, after_check) == ("[]", "True"), done.stderr


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("GATEWAY_ARCHIVE_DIR", "archive", "not an absolute path"),
        ("GATEWAY_SPOOL_DIR", "spool", "not an absolute path"),
        ("GATEWAY_SPOOL_DIR", __file__, "not a folder"),
        ("GATEWAY_SPOOL_MAX_BYTES", "much", "not a whole number"),
    ],
)
def test_a_spool_that_cannot_be_is_refused_by_name(name: str, value: str, said: str) -> None:
    refused = run(**{name: value})
    assert refused.returncode != 0
    assert f"{name}: " in refused.stderr
    assert said in refused.stderr


def test_an_unknown_index_profile_is_refused_by_name() -> None:
    refused = run(INDEX_PROFILE="fastest")
    assert refused.returncode != 0
    assert "INDEX_PROFILE: 'fastest' is no profile; write guide or expert." in refused.stderr
    assert run(INDEX_PROFILE="expert").returncode == 0
