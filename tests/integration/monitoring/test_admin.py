"""The logs as an operator reads them, alerts and retention policies as one edits them."""

from __future__ import annotations

import html
import json
import re
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import pytest
from django.contrib.admin import site
from django.contrib.auth.models import Permission
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils.http import urlencode
from django.utils.timezone import now
from procrastinate.contrib.django.models import ProcrastinateJob

from monitoring.alerts.figures import EVERYTHING, Extremes
from monitoring.alerts.history import history_keep
from monitoring.models import (
    AlertEvent,
    AuditLog,
    AuditLogEntry,
    DataRetentionPolicy,
    MaterializedView,
    PerformanceAlert,
    RequestLog,
    RequestLogEntry,
)
from monitoring.retention import preview as previewing
from registry.db.ids import uuid7
from registry.models import MCPServer, ServerMetricEntry
from tests.factories import (
    AlertEventFactory,
    APIKeyFactory,
    AuditLogFactory,
    DataRetentionPolicyFactory,
    EnhancedAPIKeyFactory,
    MCPServerFactory,
    PerformanceAlertFactory,
    RequestLogFactory,
    SessionFactory,
    UserFactory,
)
from tests.schema import seed

pytestmark = pytest.mark.django_db

REQUESTS = reverse("admin:monitoring_requestlogentry_changelist")
AUDIT = reverse("admin:monitoring_auditlogentry_changelist")
POLICIES = "admin:monitoring_dataretentionpolicy_changelist"
VIEWS = "admin:monitoring_materializedview_changelist"


def listed(client, page: str) -> list[UUID]:
    response = client.get(page)
    assert response.status_code == 200
    return [row.pk for row in response.context["cl"].result_list]


def measured() -> ServerMetricEntry:
    return ServerMetricEntry.objects.create(server_id=uuid4())


def errors_of(response) -> str:
    assert response.status_code == 200
    return " ".join(str(error) for errors in response.context["errors"] for error in errors)


# ---------------------------------------------------------------- logs


def test_a_request_is_found_by_its_id_and_by_nothing_else(admin_client):
    wanted, _other = RequestLogFactory(), RequestLogFactory()
    assert listed(admin_client, f"{REQUESTS}?q={wanted.request_id}") == [wanted.pk]
    assert listed(admin_client, f"{REQUESTS}?q={uuid4()}") == []
    assert listed(admin_client, f"{REQUESTS}?q=/mcp/sample") == []
    assert listed(admin_client, f"{REQUESTS}?q=ffffffff-ffff-7fff-bfff-ffffffffffff") == []


def test_filters_of_the_request_log(admin_client):
    server = MCPServerFactory()
    failed = RequestLogFactory(
        status_code=502,
        tenant_id=server.tenant_id,
        target_server_id=server.id,
        rpc_method="tools/list",
        tool_name="search_code",
        error_type="upstream_unreachable",
    )
    slow = RequestLogFactory(duration_ms=2500.0)
    assert listed(admin_client, f"{REQUESTS}?outcome=failed") == [failed.pk]
    assert failed.pk in listed(admin_client, f"{REQUESTS}?outcome=bad")
    assert listed(admin_client, f"{REQUESTS}?outcome=ok") == [slow.pk]
    assert listed(admin_client, f"{REQUESTS}?slower=1000") == [slow.pk]
    for asked in (
        "status_code=502",
        "error_type=upstream_unreachable",
        "rpc_method=tools/list",
        "tool_name=search_code",
    ):
        assert listed(admin_client, f"{REQUESTS}?{asked}") == [failed.pk], asked
    assert listed(admin_client, f"{REQUESTS}?error_type=upstream") == []
    assert listed(admin_client, f"{REQUESTS}?tenant_id={server.tenant_id}") == [failed.pk]
    assert listed(admin_client, f"{REQUESTS}?target_server_id={server.id}") == [failed.pk]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("target_server_id=nonsense", "Server&#x27;s id: “nonsense” does not fit. Write an id"),
        ("tenant_id=acme", "Tenant: “acme” does not fit."),
        ("status_code=5xx", "Status code: “5xx” does not fit. Write three digits"),
        ("status_code=٥٠٢", "Write three digits"),
        ("tool_name=a%00", "the character NUL"),
        ("outcome=nonsense", "Outcome: “nonsense” does not fit. Choose one"),
        ("slower=1", "Duration: “1” does not fit. Choose one"),
        ("window=nonsense", "Time: “nonsense” does not fit. Choose one"),
        ("q=nonsense", "Search: “nonsense” does not fit. Write a request&#x27;s id"),
        (f"window=2&q={UUID(int=0)}", "Time: “2” does not fit."),
    ],
)
def test_a_filter_of_a_log_says_what_does_not_fit(asked, told, admin_client):
    RequestLogFactory()
    response = admin_client.get(f"{REQUESTS}?{asked}")
    assert response.context["cl"].result_list == []
    assert response.content.decode().count(told) == 1


