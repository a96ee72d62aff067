"""The admin in a real browser: it loads nothing from outside and its scripts run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from security.models import EnhancedAPIKey, User

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]
PASSWORD = "correct horse battery"


@pytest.fixture
def page(live_server, monkeypatch, settings) -> Iterator[Any]:
    """A signed-in page that fails the test on a script's error or a request to elsewhere."""
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


def test_the_overview_fits_a_phone(page):
    page.set_viewport_size({"width": 390, "height": 844})
    page.reload()
    assert page.get_by_text("Firing alerts").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_new_key_is_copied_with_one_click(page, live_server):
    page.goto(f"{live_server.url}/admin/security/enhancedapikey/add/")
    page.fill("[name=name]", "agents")
    page.check("[name=scopes][value=proxy]")
    page.click("[name=_save]")
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith(f"mcpgw_{EnhancedAPIKey.objects.get().key_prefix}_")
