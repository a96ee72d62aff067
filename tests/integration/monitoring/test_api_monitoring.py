from __future__ import annotations

import json
import re
from base64 import urlsafe_b64encode
from datetime import timedelta, timezone
from uuid import UUID, uuid4

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import now
from procrastinate.contrib.django.models import ProcrastinateJob

from monitoring.models import (
    AlertEvent,
    AuditLog,
    DataRetentionPolicy,
    MaterializedView,
    PerformanceAlert,
)
from registry.db.ids import uuid7
from tests.api import client_of, faults, transaction_queries
from tests.factories import (
    AlertEventFactory,
    AuditLogFactory,
    DataRetentionPolicyFactory,
    MCPServerFactory,
    PerformanceAlertFactory,
    RequestLogFactory,
    SessionFactory,
    TenantFactory,
    UserFactory,
)
from tests.partitions import one_old_partition

pytestmark = pytest.mark.django_db

EVENTS = "/api/v1/alert-events"
ALERTS, REQUESTS, AUDIT = "/api/v1/alerts", "/api/v1/request-logs", "/api/v1/audit-logs"
POLICIES, VIEWS = "/api/v1/retention-policies", "/api/v1/materialized-views"


@pytest.fixture
def client():
    return client_of(TenantFactory())


@pytest.fixture
def operator():
    return client_of(None)


def uuid7_at(at) -> UUID:
    milliseconds = int(at.timestamp() * 1000)
    return UUID(int=milliseconds << 80 | uuid7().int & (1 << 80) - 1)


def ids(answer) -> list[str]:
    assert answer.status_code == 200, answer.content
    return [row["id"] for row in answer.json()["results"]]


# ---------------------------------------------------------------- logs


@pytest.fixture
def history():
    """Request log entries by their age in hours."""
    one_old_partition(days=3)
    ages = (1, 23, 25, 49)
    times = {age: now() - timedelta(hours=age) for age in ages}
    return {
        age: RequestLogFactory(request_time=at, id=uuid7_at(at), request_id=uuid7_at(at))
        for age, at in times.items()
    }


def hours_ago(hours: int) -> str:
    return (now() - timedelta(hours=hours)).isoformat()


@pytest.mark.parametrize(
    ("bounds", "ages"),
    [
        ({}, [1, 23]),
        ({"since": 50}, [1, 23, 25, 49]),
        ({"until": 24}, [25]),
        ({"since": 50, "until": 24}, [25, 49]),
        ({"since": 24, "until": 2}, [23]),
    ],
)
def test_a_log_is_read_within_a_window_of_24_hours_by_default(operator, history, bounds, ages):
    query = {name: hours_ago(hours) for name, hours in bounds.items()}
    assert ids(operator.get(REQUESTS, query)) == [str(history[age].pk) for age in ages]


def test_every_list_of_a_log_bounds_time(operator, django_assert_num_queries):
    operator.get(REQUESTS)
    with django_assert_num_queries(2 + transaction_queries(None)) as seen:
        operator.get(REQUESTS)
    [statement] = [q["sql"] for q in seen.captured_queries if 'FROM "request_logs"' in q["sql"]]
    assert '"request_time" >=' in statement
    assert '"request_time" <' in statement
    assert "COUNT(" not in statement.upper()
    assert "OFFSET" not in statement.upper()