@pytest.mark.parametrize(
    ("page", "told"),
    [
        (f"{REQUESTS}?status_code=404", "No request logs match"),
        (f"{REQUESTS}?status_code=5xx", "No request logs match"),
        (REQUESTS, "No request logs here"),
        (f"{AUDIT}?action=nothing", "No audit logs match"),
        (reverse("admin:monitoring_alertevent_changelist"), "No alert events here"),
        (reverse("admin:registry_servermetricentry_changelist"), "No server metrics here"),
        (reverse(POLICIES) + "?q=nothing", "No data retention policies match"),
    ],
)
def test_an_empty_list_says_of_what_it_has_none(page, told, admin_client):
    assert told in " ".join(admin_client.get(page).content.decode().split())


@pytest.mark.parametrize(
    ("page", "told"),
    [
        ("registry_servermetricentry_changelist?server__id__exact=slug", "None of them is set."),
        ("registry_mcpserver_changelist?health_status__exact=well", "“well” does not fit."),
        ("security_session_changelist?state=nonsense", "“nonsense” does not fit."),
    ],
)
def test_a_filter_of_any_list_says_what_does_not_fit(page, told, admin_client):
    name, _, asked = page.partition("?")
    response = admin_client.get(f"{reverse(f'admin:{name}')}?{asked}", follow=True)
    assert response.content.decode().count(told) == 1


def test_a_row_of_a_log_is_read_within_bounds_of_time(admin_client):
    row = RequestLogFactory()
    page = reverse("admin:monitoring_requestlogentry_change", args=[row.pk])
    with CaptureQueriesContext(connection) as captured:
        assert admin_client.get(page).status_code == 200
    asked = [query["sql"] for query in captured if 'FROM "request_logs"' in query["sql"]]
    assert len(asked) == 1
    assert '"request_time" BETWEEN' in asked[0]
    for absent in (uuid4(), "nonsense"):
        gone = reverse("admin:monitoring_requestlogentry_change", args=[absent])
        assert admin_client.get(gone).status_code == 302


def test_a_log_names_what_still_exists_and_keeps_the_id_of_what_is_gone(admin_client):
    server, gone = MCPServerFactory(slug="still-here"), uuid4()
    RequestLogFactory(target_server_id=server.id)
    RequestLogFactory(target_server_id=gone)
    text = admin_client.get(REQUESTS).content.decode()
    link = reverse("admin:registry_mcpserver_change", args=[server.pk])
    assert f'href="{link}"' in text
    assert "still-here" in text
    assert str(gone) in text


@pytest.mark.parametrize(
    ("page", "factory"), [(REQUESTS, RequestLogFactory), (AUDIT, AuditLogFactory)]
)
def test_a_log_names_keys_by_their_prefix_and_those_that_are_gone_by_their_id(
    page, factory, admin_client
):
    keys = [EnhancedAPIKeyFactory(), APIKeyFactory(), EnhancedAPIKeyFactory()]
    gone = uuid4()
    for key_id in (*(key.pk for key in keys), gone, None):
        factory(api_key_id=key_id)
    with CaptureQueriesContext(connection) as captured:
        text = admin_client.get(page).content.decode()
    for key in keys:
        link = reverse(f"admin:security_{key._meta.model_name}_change", args=[key.pk])
        assert re.search(rf'href="{link}"[^>]*>{key.key_prefix}<', text)
    assert str(gone) in text
    assert len([query for query in captured if "api_keys" in query["sql"]]) == 1


def opened(client, page: str) -> tuple[list[UUID], dict[str, str]]:
    """The rows of a page, and the addresses behind the links below them by their words."""
    response = client.get(page)
    text = response.content.decode()
    [nav] = re.findall(r'<nav[^>]*aria-label="Pages">.*?</nav>', text, re.DOTALL)
    links = {
        words: page.partition("?")[0] + html.unescape(href)
        for href, words in re.findall(r'<a [^>]*href="([^"]*)"[^>]*>(\w+)</a>', nav)
    }
    return [row.pk for row in response.context["cl"].result_list], links


