"""Notifications on their way: the program's log, e-mail, a webhook on a real HTTP server."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core import mail
from django.db import connection, transaction
from django.utils.timezone import now
from procrastinate.contrib.django import app
from procrastinate.jobs import Job

from gateway.jobs import NOTIFY_AGAIN_AFTER, task_defer
from monitoring.alerts import http
from monitoring.alerts.deliver import DeliveryFailed, alert_notify
from monitoring.alerts.events import NOTIFY, event_record
from monitoring.alerts.figures import Reading, Row
from monitoring.models import AlertEvent, AlertEventKind, PerformanceAlert
from monitoring.services import alert_create, alert_update
from monitoring.tasks import alerts_watch
from registry.audit import Actor
from tests.factories import MCPServerFactory, PerformanceAlertFactory, TenantFactory
from tests.receiver import receiving

pytestmark = pytest.mark.django_db

ACTOR = Actor(service_name="test")
AT = datetime(2026, 5, 1, 12, tzinfo=UTC)
SECRET = "secret-4711"
READING = Reading(2.0, "breakers", "all", parts=(Row("acme/weather", 1.0, "breakers"),))


@pytest.fixture(autouse=True)
def private_addresses(settings):
    settings.GATEWAY_ALLOW_PRIVATE_UPSTREAMS = True


def happened(channel: dict[str, Any], **fields: Any) -> AlertEvent:
    """An event of a new alert with this one channel."""
    made = {"name": "breakers", "metric_name": "open_breakers", "threshold_value": 0.0, **fields}
    alert = alert_create(actor=ACTOR, notification_channels=[channel], **made)
    return event_record(alert=alert, kind=AlertEventKind.TRIGGERED, reading=READING, at=AT)


def notify(event: AlertEvent, at: datetime = AT) -> dict[str, Any]:
    """Run the job of the event's only channel; what is known of the delivery afterwards."""
    [key] = event.deliveries
    try:
        alert_notify(event_id=event.pk, channel=key, at=at)
    finally:
        event.refresh_from_db()
    return event.deliveries[key]


def refused(event: AlertEvent) -> str:
    with pytest.raises(DeliveryFailed) as failure:
        notify(event)
    [delivery] = event.deliveries.values()
    assert delivery["sent_at"] is None
    assert delivery["error"] == str(failure.value)
    return delivery["error"]


# ---------------------------------------------------------------- webhooks


def test_a_webhook_gets_a_signed_document():
    server = MCPServerFactory(tenant=TenantFactory(slug="acme"), slug="weather")
    with receiving() as receiver:
        channel = {"type": "webhook", "url": receiver.url, "secret": SECRET}
        event = happened(channel, server=server, severity="critical")
        assert notify(event) == {
            "channel": "webhook 127.0.0.1", "attempts": 1, "sent_at": AT.isoformat(), "error": "",
        }  # fmt: skip
        [call] = receiver.calls
    assert (call.method, call.path) == ("POST", "/hook?token=4712")
    stamp = call.headers["x-timestamp"]
    assert stamp == str(int(AT.timestamp()))
    expected = hmac.new(SECRET.encode(), f"{stamp}.".encode() + call.body, hashlib.sha256)
    assert call.headers["x-signature"] == f"sha256={expected.hexdigest()}"
    assert call.headers["content-type"] == "application/json"
    assert call.headers["x-event-id"] == str(event.pk)
    document = json.loads(call.body)
    assert {
        "id": str(event.pk), "event": "triggered", "occurred_at": AT.isoformat(), "value": 2.0,
        "unit": "breakers", "subject": "all", "parts": [{"subject": "acme/weather", "value": 1.0}],
    }.items() <= document.items()  # fmt: skip
    assert {
        "name": "breakers", "severity": "critical", "server": "acme/weather",
        "metric_name": "open_breakers", "comparison_operator": ">", "threshold_value": 0.0,
    }.items() <= document["alert"].items()  # fmt: skip


def test_without_a_secret_nothing_is_signed():
    with receiving() as receiver:
        notify(happened({"type": "webhook", "url": receiver.url}))
        assert "x-signature" not in receiver.calls[0].headers


def test_a_webhook_that_fails_is_tried_again_and_told_once():
    with receiving(500, 302, 200) as receiver:
        event = happened({"type": "webhook", "url": receiver.url})
        assert "it answered 500" in refused(event)
        assert "it answered 302" in refused(event)  # and the redirect is not followed
        assert notify(event)["attempts"] == 3
        assert notify(event)["attempts"] == 3  # a job that runs twice sends once
        assert [call.path for call in receiver.calls] == ["/hook?token=4712"] * 3


def test_a_webhook_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(http, "CALL_SECONDS", 0.2)
    with receiving(hangs=True) as receiver:
        event = happened({"type": "webhook", "url": receiver.url})
        assert refused(event) == "The webhook failed: no answer within 0.2 s."
        assert len(receiver.calls) == 1


def test_a_webhook_goes_to_allowed_addresses_only(settings):
    with receiving() as receiver:
        event = happened({"type": "webhook", "url": receiver.url})
        settings.GATEWAY_ALLOW_PRIVATE_UPSTREAMS = False
        assert "127.0.0.1 is not a public address" in refused(event)
        assert receiver.calls == []