@pytest.mark.parametrize(
    ("path", "query", "order"),
    [
        (REQUESTS, {}, "id"),
        (REQUESTS, {"tool": "search"}, "id"),
        (REQUESTS, {"tenant": "acme"}, "request_time"),
        (REQUESTS, {"server": str(UUID(int=1))}, "request_time"),
        (AUDIT, {}, "id"),
        (AUDIT, {"tenant": "acme"}, "timestamp"),
        (AUDIT, {"user": str(UUID(int=1))}, "timestamp"),
        (AUDIT, {"resource_type": "tenants", "resource_id": "1"}, "timestamp"),
        (AUDIT, {"resource_id": "1"}, "id"),
        (REQUESTS, {"tenant": ""}, "id"),
    ],
)
def test_a_log_is_read_along_an_index(operator, path, query, order):
    """Of all tenants along the primary key; where an id narrows it, along that id's index."""
    TenantFactory(slug="acme")
    with CaptureQueriesContext(connection) as seen:
        assert operator.get(path, query).status_code == 200
    [listed] = [one["sql"] for one in seen if "LIMIT 51" in one["sql"]]
    assert listed.split("ORDER BY ")[1].split(" DESC")[0].endswith(f'."{order}"')


def test_a_tenants_log_is_read_along_its_own_index(client):
    with CaptureQueriesContext(connection) as seen:
        assert client.get(REQUESTS).status_code == 200
    [listed] = [one["sql"] for one in seen if "LIMIT 51" in one["sql"]]
    assert 'ORDER BY "request_logs"."request_time" DESC' in listed


def test_a_request_id_tells_its_time(operator, history):
    old = history[49]
    assert ids(operator.get(REQUESTS, {"request_id": str(old.request_id)})) == [str(old.pk)]


def test_an_entry_is_found_by_its_id_alone_whatever_its_age(operator, history):
    for entry in history.values():
        assert operator.get(f"{REQUESTS}/{entry.pk}").json()["id"] == str(entry.pk)
    assert operator.get(f"{REQUESTS}/{uuid4()}").status_code == 404


@pytest.mark.parametrize("narrowed", [{}, {"tenant": "acme"}])
def test_entries_of_the_same_moment_are_paged_by_id(operator, narrowed):
    at, tenant = now(), TenantFactory(slug="acme")
    made = {str(RequestLogFactory(request_time=at, tenant_id=tenant.pk).pk) for _ in range(5)}
    page = operator.get(REQUESTS, {"page_size": 2, **narrowed})
    seen = ids(page)
    while page.json()["next"]:
        page = operator.get(page.json()["next"])
        seen += ids(page)
    assert len(seen) == 5
    assert set(seen) == made


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"since": "yesterday"}, "since"),
        ({"until": "0001-01-01T00:00:00Z"}, "until"),
        ({"since": "9999-12-31T23:59:59Z"}, "since"),
        ({"since": "0001-01-01T00:00:00+23:59"}, "since"),
        ({"since": "2026-11-29T06:00:00+99:00"}, "since"),
        ({"server": "nonsense"}, "server"),
        ({"status": "fine"}, "status"),
        ({"status": "1" + "0" * 30}, "status"),
        ({"request_id": "1"}, "request_id"),
    ],
)
def test_a_bad_filter_is_refused_by_name(operator, query, field):
    answer = operator.get(REQUESTS, query)
    assert (answer.status_code, faults(answer)) == (400, {field})


@pytest.mark.parametrize("path", [REQUESTS, AUDIT])
@pytest.mark.parametrize("until", ["2026-11-29T05:59:59Z", "2026-11-30T05:00:00+23:00"])
def test_a_window_that_holds_no_time_is_refused(operator, path, until):
    answer = operator.get(path, {"since": "2026-11-29T06:00:00Z", "until": until})
    assert (answer.status_code, faults(answer)) == (400, {"since", "until"})


def test_a_time_may_have_any_offset(operator, history):
    far = timezone(timedelta(hours=23, minutes=59))
    for ends, ages in (
        ({"since": now() - timedelta(hours=50)}, [1, 23, 25, 49]),
        ({"until": now() - timedelta(hours=24)}, [25]),
    ):
        query = {name: at.astimezone(far).isoformat() for name, at in ends.items()}
        assert ids(operator.get(REQUESTS, query)) == [str(history[age].pk) for age in ages]