@pytest.fixture
def short_pages(monkeypatch):
    for model in (AuditLogEntry, RequestLogEntry, AlertEvent, ServerMetricEntry):
        monkeypatch.setattr(site._registry[model], "list_per_page", 2)


@pytest.mark.parametrize(
    ("page", "factory"),
    [
        (REQUESTS, RequestLogFactory),
        (AUDIT, AuditLogFactory),
        (reverse("admin:monitoring_alertevent_changelist"), AlertEventFactory),
        (reverse("admin:registry_servermetricentry_changelist"), measured),
    ],
)
@pytest.mark.usefixtures("short_pages")
def test_one_turns_older_and_newer_pages_of_a_growing_list(page, factory, admin_client):
    ids = sorted((factory().pk for _ in range(5)), reverse=True)
    shown, first = opened(admin_client, page)
    assert (shown, list(first)) == (ids[:2], ["Older"])
    shown, second = opened(admin_client, first["Older"])
    assert (shown, list(second)) == (ids[2:4], ["Newest", "Newer", "Older"])
    shown, third = opened(admin_client, second["Older"])
    assert (shown, list(third)) == (ids[4:], ["Newest", "Newer"])
    latest = factory().pk
    shown, back = opened(admin_client, third["Newer"])
    assert (shown, list(back)) == (ids[2:4], ["Newest", "Newer", "Older"])
    shown, back = opened(admin_client, back["Newer"])
    assert (shown, list(back)) == (ids[:2], ["Newest", "Newer", "Older"])
    shown, back = opened(admin_client, back["Newer"])
    assert (shown, list(back)) == ([latest], ["Newest", "Older"])
    assert opened(admin_client, back["Newest"])[0] == [latest, ids[0]]


@pytest.mark.usefixtures("short_pages")
@pytest.mark.parametrize("by_tenant", [False, True])
def test_pages_keep_filters_and_search_and_a_new_filter_begins_anew(by_tenant, admin_client):
    tenant, request_id = uuid4(), uuid7()
    row = {"status_code": 502, "request_id": request_id, "tenant_id": tenant, "duration_ms": 2e3}
    at = now()  # one time for all: a tenant's rows are told apart by their ids
    ids = sorted((RequestLogFactory(request_time=at, **row).pk for _ in range(5)), reverse=True)
    for _ in range(3):
        RequestLogFactory(request_time=at)
    asked = f"?q={request_id}&outcome=failed&slower=1000&window=1"
    own = f"&tenant_id={tenant}" if by_tenant else ""
    _, first = opened(admin_client, f"{REQUESTS}{asked}{own}")
    shown, second = opened(admin_client, first["Older"])
    assert shown == ids[2:4]
    shown, third = opened(admin_client, second["Older"])
    assert shown == ids[4:]
    assert opened(admin_client, third["Newer"])[0] == ids[2:4]
    # The forms of filters and search carry on what the address holds, but not the place.
    text = admin_client.get(first["Older"]).content.decode()
    assert 'name="window"' in text
    assert 'name="before"' not in text


SOME_ID = UUID(int=7)
NO_PLACES = [
    "",
    "~",
    "nonsense",
    f"2026-01-01T00:00:00~{SOME_ID}",  # without a zone
    f"2026-01-01T00:00:00Z~{SOME_ID}~",
    "2026-01-01T00:00:00Z~1",
    f"9999-12-31T23:59:59Z~{SOME_ID}",
    f"0001-01-01T00:00:00+23:00~{SOME_ID}",
    f"\0~{SOME_ID}",
]


def test_what_is_no_place_gives_the_first_page_and_a_word(admin_client):
    row = AuditLogFactory()
    for name, place in (("after", "nonsense"), *(("before", place) for place in NO_PLACES)):
        response = admin_client.get(AUDIT, {name: place})
        assert [shown.pk for shown in response.context["cl"].result_list] == [row.pk], place
        assert f"“{name}” names no place in this list" in response.content.decode(), place


def test_a_place_without_rows_leads_back_to_the_newest(admin_client):
    row = AuditLogFactory()
    for place in (
        f"before=1970-01-01T00:00:00Z~{UUID(int=0)}",
        f"after=8999-12-31T00:00:00Z~{row.pk}",
        f"after=8999-12-31T00:00:00-23:59~{row.pk}",  # a zone that PostgreSQL refuses
    ):
        shown, links = opened(admin_client, f"{AUDIT}?{place}")
        assert (shown, list(links)) == ([], ["Newest"])
        assert listed(admin_client, links["Newest"]) == [row.pk]


