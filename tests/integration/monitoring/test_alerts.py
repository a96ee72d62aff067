"""Alerts over rows: what a pass reads, writes and tells, and what rules may say."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import connection
from django.utils.timezone import now

from gateway.models import CircuitBreaker
from monitoring.alerts import channels
from monitoring.alerts.deliver import alert_notify
from monitoring.alerts.evaluate import alerts_evaluate
from monitoring.alerts.figures import Figures
from monitoring.alerts.rules import Change, Rule
from monitoring.models import (
    AlertEvent,
    AlertEventKind,
    AuditLog,
    PerformanceAlert,
    RequestLog,
    RequestRollupDelta,
    StatementSnapshot,
)
from monitoring.services import alert_acknowledge, alert_create, alert_update
from registry.audit import Actor
from tests.factories import (
    MCPServerFactory,
    PerformanceAlertFactory,
    RequestLogFactory,
    TenantFactory,
    UserFactory,
)

pytestmark = pytest.mark.django_db

ACTOR = Actor(service_name="test")
MINUTE = timedelta(minutes=1)
LOG = [{"type": "log"}]
HOOK = {"type": "webhook", "url": "https://8.8.8.8/alerts", "secret": "secret-4711"}


def breakers(state: str, **server: Any) -> None:
    CircuitBreaker.objects.filter(**server).update(state=state)


def alert(**fields: Any) -> PerformanceAlert:
    made = {"duration_minutes": 0, "notification_channels": LOG, **fields}
    return PerformanceAlertFactory(**made)


def kinds() -> list[str]:
    return list(AlertEvent.objects.order_by("id").values_list("kind", flat=True))


def jobs() -> list[dict[str, str]]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT args FROM procrastinate_jobs WHERE task_name = 'alert_notify' ORDER BY id"
        )
        return [json.loads(row[0]) for row in cursor.fetchall()]


# ---------------------------------------------------------------- passes


def test_an_open_breaker_is_told_once_and_its_end_too():
    server = MCPServerFactory(tenant=TenantFactory(slug="acme"), slug="weather")
    row, at = alert(name="breakers"), now()
    assert alerts_evaluate(at=at) == 1
    assert kinds() == []
    breakers("open")
    for number in range(1, 4):
        alerts_evaluate(at=at + number * MINUTE)
    row.refresh_from_db()
    assert (row.state, row.trigger_count, row.last_value) == ("firing", 1, 1.0)
    assert row.first_triggered == at + MINUTE
    assert row.last_triggered == at + 3 * MINUTE
    breakers("closed")
    for number in range(4, 8):
        alerts_evaluate(at=at + number * MINUTE)
    row.refresh_from_db()
    assert (row.state, row.last_value) == ("ok", 0.0)
    assert kinds() == ["triggered", "resolved"]
    told = AlertEvent.objects.get(kind="triggered")
    assert (told.value, told.subject, told.unit) == (1.0, "all", "breakers")
    assert told.parts == [{"subject": f"acme/{server.slug}", "value": 1.0}]
    assert "breakers fires: open_breakers of all is 1 breaker; the rule is > 0." in told.message


def test_what_changed_is_queued_once_for_each_channel_that_wants_to_hear():
    MCPServerFactory()
    breakers("open")
    only_the_end = {"type": "email", "to": ["ops@example.org"], "events": ["resolved"]}
    alert(notification_channels=[*LOG, {"type": "email", "to": ["a@example.org"]}, only_the_end])
    alerts_evaluate(at=now())
    alerts_evaluate(at=now())
    event = AlertEvent.objects.get()
    assert sorted(job["channel"] for job in jobs()) == sorted(event.deliveries)
    assert {job["event_id"] for job in jobs()} == {str(event.pk)}
    assert {row["channel"] for row in event.deliveries.values()} == {"log", "email a@example.org"}


def test_a_quiet_pass_takes_four_statements_whatever_the_number_of_rules(
    django_assert_num_queries,
):
    for _ in range(20):
        alert(server=MCPServerFactory())
    alerts_evaluate(at=now())
    with django_assert_num_queries(4):
        alerts_evaluate(at=now() + MINUTE)


def test_a_pass_without_rules_reads_no_figures(django_assert_num_queries):
    alert(is_active=False)
    with django_assert_num_queries(1):
        assert alerts_evaluate(at=now()) == 0


def test_an_alert_on_one_server_looks_at_that_server_alone():
    mine = MCPServerFactory(tenant=TenantFactory(slug="acme"), slug="same")
    shared = MCPServerFactory(tenant=None, slug="same")
    of_mine, of_shared = alert(server=mine), alert(server=shared)
    breakers("open", server=shared)
    alerts_evaluate(at=now())
    of_mine.refresh_from_db()
    of_shared.refresh_from_db()
    assert (of_mine.state, of_mine.last_value) == ("ok", 0.0)
    assert (of_shared.state, of_shared.last_value) == ("firing", 1.0)
    assert AlertEvent.objects.get().subject == "same"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"metric_name": "no_such_metric"}, "has no metric 'no_such_metric'"),
        ({"metric_name": "table_growth_percent"}, "nothing to measure"),
        ({"metric_name": "cache_hit_ratio", "on_server": True}, "not measured for this server"),
    ],
)
def test_what_cannot_be_measured_says_so_and_is_not_green(fields, words):
    if fields.pop("on_server", False):
        fields["server"] = MCPServerFactory()
    row, at = alert(**fields), now()
    alerts_evaluate(at=at)
    alerts_evaluate(at=at + 14 * MINUTE)
    row.refresh_from_db()
    assert (row.state, kinds()) == ("not evaluated", []), "a new database measures one by one"
    alerts_evaluate(at=at + 15 * MINUTE)
    alerts_evaluate(at=at + 16 * MINUTE)
    row.refresh_from_db()
    assert (row.state, row.is_triggered) == ("no data", False)
    event = AlertEvent.objects.get()
    assert (event.kind, event.value) == ("no_data", None)
    assert words in event.message
    assert jobs() == []  # a figure that is missing wakes nobody up unless a channel asks for it


def test_a_failed_call_among_few_is_no_error_rate():
    row, at = alert(metric_name="error_rate", threshold_value=0.05), now()
    alerts_evaluate(at=at)
    row.refresh_from_db()
    assert (row.state, row.last_measured) == ("too few calls", at), "without a call, too"
    RequestLogFactory.create_batch(18)
    RequestLogFactory(status_code=502)
    RequestLogFactory.create_batch(9, status_code=401)  # strangers
    alerts_evaluate(at=at + MINUTE)
    row.refresh_from_db()
    assert (row.state, row.last_value, kinds()) == ("too few calls", None, [])
    RequestLogFactory(status_code=502)
    alerts_evaluate(at=at + 2 * MINUTE)
    row.refresh_from_db()
    assert (row.state, row.last_value) == ("firing", pytest.approx(0.1))
    RequestLog.objects.all().delete()
    RequestRollupDelta.objects.all().delete()
    for minutes in (3, 5):
        alerts_evaluate(at=at + minutes * MINUTE)
    assert kinds() == ["triggered", "resolved"]
    told = AlertEvent.objects.get(kind="resolved").message
    assert "is over: only 0 calls came in lately, and less than 20 say nothing" in told


def test_a_firing_is_in_the_log_once(caplog):
    MCPServerFactory()
    breakers("open")
    alert(name="breakers")
    with caplog.at_level("INFO", logger="monitoring.alerts"):
        alerts_evaluate(at=now())
        for job in jobs():
            alert_notify(event_id=job["event_id"], channel=job["channel"], at=now())
    assert [record.getMessage().count("breakers fires") for record in caplog.records] == [1]


def test_a_slow_statement_is_told_with_its_text():
    at = now()
    StatementSnapshot.objects.create(
        query_id=-42, query="SELECT pg_sleep($1)", calls=2, total_ms=5000,
        window_calls=2, window_mean_ms=2500, taken_at=at,
    )  # fmt: skip
    alert(metric_name="slow_statement_ms", threshold_value=1000)
    alerts_evaluate(at=at)
    event = AlertEvent.objects.get()
    assert event.value == 2500
    assert event.parts == [{"subject": "-42", "value": 2500.0, "text": "SELECT pg_sleep($1)"}]


def test_an_acknowledged_alert_reminds_nobody_until_it_fires_again():
    MCPServerFactory()
    breakers("open")
    row, at = alert(cooldown_minutes=10), now()
    alerts_evaluate(at=at)
    alerts_evaluate(at=at + 10 * MINUTE)
    person = UserFactory()
    assert alert_acknowledge(actor=ACTOR, alert=row, user_id=person.pk, at=at + 11 * MINUTE)
    alerts_evaluate(at=at + 60 * MINUTE)
    assert kinds() == ["triggered", "reminded", "acknowledged"]
    breakers("closed")
    alerts_evaluate(at=at + 61 * MINUTE)
    alerts_evaluate(at=at + 63 * MINUTE)
    breakers("open")
    alerts_evaluate(at=at + 64 * MINUTE)
    alerts_evaluate(at=at + 74 * MINUTE)
    assert kinds()[3:] == ["resolved", "triggered", "reminded"]


def test_simulated_weeks_leave_one_event_a_change():
    MCPServerFactory()
    alert(duration_minutes=30, cooldown_minutes=24 * 60)
    at = datetime(2026, 3, 1, tzinfo=UTC)
    for day in range(14):
        breakers("open" if day % 7 < 3 else "closed")  # three days broken, four well
        for hour in range(24):
            alerts_evaluate(at=at + timedelta(days=day, hours=hour))
    assert kinds() == ["triggered", "reminded", "reminded", "resolved"] * 2


# ---------------------------------------------------------------- the figure that a rule means


def reading(rows, *, operator=">", threshold=10.0, server=None):
    rule = Rule(operator, threshold, MINUTE, MINUTE)
    return Figures(rows).reading(metric="m", server=server, rule=rule)


def test_the_row_furthest_along_the_operator_decides():
    rows = [("m", "all", 50, "percent"), ("m", "a", 70, "percent"), ("m", "b", 20, "percent")]
    assert reading(rows).subject == "a"
    low = reading(rows, operator="<", threshold=60)
    assert (low.value, low.subject) == (20, "b")
    assert [part.subject for part in low.parts] == ["b"]
    assert reading(rows, operator="==", threshold=20).subject == "b"
    assert reading(rows, operator="==", threshold=1).subject == "all"


def test_rows_without_a_value_or_with_one_that_is_no_number_do_not_count():
    rows = [("m", "all", None, "ms"), ("m", "a", float("nan"), "ms"), ("m", "b", 3.0, "ms")]
    assert reading(rows).value == 3.0
    assert reading(rows[:2]).value is None
    assert reading(rows, server="a").value is None


# ---------------------------------------------------------------- rules


def test_channels_know_every_kind_of_event_and_so_does_the_evaluator():
    assert set(channels.EVENTS) == set(AlertEventKind.values)
    assert {*Change, "acknowledged"} == set(AlertEventKind.values)


def made(**fields: Any) -> PerformanceAlert:
    wanted = {"name": "n", "metric_name": "open_breakers", "threshold_value": 0.0}
    return alert_create(actor=ACTOR, **{**wanted, **fields})


@pytest.mark.parametrize(
    ("channels", "words"),
    [
        ({"type": "log"}, "list of channels"),
        (["log"], 'Channel 1: write an object whose "type"'),
        ([{"type": "pager"}], "log, email, webhook"),
        ([{"type": "log", "level": 1}], "log has no level"),
        ([{"type": "log"}, {"type": "log"}], "Channel 2: there is the same one"),
        ([{"type": "log", "events": ["fired"]}], '"events" is a list of some of: triggered'),
        ([{"type": "email", "to": []}], '"to" is a list of 1 to 20'),
        ([{"type": "email", "to": ["ops"]}], "'ops' is no e-mail address"),
        ([{"type": "email", "to": [7]}], "'7' is no e-mail address"),
        ([{"type": "webhook"}], '"url" is missing'),
        ([{"type": "webhook", "url": "ftp://a.example/"}], "whole http or https URL"),
        ([{"type": "webhook", "url": "https://u:p@a.example/"}], "without user, password"),
        ([{**HOOK, "secret": "short"}], '"secret" is a text of 8 to 512'),
        ([{**HOOK, "secret": None}], '"secret" is a text'),
        ([{**HOOK, "url": "http://127.0.0.1/"}], "Channel 1: 127.0.0.1 is not a public address"),
        ([{**HOOK, "url": "http://169.254.169.254/"}], "169.254.169.254"),
    ],
)
def test_channels_that_do_not_fit_are_refused_in_words(channels, words):
    with pytest.raises(ValidationError) as refusal:
        made(notification_channels=channels)
    assert words in " ".join(refusal.value.message_dict["notification_channels"])
    assert not PerformanceAlert.objects.exists()


def test_a_secret_is_kept_apart_encrypted_and_only_for_its_address():
    row = made(notification_channels=[HOOK])
    hidden = {**HOOK, "secret": "not shown"}
    assert row.notification_channels == [hidden]
    with connection.cursor() as cursor:
        cursor.execute("SELECT row_to_json(a)::text FROM performance_alerts a")
        assert HOOK["secret"] not in cursor.fetchone()[0]
    kept = alert_update(actor=ACTOR, alert=row, notification_channels=[hidden, *LOG])
    kept.refresh_from_db()
    assert kept.channel_secrets.open() == {HOOK["url"]: HOOK["secret"]}
    moved = {**hidden, "url": "https://8.8.4.4/alerts"}
    with pytest.raises(ValidationError, match="no secret is stored for this URL"):
        alert_update(actor=ACTOR, alert=row, notification_channels=[moved])
    gone = alert_update(actor=ACTOR, alert=row, notification_channels=LOG)
    gone.refresh_from_db()
    assert gone.channel_secrets is None
    assert HOOK["secret"] not in str(list(AuditLog.objects.values_list("details", flat=True)))


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"metric_name": "eror_rate"}, "metric_name", "'eror_rate'. Did you mean error_rate"),
        ({"metric_name": "Slow statement ms"}, "metric_name", "Did you mean slow_statement_ms"),
        ({"metric_name": "zz"}, "metric_name", "'zz'. docs/alerts.md and the API's schema list"),
        ({"metric_name": "error_rate", "threshold_value": 5}, "threshold_value",
         "error_rate lies between 0 and 1, so > 5 never holds."),
        ({"threshold_value": 0, "comparison_operator": "<"}, "threshold_value",
         "open_breakers is never below 0, so < 0 never holds."),
        ({"metric_name": "error_rate", "threshold_value": 0.5, "on_server": True}, "server",
         "error_rate is measured of the whole gateway only"),
    ],
)  # fmt: skip
def test_a_rule_that_could_never_fire_is_refused_in_words(fields, field, words):
    if fields.pop("on_server", False):
        fields["server"] = MCPServerFactory()
    with pytest.raises(ValidationError) as refusal:
        made(**fields)
    assert words in " ".join(refusal.value.message_dict[field])
    row = made()
    with pytest.raises(ValidationError):
        alert_update(actor=ACTOR, alert=row, **fields)
    assert list(PerformanceAlert.objects.values_list("metric_name", "threshold_value")) == [
        ("open_breakers", 0.0)
    ]


def test_a_stored_rule_of_no_metric_can_be_edited_but_not_into_another():
    row = alert(metric_name="of_nobody", server=MCPServerFactory())
    alert_update(actor=ACTOR, alert=row, severity="info", metric_name="of_nobody")
    alert_update(actor=ACTOR, alert=row, threshold_value=7.0)
    with pytest.raises(ValidationError, match="no metric"):
        alert_update(actor=ACTOR, alert=row, metric_name="of_nobody_else")
    row.refresh_from_db()
    assert (row.severity, row.threshold_value, row.metric_name) == ("info", 7.0, "of_nobody")


def test_an_alert_that_is_switched_off_no_longer_seems_to_fire():
    MCPServerFactory()
    breakers("open")
    row = alert()
    alerts_evaluate(at=now())
    off = alert_update(actor=ACTOR, alert=row, is_active=False)
    assert (off.state, off.is_triggered) == ("off", False)
    assert kinds() == ["triggered", "resolved"]
    assert "switched off" in AlertEvent.objects.get(kind="resolved").message


def test_another_condition_is_counted_from_anew():
    MCPServerFactory()
    breakers("open")
    row, at = alert(duration_minutes=5), now()
    alerts_evaluate(at=at)
    row.refresh_from_db()
    assert (row.state, row.pending_since) == ("pending", at)
    alert_update(actor=ACTOR, alert=row, threshold_value=0.5)
    alerts_evaluate(at=at + 5 * MINUTE)
    assert kinds() == []
    alerts_evaluate(at=at + 10 * MINUTE)
    assert kinds() == ["triggered"]


def test_a_rule_that_was_edited_during_a_pass_is_looked_at_in_the_next_one(monkeypatch):
    MCPServerFactory()
    breakers("open")
    row = alert()
    read = Figures.read

    def read_slowly():
        alert_update(actor=ACTOR, alert=row, threshold_value=5.0)
        return read()

    monkeypatch.setattr(Figures, "read", read_slowly)
    alerts_evaluate(at=now())
    assert kinds() == []