@pytest.mark.parametrize(
    ("time", "status"),
    [
        ("2026-11-29T06:00:00+00:00", 200),
        ("2026-11-29T06:00:00+23:59", 200),
        ("2026-11-29T06:00:00", 400),
        ("0001-01-01T00:00:00+23:59", 400),
    ],
)
def test_the_time_in_a_cursor_may_have_any_offset(client, time, status):
    text = json.dumps(["next", time, str(uuid7())])
    answer = client.get(REQUESTS, {"cursor": urlsafe_b64encode(text.encode()).decode()})
    assert answer.status_code == status, answer.content
    assert status == 200 or "No cursor of this list" in answer.json()["cursor"][0]


def test_request_log_filters_find_what_they_say(operator):
    tenant, server = TenantFactory(), MCPServerFactory()
    entry = RequestLogFactory(
        tenant_id=tenant.pk,
        target_server_id=server.pk,
        tool_name="echo",
        status_code=502,
        error_type="upstream_unreachable",
    )
    RequestLogFactory(tool_name="other")
    for query in (
        {"tenant": tenant.slug}, {"server": str(server.pk)}, {"tool": "echo"}, {"status": 502},
        {"status_min": 500}, {"error_type": "upstream_unreachable"},
        {"request_id": str(entry.request_id)},
    ):  # fmt: skip
        assert ids(operator.get(REQUESTS, query)) == [str(entry.pk)], query


def test_audit_log_filters_find_what_they_say(operator):
    entry = AuditLogFactory(action="key.made", resource_id="7", success=False, request_id=uuid7())
    AuditLogFactory()
    for query in (
        {"action": "key.made"}, {"resource_id": "7"}, {"success": "false"},
        {"request_id": str(entry.request_id)},
    ):  # fmt: skip
        assert ids(operator.get(AUDIT, query)) == [str(entry.pk)], query


@pytest.mark.parametrize("path", [REQUESTS, AUDIT])
def test_logs_are_read_only(operator, path):
    assert operator.post(path, {}, format="json").status_code == 405
    for method in ("patch", "delete"):
        assert getattr(operator, method)(f"{path}/{uuid7()}").status_code == 405


# ---------------------------------------------------------------- alerts


ALERT = {"name": "many errors", "metric_name": "error_rate", "threshold_value": 0.05}


def test_an_alert_is_made_changed_and_removed(client):
    server = MCPServerFactory(tenant=client.key.tenant)
    own = {"metric_name": "queue_depth", "server": str(server.pk)}
    refused = client.post(ALERTS, ALERT | own | {"metric_name": "error_rate"}, format="json")
    assert refused.json()["server"][0].endswith("or queue_depth.")
    made = client.post(ALERTS, ALERT | own, format="json")
    assert made.status_code == 201, made.content
    path = f"{ALERTS}/{made.json()['id']}"
    changed = client.patch(path, {"threshold_value": 0.1, "comparison_operator": ">="}, "json")
    assert changed.json()["threshold_value"] == 0.1
    assert client.delete(path).status_code == 204
    actions = list(AuditLog.objects.order_by("id").values_list("action", flat=True))
    assert actions == ["alert.create", "alert.update", "alert.delete"]


def test_alerts_on_all_servers_are_the_operators(client, operator):
    refused = client.post(ALERTS, ALERT, format="json")
    assert refused.status_code == 403
    made = operator.post(ALERTS, ALERT, format="json")
    assert made.status_code == 201
    assert client.get(f"{ALERTS}/{made.json()['id']}").status_code == 404


def test_an_alert_is_on_an_own_server_only(client):
    for server in (MCPServerFactory(), MCPServerFactory(tenant=None)):
        answer = client.post(ALERTS, ALERT | {"server": str(server.pk)}, format="json")
        assert (answer.status_code, faults(answer)) == (400, {"server"})