def long_log(calls: int) -> tuple[MCPServer, dict[str, str]]:
    """Calls of one server, one every four seconds, and the place of one near the oldest."""
    server = MCPServerFactory()
    seed.rows(
        RequestLog,
        calls,
        id="(lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0')"
        " || '70008' || lpad(to_hex(i), 15, '0'))::uuid",
        request_time="at",
        tenant_id=f"'{server.tenant_id}'",
        target_server_id=f"'{server.pk}'",
        source="LATERAL (SELECT now() - i * interval '4 s' AS at) clock",
    )
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE request_logs")
    deep = RequestLogEntry.objects.order_by("request_time")[1000]
    place = f"{deep.request_time:%Y-%m-%dT%H:%M:%S.%fZ}~{deep.pk}"
    return server, {"before": place, "after": place}


def reading(client, asked: dict[str, str]) -> tuple[str, int]:
    """The statement by which a page reads the request log, and the buffers that it touches."""
    with CaptureQueriesContext(connection) as captured:
        assert len(listed(client, f"{REQUESTS}?{urlencode(asked)}")) == 2
    [statement] = [query["sql"] for query in captured if 'FROM "request_logs"' in query["sql"]]
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, TIMING off, FORMAT JSON) {statement}")
        root = cursor.fetchone()[0][0]["Plan"]
    return statement, root["Shared Hit Blocks"] + root["Shared Read Blocks"]


@pytest.mark.usefixtures("short_pages")
def test_a_page_far_down_reads_what_the_first_one_reads(admin_client):
    server, places = long_log(10_000)
    other = {"o": "1", "_facets": "True", "all": "", "p": "3"}  # what Django's lists know
    for by in ({}, {"tenant_id": server.tenant_id}, {"target_server_id": server.pk}, other):
        _, first = reading(admin_client, by)
        for name, place in places.items():
            statement, buffers = reading(admin_client, {**by, name: place})
            assert "OFFSET" not in statement
            assert "COUNT(" not in statement
            assert buffers <= first + 30  # by OFFSET it would be thousands more


def test_what_a_request_did_is_looked_for_around_the_time_of_its_id(admin_client):
    wanted = AuditLogFactory(request_id=uuid7())
    AuditLogFactory(request_id=uuid7())
    assert listed(admin_client, f"{AUDIT}?window=720&q={uuid4()}") == []
    with CaptureQueriesContext(connection) as captured:
        assert listed(admin_client, f"{AUDIT}?window=720&q={wanted.request_id}") == [wanted.pk]
    statements = [query["sql"] for query in captured if 'FROM "audit_logs"' in query["sql"]]
    assert len(statements) == 2  # where the two hours end, and what is in them
    for asked in statements:
        times = re.findall(r'"timestamp" (>=|<) \'([^\']+)\'', asked)
        since = max(datetime.fromisoformat(at) for side, at in times if side == ">=")
        until = min(datetime.fromisoformat(at) for side, at in times if side == "<")
        assert until - since <= timedelta(hours=2)


def test_filters_of_the_audit_log(admin_client):
    refused = AuditLogFactory(action="api_key.reject", success=False, service_name="proxy")
    made = AuditLogFactory(action="server.register", resource_id="some-id")
    assert listed(admin_client, f"{AUDIT}?action=api_key") == [refused.pk]
    assert listed(admin_client, f"{AUDIT}?success=no") == [refused.pk]
    assert listed(admin_client, f"{AUDIT}?origin=proxy") == [refused.pk]
    assert listed(admin_client, f"{AUDIT}?resource_id=some-id") == [made.pk]


# ---------------------------------------------------------------- alerts

ALERT = {
    "name": "Slow",
    "severity": "warning",
    "metric_name": "slow_statement_ms",
    "comparison_operator": ">",
    "threshold_value": "1000",
    "duration_minutes": "5",
    "cooldown_minutes": "60",
    "notification_channels": "[]",
    "is_active": "on",
}


