"""The pages of figures in a real browser: on a phone, in light and dark, by keyboard, by axe-core.

Screenshots are kept in artefacts/, whatever the outcome.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils.timezone import now

from gateway.models import BreakerState, CircuitBreaker
from monitoring.models import PerformanceAlert, StatementSnapshot, TaskOutcome
from monitoring.rollups import rollups_compact
from registry.models import HealthStatus
from tests.factories import (
    AlertEventFactory,
    MCPServerFactory,
    PerformanceAlertFactory,
    RequestLogFactory,
    ScheduledTaskFactory,
)

pytestmark = pytest.mark.django_db(transaction=True)

ROOT = Path(__file__).parents[2]
AXE = ROOT / ".local/peers/node_modules/axe-core/axe.min.js"
SHOTS = ROOT / "artefacts"
PAGES = [
    "/admin/",
    "/admin/database/",
    "/admin/monitoring/requestlogentry/",
    "/admin/monitoring/performancealert/",
    "/admin/monitoring/performancealert/add/",
    "/admin/monitoring/dataretentionpolicy/add/",
    "/admin/registry/mcpserver/",
    "/admin/security/enhancedapikey/add/",
]


@pytest.fixture
def busy_day(transactional_db: None) -> None:
    """Calls of a day, an alert that fires, a broken server and a slow statement."""
    server = MCPServerFactory(slug="code-search", health_status=HealthStatus.UNHEALTHY)
    CircuitBreaker.objects.filter(server=server).update(state=BreakerState.OPEN)
    for hour in range(24):
        for call in range(1 + hour % 5):
            RequestLogFactory(
                request_time=now() - timedelta(hours=hour, minutes=call),
                tenant_id=server.tenant_id,
                target_server_id=server.pk,
                tool_name="search_code",
                status_code=502 if call == 3 else 200,
                duration_ms=20.0 * (1 + call) ** 2,
            )
    rollups_compact()
    PerformanceAlertFactory(
        name="Open breakers", is_triggered=True, first_triggered=now(), last_value=1
    )
    ScheduledTaskFactory(name="sizes_snapshot", next_run=now() - timedelta(hours=1))
    ScheduledTaskFactory(
        name="retention_run",
        last_outcome=TaskOutcome.FAILED,
        last_error="canceling statement due to lock timeout",
    )
    StatementSnapshot.objects.create(
        query_id=1,
        query="SELECT * FROM request_logs WHERE path = $1",
        calls=9,
        total_ms=900,
        window_calls=3,
        window_mean_ms=100.0,
    )


def shot(page: Any, name: str) -> None:
    SHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


def serious(page: Any) -> list[str]:
    """What axe-core calls serious or critical, with the first place of each."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run({resultTypes: ['violations']})")
    return [
        f"{one['id']} ({len(one['nodes'])}): {one['nodes'][0]['html'][:200]}"
        for one in found["violations"]
        if one["impact"] in {"serious", "critical"}
    ]


@pytest.mark.usefixtures("busy_day")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(scheme: str, page: Any, live_server: Any) -> None:
    if not AXE.exists():
        pytest.skip("axe-core is not installed: see .ci/install-peers")
    page.emulate_media(color_scheme=scheme)
    faults = {}
    for path in PAGES:
        page.goto(f"{live_server.url}{path}")
        page.wait_for_load_state("networkidle")
        faults[path] = serious(page)
        if path in {"/admin/", "/admin/database/"}:
            shot(page, f"{path.strip('/').replace('/', '-')}-{scheme}")
    assert {path: found for path, found in faults.items() if found} == {}


@pytest.mark.usefixtures("busy_day")
def test_the_pages_fit_a_phone(page: Any, live_server: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    for path in PAGES:
        page.goto(f"{live_server.url}{path}")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), path
    page.goto(f"{live_server.url}/admin/")
    shot(page, "admin-phone")
    page.goto(f"{live_server.url}/admin/monitoring/requestlogentry/")
    shot(page, "request-log-phone")
    rows = page.locator("#result_list .data-row")
    assert max(row.bounding_box()["height"] for row in rows.all()) < 100  # pixels: a few lines


WIDTHS = """() => [
    document.documentElement.scrollWidth - window.innerWidth,
    ...[...document.querySelectorAll('*')]
        .filter(one => ['auto', 'scroll'].includes(getComputedStyle(one).overflowX))
        .map(one => one.scrollWidth - one.clientWidth)]"""