def deep(levels):
    found = []
    for _ in range(levels):
        found = [found]
    return found


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"metric_name": "Not a metric"}, "metric_name"),
        ({"metric_name": "error_rate", "threshold_value": 5}, "threshold_value"),
        ({"threshold_value": 1e999}, "threshold_value"),
        ({"threshold_value": "nan"}, "threshold_value"),
        ({"comparison_operator": "!="}, "comparison_operator"),
        ({"severity": "awful"}, "severity"),
        ({"duration_minutes": -1}, "duration_minutes"),
        ({"duration_minutes": 2**31}, "duration_minutes"),
        ({"notification_channels": {"a": 1}}, "notification_channels"),
        ({"notification_channels": ["nul\0"]}, "notification_channels"),
        ({"notification_channels": ["\ud800"]}, "notification_channels"),
        ({"notification_channels": deep(50)}, "notification_channels"),
        ({"name": None}, "name"),
    ],
)
def test_an_alert_that_does_not_fit_is_refused_by_name(operator, change, field):
    alert = PerformanceAlertFactory()
    text = json.dumps(change).replace("Infinity", "1e999")
    answer = operator.patch(f"{ALERTS}/{alert.pk}", text, content_type="application/json")
    assert (answer.status_code, faults(answer)) == (400, {field}), answer.content


@pytest.mark.parametrize("field", ["severity", "comparison_operator", "name"])
def test_half_a_character_is_refused_by_name(operator, field):
    body = json.dumps(ALERT | {field: "\ud800"})  # by hand: the client cannot encode it
    answer = operator.post(ALERTS, body, content_type="application/json")
    assert (answer.status_code, faults(answer)) == (400, {field})


def test_a_body_that_is_nested_deep_is_refused(operator):
    body = '{"server": ' + "[" * 500 + "]" * 500 + "}"
    answer = operator.post(ALERTS, body, content_type="application/json")
    assert answer.status_code == 400
    assert "nested more than 100 deep" in answer.json()["detail"]


def test_two_alerts_of_one_name_are_refused(operator):
    operator.post(ALERTS, ALERT, format="json")
    assert operator.post(ALERTS, ALERT, format="json").status_code == 400


def test_an_alert_that_fires_is_acknowledged_once_a_firing():
    tenant = TenantFactory()
    person = UserFactory(tenant=tenant)
    client = client_of(tenant, user=person)
    alert = PerformanceAlertFactory(server=MCPServerFactory(tenant=tenant))
    path = f"{ALERTS}/{alert.pk}/acknowledge"
    assert client.post(path).status_code == 409  # it does not fire
    PerformanceAlert.objects.update(is_triggered=True, first_triggered=now())
    assert client.post(path).json()["acknowledged_by"] == str(person.pk)
    assert client.post(path).status_code == 409
    PerformanceAlert.objects.update(first_triggered=now() + timedelta(seconds=1))  # it fires anew
    assert client.post(path).status_code == 200
    assert AuditLog.objects.filter(action="alert.acknowledge").count() == 2


def test_a_key_that_acknowledges_is_named(operator, admin_client):
    alert = PerformanceAlertFactory(is_triggered=True, first_triggered=now())
    key = f"API key {operator.key.name} ({operator.key.key_prefix})"
    answer = operator.post(f"{ALERTS}/{alert.pk}/acknowledge").json()
    assert (answer["acknowledged_by"], answer["acknowledged_with"]) == (None, key)
    assert f"{key} looks after it" in AlertEvent.objects.get().message
    page = admin_client.get(f"/admin/monitoring/performancealert/{alert.pk}/change/").text
    assert f"{key} looks after it since" in page
    # The next firing is somebody else's.
    PerformanceAlert.objects.update(first_triggered=now() + timedelta(seconds=1))
    admin_client.post(f"/admin/monitoring/performancealert/{alert.pk}/acknowledge/")
    alert.refresh_from_db()
    assert (str(alert.acknowledged_by), alert.acknowledged_with) == ("admin", "")