def test_an_alert_is_made_changed_and_removed_through_the_services(admin_client):
    add = reverse("admin:monitoring_performancealert_add")
    assert admin_client.post(add, ALERT).status_code == 302
    alert = PerformanceAlert.objects.get()
    change = reverse("admin:monitoring_performancealert_change", args=[alert.pk])
    assert admin_client.post(change, {**ALERT, "threshold_value": "2000"}).status_code == 302
    alert.refresh_from_db()
    assert alert.threshold_value == 2000
    delete = reverse("admin:monitoring_performancealert_delete", args=[alert.pk])
    assert admin_client.post(delete, {"post": "yes"}).status_code == 302
    actions = list(AuditLog.objects.order_by("id").values_list("action", flat=True))
    assert actions == ["alert.create", "alert.update", "alert.delete"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "taken"}, "already exists"),
        ({"metric_name": "slow_statements"}, "Did you mean slow_statement_ms?"),
        ({"metric_name": "error_rate", "threshold_value": "5"}, "so > 5 never holds"),
        ({"notification_channels": '{"a": 1}'}, "list of channels"),
        ({"threshold_value": "much"}, "Enter a number"),
    ],
)
def test_an_alert_that_does_not_fit_is_refused_in_words(admin_client, change, words):
    PerformanceAlertFactory(name="taken")
    add = reverse("admin:monitoring_performancealert_add")
    assert words in errors_of(admin_client.post(add, {**ALERT, **change}))
    assert PerformanceAlert.objects.count() == 1


WEBHOOK = r'[{"type": "webhook", "url": "https://a.example/%s"}]'


@pytest.mark.parametrize("extra", [{}, {"_preview": ""}])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"server": "zz"}, "is not a valid UUID"),
        ({"server": "a\0"}, "Null characters are not allowed"),
        ({"name": "a\0"}, "Null characters are not allowed"),
        ({"metric_name": "a\0"}, "There is no metric"),
        ({"notification_channels": "[" * 5000}, "nested more than 32 deep"),
        ({"notification_channels": "[" * 40 + "]" * 40}, "nested more than 32 deep"),
        ({"notification_channels": f"[{'9' * 5000}]"}, "Leave out"),
        ({"notification_channels": WEBHOOK % r"\u0000"}, "Leave out NUL characters"),
        ({"notification_channels": WEBHOOK % r"\ud800"}, "unpaired surrogates"),
        ({"notification_channels": r'[{"type": "log", "\ud800": 1}]'}, "unpaired surrogates"),
    ],
)
def test_what_postgresql_cannot_hold_is_an_error_of_the_form(admin_client, change, words, extra):
    page = reverse("admin:monitoring_performancealert_add")
    answer = admin_client.post(page, {**ALERT, **change, **extra})
    assert (answer.status_code, words in html.unescape(answer.text)) == (200, True)
    if "notification_channels" in change:
        assert change["notification_channels"] in html.unescape(answer.text), "shown as typed"
    assert not PerformanceAlert.objects.exists()


def test_a_link_to_a_form_may_name_no_server(admin_client):
    page = reverse("admin:monitoring_performancealert_add")
    assert admin_client.get(f"{page}?server=zz").status_code == 200


@pytest.mark.parametrize("is_new", [True, False])
def test_a_rule_is_held_against_the_past_before_it_is_saved(admin_client, is_new):
    for minutes in range(0, 60, 5):
        one = Extremes("slow_statement_ms", EVERYTHING, 900.0, 1500 if 15 < minutes < 50 else 950)
        history_keep([one], at=now() - timedelta(minutes=minutes))
    page = reverse("admin:monitoring_performancealert_add")
    if not is_new:
        alert = PerformanceAlertFactory()
        page = reverse("admin:monitoring_performancealert_change", args=[alert.pk])
    kept = list(PerformanceAlert.objects.values())
    assert 'name="_preview"' in admin_client.get(page).text

    for typed, told in (
        ({}, "Would have fired once since"),
        ({"threshold_value": "5000"}, "Would not have fired since"),
        ({"name": ""}, "Would have fired once since"),
        ({"metric_name": "dead_rows"}, "Nothing is remembered of this metric yet."),
    ):
        text = admin_client.post(page, {**ALERT, **typed, "_preview": ""}).text
        assert f"Not saved yet. With these values: {told}" in text
        assert text.count(told) == 2  # above the form and beside the condition
        assert f'value="{typed.get("threshold_value", "1000")}"' in text
    never = {**ALERT, "metric_name": "error_rate", "threshold_value": "5", "_preview": ""}
    text = admin_client.post(page, never).text
    assert "so &gt; 5 never holds" in text
    assert "With these values" not in text
    text = admin_client.post(page, {**ALERT, "threshold_value": "much", "_preview": ""}).text
    assert "Enter a number" in text
    assert "With these values" not in text
    assert list(PerformanceAlert.objects.values()) == kept
    assert not AuditLog.objects.exists()


def test_a_metric_is_chosen_and_one_of_before_is_kept(admin_client):
    add = reverse("admin:monitoring_performancealert_add")
    assert '<optgroup label="Servers">' in admin_client.get(add).text
    gone = PerformanceAlertFactory(metric_name="of_nobody")
    page = reverse("admin:monitoring_performancealert_change", args=[gone.pk])
    assert "of_nobody: there is no such metric" in admin_client.get(page).text
    form = {**ALERT, "metric_name": "of_nobody", "name": "kept"}
    assert admin_client.post(page, form).status_code == 302
    assert PerformanceAlert.objects.get().name == "kept"