def test_a_webhook_nobody_listens_to_is_told_without_its_token(free_port):
    url = f"http://127.0.0.1:{free_port}/?token=4712"
    error = refused(happened({"type": "webhook", "url": url}))
    assert "no connection could be made" in error
    assert "4712" not in error


def test_a_lost_key_sends_nothing_unsigned(settings):
    from cryptography.fernet import Fernet

    with receiving() as receiver:
        event = happened({"type": "webhook", "url": receiver.url, "secret": SECRET})
        settings.ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
        assert "ENCRYPTION_KEYS" in refused(event)
        assert receiver.calls == []


def test_a_channel_or_event_that_is_gone_is_not_tried_again():
    with receiving() as receiver:
        event = happened({"type": "webhook", "url": receiver.url})
        alert_update(actor=ACTOR, alert=event.alert, notification_channels=[])
        assert "was removed" in notify(event)["error"]
        [key] = event.deliveries
        PerformanceAlert.objects.all().delete()
        alert_notify(event_id=event.pk, channel=key, at=AT)
        assert receiver.calls == []


# ---------------------------------------------------------------- the other channels


def test_an_email_says_what_happened_even_of_a_rule_with_a_broken_name():
    channel = {"type": "email", "to": ["a@example.org", "b@example.org"]}
    event = happened(channel, name="two\nlines", description="Look at the breakers.")
    assert notify(event)["sent_at"] == AT.isoformat()
    [letter] = mail.outbox
    assert letter.to == ["a@example.org", "b@example.org"]
    assert letter.subject == "[warning] two lines: triggered"
    assert "open_breakers of all is 2 breakers; the rule is > 0." in letter.body
    assert "- acme/weather: 1 breaker\n" in letter.body
    assert "Look at the breakers." in letter.body


def test_a_mail_server_that_is_away_is_tried_again(settings, free_port):
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", free_port
    error = refused(happened({"type": "email", "to": ["a@example.org"]}))
    assert "check EMAIL_URL" in error


@pytest.mark.parametrize(
    ("severity", "level"),
    [("info", logging.INFO), ("warning", logging.WARNING), ("critical", logging.ERROR)],
)
def test_the_log_hears_it_as_loudly_as_it_is_severe(caplog, severity, level):
    event = happened({"type": "log"}, severity=severity)
    caplog.clear()
    notify(event)
    [record] = [record for record in caplog.records if record.name == "monitoring.alerts"]
    assert (record.levelno, record.getMessage()) == (level, f"[{severity}] {event.message}")


# ---------------------------------------------------------------- the queue


def queued() -> list[dict[str, Any]]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT lock, queueing_lock, priority FROM procrastinate_jobs WHERE task_name = %s",
            [NOTIFY],
        )
        return [
            dict(zip(("lock", "queueing_lock", "priority"), row, strict=True))
            for row in cursor.fetchall()
        ]


def test_a_notification_is_queued_once_behind_everything_else_one_a_channel():
    event = happened({"type": "log"})
    [key] = event.deliveries
    task_defer(NOTIFY, event_id=str(event.pk), channel=key)
    assert queued() == [
        {
            "lock": f"{NOTIFY}:{key}",
            "queueing_lock": f"{NOTIFY}:{event.pk}:{key}",
            "priority": -10,
        }
    ]


def test_a_change_that_is_undone_tells_nobody():
    with transaction.atomic():
        happened({"type": "log"})
        assert len(queued()) == 1
        transaction.set_rollback(True)
    assert (AlertEvent.objects.count(), queued()) == (0, [])


def test_attempts_are_further_and_further_apart_and_end():
    strategy = app.tasks[NOTIFY].retry_strategy
    waits = []
    for attempts in range(len(NOTIFY_AGAIN_AFTER) + 1):
        job = Job(
            id=1, queue="default", lock="l", queueing_lock="own", task_name=NOTIFY,
            attempts=attempts,
        )  # fmt: skip
        decision = strategy.get_retry_decision(exception=DeliveryFailed(), job=job)
        if decision is not None:
            assert (decision.lock, decision.priority) == ("own", -20)
            waits.append((decision.retry_at - now()).total_seconds())
    assert waits == pytest.approx(NOTIFY_AGAIN_AFTER, abs=2)


# ---------------------------------------------------------------- the heartbeat


def test_a_good_pass_calls_the_heartbeat_and_a_bad_one_does_not(settings, monkeypatch):
    with receiving() as receiver:
        settings.GATEWAY_HEARTBEAT_URL = receiver.url
        PerformanceAlertFactory()
        assert alerts_watch(at=now()) == 1
        assert [(call.method, call.path) for call in receiver.calls] == [
            ("GET", "/hook?token=4712")
        ]

        def fails(*, at: datetime) -> int:
            raise OSError("the pass failed")

        monkeypatch.setattr("monitoring.tasks.alerts_evaluate", fails)
        with pytest.raises(OSError, match="the pass failed"):
            alerts_watch(at=now() + timedelta(seconds=30))
        assert len(receiver.calls) == 1


def test_a_heartbeat_nobody_takes_is_a_warning_and_no_more(settings, free_port, caplog):
    settings.GATEWAY_HEARTBEAT_URL = f"http://127.0.0.1:{free_port}/token-4712"
    assert alerts_watch(at=now()) == 0
    assert "GATEWAY_HEARTBEAT_URL was not reached: no connection could be made" in caplog.text
    assert "4712" not in caplog.text