def fires(alert) -> None:
    PerformanceAlert.objects.filter(pk=alert.pk).update(
        is_triggered=True, first_triggered=now(), acknowledged_at=None
    )


@pytest.mark.parametrize("has_user", [True, False])
def test_who_of_the_operators_acknowledged_is_told_to_operators_only(has_user):
    tenant = TenantFactory()
    alert = PerformanceAlertFactory(server=MCPServerFactory(tenant=tenant))
    person = UserFactory(tenant=None, is_staff=True) if has_user else None
    operator, theirs = client_of(None, user=person, name="rota of Eve"), client_of(tenant)
    path = f"{ALERTS}/{alert.pk}"
    fires(alert)
    told = operator.post(f"{path}/acknowledge").json()
    assert told["acknowledged_by"] == (str(person.pk) if person else None)
    assert told["acknowledged_with"].startswith("API key rota of Eve (")
    assert operator.get(path).json()["acknowledged_with"] == told["acknowledged_with"]
    changed = theirs.patch(path, {"description": "Seen."}, format="json").json()
    for seen in (theirs.get(path).json(), theirs.get(ALERTS).json()["results"][0], changed):
        assert seen["acknowledged_by"] is None
        assert seen["acknowledged_with"].startswith("an operator")
        assert seen["acknowledged_at"] == told["acknowledged_at"]
    [event] = theirs.get(EVENTS, {"alert": str(alert.pk)}).json()["results"]
    assert "acknowledged: an operator looks after it;" in event["message"]
    for answer in (theirs.get(path), theirs.get(ALERTS), theirs.get(EVENTS)):
        assert "Eve" not in answer.text
        assert operator.key.key_prefix not in answer.text


@pytest.mark.parametrize("has_user", [True, False])
def test_a_tenants_own_people_and_keys_are_named_to_it(has_user):
    tenant = TenantFactory()
    alert = PerformanceAlertFactory(server=MCPServerFactory(tenant=tenant))
    person = UserFactory(tenant=tenant) if has_user else None
    fires(alert)
    mine = client_of(tenant, user=person, name="rota (nights)")
    told = mine.post(f"{ALERTS}/{alert.pk}/acknowledge").json()
    assert told["acknowledged_by"] == (str(person.pk) if person else None)
    assert told["acknowledged_with"] == f"API key rota (nights) ({mine.key.key_prefix})"
    colleague = client_of(tenant).get(f"{ALERTS}/{alert.pk}").json()
    assert colleague["acknowledged_with"] == told["acknowledged_with"]
    assert told["acknowledged_with"] in AlertEvent.objects.get().message


HOOK = {"type": "webhook", "url": "https://8.8.8.8/alerts", "secret": "secret-4711"}


def test_a_webhooks_secret_is_written_and_never_shown(operator):
    made = operator.post(ALERTS, ALERT | {"notification_channels": [HOOK]}, format="json")
    assert made.status_code == 201, made.content
    path = f"{ALERTS}/{made.json()['id']}"
    shown = made.json()["notification_channels"]
    assert shown == [HOOK | {"secret": "not shown"}]
    changed = operator.patch(path, {"notification_channels": [*shown, {"type": "log"}]}, "json")
    assert changed.status_code == 200, changed.content
    assert PerformanceAlert.objects.get().channel_secrets.open() == {HOOK["url"]: HOOK["secret"]}
    for answer in (made, changed, operator.get(path), operator.get(ALERTS), operator.get(AUDIT)):
        assert HOOK["secret"] not in answer.content.decode()
    reader = client_of(None, scopes=["read", "metrics"])
    masked, _ = reader.get(path).json()["notification_channels"]
    assert masked | {"url": HOOK["url"]} == HOOK | {"secret": "not shown"}
    assert re.fullmatch(r"https://8\.8\.8\.8/not-shown-[0-9a-f]{16}", masked["url"])
    for answer in (reader.get(ALERTS), operator.get(AUDIT)):
        assert HOOK["url"] not in answer.text, "the path is often a secret"
        assert masked["url"] in answer.text
    elsewhere = [shown[0] | {"url": "https://8.8.4.4/"}]
    refused = operator.patch(path, {"notification_channels": elsewhere}, "json")
    assert "no secret is stored" in refused.json()["notification_channels"][0]