HOOK = {"type": "webhook", "url": "https://8.8.8.8/alerts", "secret": "secret-4711"}


def test_an_operator_edits_a_rule_without_seeing_or_losing_its_secret(admin_client):
    add = reverse("admin:monitoring_performancealert_add")
    form = {**ALERT, "notification_channels": json.dumps([HOOK])}
    assert admin_client.post(add, form).status_code == 302
    alert = PerformanceAlert.objects.get()
    change = reverse("admin:monitoring_performancealert_change", args=[alert.pk])
    page = admin_client.get(change)
    assert HOOK["secret"] not in page.content.decode()
    shown = json.loads(page.context["adminform"].form["notification_channels"].value())
    assert shown == [HOOK | {"secret": "not shown"}]
    form = {**ALERT, "notification_channels": json.dumps([*shown, {"type": "log"}])}
    assert admin_client.post(change, form).status_code == 302
    alert.refresh_from_db()
    assert alert.channel_secrets.open() == {HOOK["url"]: HOOK["secret"]}
    assert len(alert.notification_channels) == 2


def test_who_may_only_look_at_a_rule_sees_no_path_of_a_webhook(admin_client, client):
    add = reverse("admin:monitoring_performancealert_add")
    form = {**ALERT, "notification_channels": json.dumps([HOOK])}
    assert admin_client.post(add, form).status_code == 302
    page = reverse(
        "admin:monitoring_performancealert_change", args=[PerformanceAlert.objects.get().pk]
    )
    reader = UserFactory(is_staff=True, tenant=None)
    reader.user_permissions.set(Permission.objects.filter(codename="view_performancealert"))
    client.force_login(reader)
    shown = html.unescape(client.get(page).text)
    assert HOOK["url"] not in shown
    [masked] = re.findall(r"https://8\.8\.8\.8/not-shown-\w+", shown)
    sent = json.dumps([HOOK | {"url": masked, "secret": "not shown"}, {"type": "log"}])
    assert admin_client.post(page, {**form, "notification_channels": sent}).status_code == 302
    alert = PerformanceAlert.objects.get()
    assert [one.get("url") for one in alert.notification_channels] == [HOOK["url"], None]
    sent = sent.replace("not-shown-", "not-shown-0")
    refused = admin_client.post(page, {**form, "notification_channels": sent})
    assert "write the whole URL" in errors_of(refused)


def test_the_history_of_an_alert_is_a_read_only_list(admin_client):
    event = AlertEventFactory(
        deliveries={"log-1": {"channel": "log", "attempts": 1, "sent_at": "2026", "error": ""}}
    )
    other = AlertEventFactory()
    page = reverse("admin:monitoring_alertevent_changelist")
    assert listed(admin_client, f"{page}?alert__id__exact={event.alert_id}") == [event.pk]
    assert listed(admin_client, page) == [other.pk, event.pk]
    assert "000 results" not in admin_client.get(page).text, "nobody counted"
    change = reverse("admin:monitoring_alertevent_change", args=[event.pk])
    assert admin_client.get(change).status_code == 200
    assert admin_client.post(change, {"message": "x"}).status_code == 403
    delete = reverse("admin:monitoring_alertevent_delete", args=[event.pk])
    assert admin_client.post(delete, {"post": "yes"}).status_code == 403
    alert = reverse("admin:monitoring_performancealert_change", args=[event.alert_id])
    assert f"{page}?alert__id__exact={event.alert_id}" in admin_client.get(alert).text
    gone = reverse("admin:monitoring_performancealert_delete", args=[event.alert_id])
    assert admin_client.post(gone, {"post": "yes"}).status_code == 302
    assert listed(admin_client, page) == [other.pk]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "not evaluated"),
        ({"last_measured": now(), "last_value": 1}, "ok"),
        ({"last_measured": now(), "last_value": 1, "pending_since": now()}, "pending"),
        ({"last_measured": now()}, "too few calls"),
        ({"no_data_since": now()}, "no data"),
        ({"is_triggered": True, "first_triggered": now()}, "firing"),
        ({"is_triggered": True, "acknowledged_at": now()}, "acknowledged"),
        ({"is_active": False, "last_measured": now()}, "off"),
    ],
)
def test_the_list_says_how_each_alert_stands(admin_client, fields, words):
    assert PerformanceAlertFactory(**fields).state == words
    page = reverse("admin:monitoring_performancealert_changelist")
    assert words in admin_client.get(page).text.lower()


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"notification_channels": '[{"type": "log"}]'}, None),
        ({}, "Slow: It tells nobody when it fires: it has no notification channel."),
        (
            {"metric_name": "wraparound_percent", "comparison_operator": ">=",
             "threshold_value": "0"},
            "wraparound_percent lies between 0 and 100, so >= 0 always holds: it fires all the "
            "time.",
        ),
        (
            {"metric_name": "cache_hit_ratio", "comparison_operator": "<",
             "threshold_value": "98.5"},
            "so < 98.5 always holds",
        ),
        (
            {"metric_name": "dead_rows", "threshold_value": "-0.5"},
            "dead_rows is never below 0, so > -0.5 always holds",
        ),
    ],
)  # fmt: skip
def test_a_rule_that_cannot_be_meant_is_saved_with_a_warning(admin_client, rule, words):
    add = reverse("admin:monitoring_performancealert_add")
    answer = admin_client.post(add, ALERT | rule, follow=True)
    assert PerformanceAlert.objects.get().name == "Slow"
    told = [str(one) for one in answer.context["messages"] if one.level_tag == "warning"]
    assert [words in text for text in told].count(True) == 1 if words else not told


