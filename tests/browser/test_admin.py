"""The admin in a real browser: it loads nothing from outside and its scripts run."""

from __future__ import annotations

import pytest

from security.models import EnhancedAPIKey

pytestmark = pytest.mark.django_db(transaction=True)


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