def test_what_readers_see_of_a_webhook_can_be_sent_back_and_keeps_it(operator):
    hooks = [HOOK, {"type": "webhook", "url": "https://8.8.8.8/?token=2"}]
    made = operator.post(ALERTS, ALERT | {"notification_channels": hooks}, format="json")
    path = f"{ALERTS}/{made.json()['id']}"
    reader = client_of(None, scopes=["read", "metrics"])
    masked = reader.get(path).json()["notification_channels"]
    assert "token" not in str(masked)
    sent = [masked[1] | {"events": ["triggered"]}, masked[0]]
    changed = operator.patch(path, {"notification_channels": sent}, "json")
    assert changed.json()["notification_channels"] == [
        hooks[1] | {"events": ["triggered"]},
        HOOK | {"secret": "not shown"},
    ]
    assert PerformanceAlert.objects.get().channel_secrets.open() == {HOOK["url"]: HOOK["secret"]}
    operator.patch(path, {"notification_channels": [masked[0]]}, "json")
    for gone in (masked[1], masked[0] | {"url": masked[0]["url"].replace("8.8.8.8", "8.8.4.4")}):
        refused = operator.patch(path, {"notification_channels": [gone]}, "json")
        assert refused.status_code == 400
        assert "write the whole URL" in refused.json()["notification_channels"][0]
    again = operator.post(ALERTS, ALERT | {"name": "b", "notification_channels": masked}, "json")
    assert again.status_code == 400
    assert PerformanceAlert.objects.get().notification_channels[0]["url"] == HOOK["url"]


def test_a_channel_that_does_not_fit_is_refused_in_words(operator):
    channels = [{"type": "log"}, {"type": "email", "to": ["ops"]}]
    answer = operator.post(ALERTS, ALERT | {"notification_channels": channels}, format="json")
    assert answer.status_code == 400
    [words] = answer.json()["notification_channels"]
    assert words.startswith("Channel 2: 'ops' is no e-mail address")


def test_the_events_of_an_alert_say_what_happened_and_who_was_told(client, operator):
    mine, other = (
        PerformanceAlertFactory(server=MCPServerFactory(tenant=client.key.tenant)) for _ in range(2)
    )
    everyones = AlertEventFactory(alert__server=None)
    delivery = {"channel": "log", "attempts": 1, "sent_at": "2026-05-01T12:00:00Z", "error": ""}
    first = AlertEventFactory(alert=mine, deliveries={"log-1": delivery})
    second = AlertEventFactory(alert=mine, kind="resolved", value=None)
    AlertEventFactory(alert=other)
    found = client.get(EVENTS, {"alert": str(mine.pk)}).json()["results"]
    assert [row["id"] for row in found] == [str(second.pk), str(first.pk)]
    assert (found[1]["alert_name"], found[1]["deliveries"]) == (mine.name, [delivery])
    assert ids(client.get(EVENTS, {"alert": str(mine.pk), "kind": "resolved"})) == [str(second.pk)]
    assert str(everyones.pk) not in ids(client.get(EVENTS))
    assert str(everyones.pk) in ids(operator.get(EVENTS))
    assert client.get(f"{EVENTS}/{everyones.pk}").status_code == 404
    assert operator.post(EVENTS, {}, format="json").status_code == 405


def test_a_list_of_events_takes_two_queries_whatever_its_length(
    operator, django_assert_num_queries
):
    for _ in range(10):
        AlertEventFactory(alert__server=MCPServerFactory())
    operator.get(EVENTS)
    with django_assert_num_queries(2 + transaction_queries(None)):
        assert len(ids(operator.get(EVENTS))) == 10