def test_a_rule_of_before_that_never_holds_is_warned_about(admin_client):
    old = PerformanceAlertFactory(
        name="Slow",
        metric_name="error_rate",
        threshold_value=5,
        notification_channels=[{"type": "log"}],
    )
    page = reverse("admin:monitoring_performancealert_change", args=[old.pk])
    form = ALERT | {
        "metric_name": "error_rate",
        "threshold_value": "5",
        "description": "Old.",
        "notification_channels": '[{"type": "log"}]',
    }
    answer = admin_client.post(page, form, follow=True)
    assert "Slow: error_rate lies between 0 and 1, so &gt; 5 never holds." in answer.text


def test_the_list_shows_whom_each_alert_tells(admin_client):
    PerformanceAlertFactory(name="silent")
    mail = {"type": "email", "to": ["ops@example.org"]}
    PerformanceAlertFactory(name="told", notification_channels=[{"type": "log"}, mail])
    page = admin_client.get(reverse("admin:monitoring_performancealert_changelist")).text
    assert page.count("tells nobody") == 1
    assert re.search(r">\s*log, email\s*<", page)


def test_a_firing_alert_is_acknowledged(admin_client, admin_user):
    firing = PerformanceAlertFactory(is_triggered=True, first_triggered=now())
    quiet = PerformanceAlertFactory()
    page = reverse("admin:monitoring_performancealert_changelist")
    form = {"action": "acknowledge", "_selected_action": [firing.pk, quiet.pk]}
    text = admin_client.post(page, form, follow=True).content.decode()
    assert "1 alert(s) acknowledged" in text
    assert "1 not firing" in text
    firing.refresh_from_db()
    assert firing.acknowledged_by == admin_user
    # An acknowledgement of an earlier firing counts for nothing.
    PerformanceAlert.objects.update(first_triggered=now() + timedelta(minutes=1))
    states = {row.name: row for row in PerformanceAlert.objects.all()}
    assert "firing" in admin_client.get(page).content.decode().lower()
    assert states[quiet.name].acknowledged_at is None


def test_an_alert_is_acknowledged_on_its_own_page(admin_client, admin_user):
    alert = PerformanceAlertFactory()
    page = reverse("admin:monitoring_performancealert_change", args=[alert.pk])
    button = reverse("admin:monitoring_performancealert_acknowledge", args=[alert.pk])
    assert button not in admin_client.get(page).text, "it does not fire"
    PerformanceAlert.objects.update(is_triggered=True, first_triggered=now())
    assert button in admin_client.get(page).text
    answer = admin_client.post(button, {"next": page})
    assert answer.url == page
    text = admin_client.get(page).text
    assert f"{admin_user} looks after it since {now():%Y-%m-%d}" in text
    assert button not in text
    elsewhere = admin_client.post(button, {"next": "https://example.org/"})
    assert elsewhere.url == reverse("admin:index")


# ---------------------------------------------------------------- retention