def scrolled(page: Any) -> int:
    """By how many pixels the page, or a part of it, is wider than what shows it."""
    return max(page.evaluate(WIDTHS))


@pytest.mark.usefixtures("busy_day")
def test_long_words_of_alerts_and_tasks_scroll_nothing_sideways(
    page: Any, live_server: Any
) -> None:
    word = "materialized_views_refresh_" * 8
    server = MCPServerFactory(slug="a-server-whose-name-is-rather-long")
    alert = PerformanceAlertFactory(
        name="Pool of the server with the long name is nearly exhausted",
        server=server,
        metric_name="pool_utilisation_percent",
        threshold_value=85.555,
        is_triggered=True,
        first_triggered=now(),
        last_triggered=now(),
        last_value=99.97,
        acknowledged_at=now(),
        acknowledged_with="API key rota-of-those-who-are-on-duty (k3f9a2b1)",
    )
    event = AlertEventFactory(
        alert=alert,
        subject=f"{server.tenant.slug}/{server.slug}",
        message=word,
        parts=[{"subject": word, "value": 1.0, "text": "SELECT a_column, " * 20}],
    )
    task = ScheduledTaskFactory(
        name=word[:63], last_outcome=TaskOutcome.FAILED, last_error=word, last_started=now()
    )
    admin = f"{live_server.url}/admin/"
    alerts = f"{admin}monitoring/performancealert/"
    page.set_viewport_size({"width": 390, "height": 844})
    for address in (
        admin,
        f"{admin}?window=168",
        alerts,
        f"{alerts}{alert.pk}/change/",
        f"{admin}monitoring/alertevent/",
        f"{admin}monitoring/alertevent/{event.pk}/change/",
        f"{admin}monitoring/scheduledtask/",
        f"{admin}monitoring/scheduledtask/{task.pk}/change/",
        f"{admin}procrastinate/procrastinatejob/",
    ):
        page.goto(address)
        page.wait_for_load_state("networkidle")
        assert scrolled(page) <= 1, address  # what is rounded differs by a pixel
    page.goto(alerts)
    shot(page, "alerts-phone")
    page.set_viewport_size({"width": 1280, "height": 800})
    page.goto(alerts)
    page.wait_for_load_state("networkidle")
    shot(page, "alerts-laptop")
    assert scrolled(page) <= 1


@pytest.mark.usefixtures("busy_day")
def test_charts_are_drawn_and_told_in_words(page: Any) -> None:
    page.reload()
    page.wait_for_load_state("networkidle")
    drawn = page.evaluate(
        "[...document.querySelectorAll('canvas.chart')].map(c => {"
        " const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        " return d.some(v => v > 0); })"
    )
    assert drawn == [True, True]
    assert page.get_by_role("img", name="Calls:").get_attribute("aria-label").endswith("UTC.")
    page.get_by_text("The figures").first.click()
    assert page.get_by_role("region", name="Calls, the figures").is_visible()


@pytest.mark.usefixtures("busy_day")
def test_an_alert_is_acknowledged_by_keyboard(page: Any) -> None:
    page.reload()
    button = page.get_by_role("button", name="Acknowledge Open breakers")
    button.focus()
    page.keyboard.press("Enter")
    page.get_by_text("You look after Open breakers").wait_for()
    assert PerformanceAlert.objects.get().acknowledged_by.username == "boss"


@pytest.mark.usefixtures("busy_day")
def test_the_live_part_is_looked_at_again_without_the_page(page: Any) -> None:
    page.reload()
    page.get_by_text("unhealthy", exact=True).wait_for()
    CircuitBreaker.objects.update(state=BreakerState.CLOSED)
    page.evaluate("document.body.dataset.same = 'yes'")
    again = "{target: '#gw-live', select: '#gw-live', swap: 'outerHTML'}"  # as every 30 seconds
    page.evaluate(f"htmx.ajax('GET', '?window=24', {again})")
    page.get_by_text("All breakers are closed.").wait_for()
    assert page.evaluate("document.body.dataset.same") == "yes"


@pytest.mark.usefixtures("busy_day")
def test_a_slow_statement_leads_to_its_plan(page: Any, live_server: Any) -> None:
    page.goto(f"{live_server.url}/admin/database/")
    page.get_by_role("link", name="show").click()
    page.get_by_text("Nothing was run.").wait_for()
    assert "request_logs" in page.get_by_role("region", name="The plan's text").inner_text()
