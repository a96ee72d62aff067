"""A real browser at the running application: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from security.models import User

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PASSWORD = "correct horse battery"


@pytest.fixture
def page(live_server, monkeypatch, settings) -> Iterator[Any]:
    """A signed-in page that fails the test on a script's error or a request to elsewhere."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    # Playwright's synchronous face runs an event loop in this thread; the ORM is not used in it.
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    settings.SESSION_COOKIE_SECURE = settings.CSRF_COOKIE_SECURE = False  # it is plain http
    User.objects.create_superuser(username="boss", email="", password=PASSWORD)
    faults: list[str] = []
    own = (live_server.url, "data:", "blob:")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "request",
            lambda request: None if request.url.startswith(own) else faults.append(request.url),
        )
        page.goto(f"{live_server.url}/admin/")
        page.fill("[name=username]", "boss")
        page.fill("[name=password]", PASSWORD)
        page.click("button[type=submit]")
        page.wait_for_url(f"{live_server.url}/admin/")
        yield page
        browser.close()
    assert faults == []