POLICY = {
    "name": "Requests",
    "table_name": "request_logs",
    "date_column": "request_time",
    "retention_days": "90",
    "batch_size": "1000",
    "conditions": "{}",
    "is_active": "on",
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"retention_days": "0"}, "greater than or equal to 1"),
        ({"retention_days": "-3"}, "greater than or equal to"),
        ({"retention_days": "99999999999"}, "less than or equal to"),
        ({"batch_size": "0"}, "greater than or equal to 1"),
        ({"table_name": "users"}, "not one of the available choices"),
        ({"date_column": "timestamp"}, "request_time"),
        ({"conditions": "[1]"}, "Write an object"),
        ({"conditions": '{"a":' * 5000}, "nested more than 32 deep"),
        ({"conditions": r'{"path": {"=": "\ud800"}}'}, "unpaired surrogates"),
        ({"conditions": r'{"path": {"=": "\u0000"}}'}, "NUL characters"),
        ({"name": "taken"}, "already exists"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused_in_words(admin_client, change, words):
    DataRetentionPolicyFactory(name="taken")
    add = reverse("admin:monitoring_dataretentionpolicy_add")
    assert words in errors_of(admin_client.post(add, {**POLICY, **change}))
    assert DataRetentionPolicy.objects.count() == 1


def test_a_policy_s_page_says_what_would_go_and_what_went_wrong(admin_client):
    for age in (8, 9, 1):
        SessionFactory(expires_at=now() - timedelta(days=age))
    policy = DataRetentionPolicyFactory(
        table_name="sessions",
        date_column="expires_at",
        retention_days=7,
        last_error="A batch took longer than 10 s",
        total_deleted=12_345,
    )
    page = reverse("admin:monitoring_dataretentionpolicy_change", args=[policy.pk])
    text = admin_client.get(page).text
    assert re.search(r"2 rows \(about [^)]+\) of sessions, where expires_at is before", text)
    assert "A batch took longer than 10 s" in text
    assert "12,345 rows" in text
    assert "failed" in admin_client.get(reverse(POLICIES)).text


def test_a_policy_s_conditions_are_refused_in_words(admin_client):
    add = reverse("admin:monitoring_dataretentionpolicy_add")
    change = {"conditions": '{"nonsense": {"=": 1}}'}
    assert "There is no column" in errors_of(admin_client.post(add, {**POLICY, **change}))


def test_the_page_of_a_policy_that_fits_no_table_still_opens(admin_client):
    policy = DataRetentionPolicyFactory(table_name="users", date_column="created_at")
    page = reverse("admin:monitoring_dataretentionpolicy_change", args=[policy.pk])
    assert "Choose one of" in admin_client.get(page).text


def test_the_page_of_a_policy_that_postgresql_cannot_run_still_opens(admin_client, monkeypatch):
    monkeypatch.setattr(previewing, "_COUNT", previewing._COUNT.replace("count(*)", "count(*) / 0"))
    policy = DataRetentionPolicyFactory(table_name="sessions", date_column="expires_at")
    page = reverse("admin:monitoring_dataretentionpolicy_change", args=[policy.pk])
    assert "PostgreSQL cannot tell: division by zero." in admin_client.get(page).text
    refused = admin_client.post(page, {**POLICY, "retention_days": "0"})  # in a transaction
    assert "PostgreSQL cannot tell: division by zero." in refused.text


def test_views_are_refreshed_by_an_action(admin_client):
    views = [MaterializedView.objects.create(name=name) for name in ("a", "b")]
    chosen = {"action": "refresh", "_selected_action": [view.pk for view in views]}
    answer = admin_client.post(reverse(VIEWS), chosen, follow=True)
    assert "2 view(s) wait for the worker." in answer.text
    assert ProcrastinateJob.objects.filter(task_name="view_refresh").count() == 2


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({}, "never refreshed"),
        ({"last_refreshed": now()}, "fresh"),
        ({"last_refreshed": now(), "next_refresh": now() - timedelta(hours=1)}, "overdue"),
        ({"last_refreshed": now(), "last_error": "division by zero"}, "failed"),
        ({"is_active": False}, "off"),
    ],
)
def test_a_view_s_state_is_told(admin_client, fields, word):
    view = MaterializedView.objects.create(name="mv", **fields)
    assert f">{word}<" in re.sub(r"\s*([<>])\s*", r"\1", admin_client.get(reverse(VIEWS)).text)
    page = admin_client.get(reverse("admin:monitoring_materializedview_change", args=[view.pk]))
    assert view.last_error in page.text


def test_a_policy_is_kept_and_audited(admin_client):
    add = reverse("admin:monitoring_dataretentionpolicy_add")
    assert admin_client.post(add, POLICY).status_code == 302
    assert DataRetentionPolicy.objects.get().retention_days == 90
    assert AuditLog.objects.get().action == "retention_policy.create"