# ---------------------------------------------------------------- policies and views


POLICY = {
    "name": "calls", "table_name": "request_logs", "date_column": "request_time",
    "retention_days": 30,
}  # fmt: skip


def test_a_policy_is_made_changed_and_removed(operator):
    made = operator.post(POLICIES, POLICY, format="json")
    assert made.status_code == 201, made.content
    path = f"{POLICIES}/{made.json()['id']}"
    assert operator.patch(path, {"retention_days": 7}, "json").json()["retention_days"] == 7
    assert operator.delete(path).status_code == 204
    assert not DataRetentionPolicy.objects.exists()
    assert AuditLog.objects.count() == 3


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"table_name": "users"}, "table_name"),
        ({"table_name": "users; DROP TABLE users"}, "table_name"),
        ({"date_column": "id"}, "date_column"),
        ({"retention_days": 0}, "retention_days"),
        ({"batch_size": 0}, "batch_size"),
        ({"conditions": ["x"]}, "conditions"),
    ],
)
def test_a_policy_deletes_nothing_but_old_logs(operator, change, field):
    answer = operator.post(POLICIES, POLICY | change, format="json")
    assert (answer.status_code, faults(answer)) == (400, {field}), answer.content


def test_a_policy_s_conditions_are_checked_and_shown(operator):
    told = {"name": "idle", "table_name": "sessions", "date_column": "expires_at",
            "retention_days": 1}  # fmt: skip
    conditions = {"is_active": {"=": False}}
    made = operator.post(POLICIES, told | {"conditions": conditions}, format="json")
    assert (made.status_code, made.json()["conditions"]) == (201, conditions)
    path = f"{POLICIES}/{made.json()['id']}"
    refused = operator.patch(path, {"conditions": {"is_active": {"=": "no"}}}, "json")
    assert refused.status_code == 400
    assert "is_active =: write true or false." in str(refused.json()["conditions"])
    assert DataRetentionPolicy.objects.get().conditions == conditions


def test_a_policy_s_preview_says_what_would_go(operator, client):
    SessionFactory(expires_at=now() - timedelta(days=8))
    policy = DataRetentionPolicyFactory(
        table_name="sessions", date_column="expires_at", retention_days=7
    )
    path = f"{POLICIES}/{policy.pk}/preview"
    told = operator.get(path).json()
    assert (told["table"], told["column"], told["rows"]) == ("sessions", "expires_at", 1)
    assert (told["is_estimate"], told["partitions"]) == (False, None)
    assert client.get(path).status_code == 403
    assert operator.post(path, {}, format="json").status_code == 405


def test_a_policy_that_does_not_fit_the_database_has_no_preview(operator):
    policy = DataRetentionPolicyFactory(table_name="users", date_column="created_at")
    answer = operator.get(f"{POLICIES}/{policy.pk}/preview")
    assert (answer.status_code, faults(answer)) == (400, {"table_name"})


def test_a_refresh_is_asked_for_and_queued(operator, client):
    view = MaterializedView.objects.create(name="mv")
    answer = operator.post(f"{VIEWS}/{view.pk}/refresh", {}, format="json")
    assert (answer.status_code, answer.json()["name"]) == (202, "mv")
    job = ProcrastinateJob.objects.get()
    assert (job.task_name, job.args) == ("view_refresh", {"view_id": str(view.pk)})
    assert client.post(f"{VIEWS}/{view.pk}/refresh", {}, format="json").status_code == 403


def test_a_policy_stays_with_its_table(operator):
    policy = DataRetentionPolicyFactory()
    answer = operator.patch(f"{POLICIES}/{policy.pk}", {"table_name": "audit_logs"}, "json")
    assert answer.status_code == 400


def test_of_a_materialized_view_only_the_schedule_is_changed(operator):
    view = MaterializedView.objects.create(name="mv", query="SELECT 1")
    answer = operator.patch(
        f"{VIEWS}/{view.pk}", {"query": "SELECT 2", "refresh_interval_minutes": 5}, "json"
    )
    assert (answer.json()["query"], answer.json()["refresh_interval_minutes"]) == ("SELECT 1", 5)
    assert operator.post(VIEWS, {"name": "x"}, "json").status_code == 405
    assert operator.delete(f"{VIEWS}/{view.pk}").status_code == 405


# ---------------------------------------------------------------- summaries


PERFORMANCE, USAGE = "/api/v1/summaries/request-performance", "/api/v1/summaries/tenant-usage"


def test_a_tenants_summary_counts_its_own_calls(client, operator):
    mine = client.key.tenant_id
    for status, duration in ((200, 10.0), (200, 20.0), (500, 60.0)):
        RequestLogFactory(tenant_id=mine, status_code=status, duration_ms=duration)
    RequestLogFactory(tenant_id=uuid7(), duration_ms=1000.0)
    RequestLogFactory(tenant_id=mine, request_time=now() - timedelta(hours=3))
    own = client.get(PERFORMANCE, {"hours": 2}).json()
    assert own["total_requests"] == 3
    assert (own["successful_requests"], own["failed_requests"]) == (2, 1)
    assert own["error_rate"] == pytest.approx(1 / 3)
    assert (own["avg_duration_ms"], own["max_duration_ms"]) == (30, 60)
    assert own["p50_duration_ms"] == pytest.approx(20, rel=0.02)
    assert own["requests_per_minute"] == pytest.approx(3 / 120)
    everything = operator.get(PERFORMANCE, {"hours": 2}).json()
    assert everything["total_requests"] == 4
    assert everything.keys() == own.keys()


def test_a_summary_over_nothing_is_zeros_and_nulls(client, operator):
    for caller in (client, operator):
        row = caller.get(PERFORMANCE).json()
        assert (row["total_requests"], row["error_rate"], row["p95_duration_ms"]) == (0, None, None)


def test_usage_is_the_callers_own_or_for_operators_everyones(client, operator):
    mine, other = client.key.tenant, TenantFactory()
    RequestLogFactory(tenant_id=mine.pk, tool_name="echo", response_size_bytes=7)
    MCPServerFactory(tenant=mine)
    [row] = client.get(USAGE).json()["results"]
    expected = {"tenant": mine.slug, "total_requests": 1, "bytes_out": 7, "registered_servers": 1}
    assert expected.items() <= row.items()
    assert client.get(USAGE, {"tenant": other.slug}).json()["results"] == []
    slugs = {row["tenant"] for row in operator.get(USAGE).json()["results"]}
    assert slugs >= {mine.slug, other.slug}
    [one] = operator.get(USAGE, {"tenant": mine.slug}).json()["results"]
    assert one == row


@pytest.mark.parametrize("slug", ["", " ", "\0", "default\0"])
def test_a_tenant_without_a_name_is_not_every_tenant(operator, slug):
    answer = operator.get(USAGE, {"tenant": slug})
    assert (answer.status_code, faults(answer)) == (400, {"tenant"})


@pytest.mark.parametrize("hours", ["0", "-1", "many", "", "1.5", "9" * 30, "٣"])
@pytest.mark.parametrize("path", [PERFORMANCE, USAGE])
def test_hours_are_a_positive_whole_number(client, path, hours):
    answer = client.get(path, {"hours": hours})
    assert (answer.status_code, faults(answer)) == (400, {"hours"})


@pytest.mark.parametrize(
    ("name", "first"),
    [("size", "table_name"), ("indexes", "index_name"), ("performance", "metric")],
)
def test_the_database_tells_about_itself(operator, name, first):
    results = operator.get(f"/api/v1/database/{name}").json()["results"]
    assert results
    assert all(row[first] for row in results)
