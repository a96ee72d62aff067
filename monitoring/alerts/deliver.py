"""Bringing one event to one channel: the job behind each notification.

A job that fails is tried again by the queue. What was sent is written down on the event, so that
a job that runs twice sends once. (If a worker dies between the receiver's 2xx and that note, the
receiver gets it a second time, with the same X-Event-ID.)
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import smtplib
from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID

from django.core.mail import EmailMessage
from django.db import connection

from monitoring.alerts.channels import HIDDEN, Channel, channel_key
from monitoring.alerts.events import server_subject
from monitoring.alerts.http import CallFailed, call
from monitoring.alerts.units import written
from monitoring.models import AlertEvent, AlertEventKind, Severity
from registry.db.encryption import DecryptionError
from registry.upstream import current_policy

__all__ = ["DeliveryFailed", "alert_notify", "document_of", "signature"]

logger = logging.getLogger("monitoring.alerts")

_LEVELS = {
    Severity.INFO: logging.INFO,
    Severity.WARNING: logging.WARNING,
    Severity.CRITICAL: logging.ERROR,
}

# Only the attempt that is the first to succeed is written as sent.
_NOTE = """
UPDATE alert_events
SET deliveries = jsonb_set(
    deliveries, ARRAY[%(channel)s::text],
    (deliveries -> %(channel)s::text) || %(noted)s::jsonb || jsonb_build_object(
        'attempts', (deliveries -> %(channel)s::text ->> 'attempts')::integer + 1))
WHERE id = %(event)s AND deliveries -> %(channel)s::text IS NOT NULL
  AND deliveries -> %(channel)s::text ->> 'sent_at' IS NULL
"""


class DeliveryFailed(Exception):
    """The channel did not take the notification; the message says why."""


def alert_notify(*, event_id: UUID, channel: str, at: datetime) -> None:
    """Bring an event to the channel with this key. DeliveryFailed: try again later.

    Nothing happens when it was sent before, or when event or channel were removed meanwhile.
    No transaction is open while the other side is awaited.
    """
    found = AlertEvent.objects.select_related("alert__server__tenant").filter(pk=event_id).first()
    if found is None or found.deliveries.get(channel, {}).get("sent_at"):
        return
    goal = next((c for c in found.alert.notification_channels if channel_key(c) == channel), None)
    if goal is None:
        _note(found, channel, error="The channel was removed before this was sent.")
        return
    try:
        _SENDERS[goal["type"]](found, goal, at)
    except DeliveryFailed as error:
        _note(found, channel, error=str(error))
        raise
    _note(found, channel, sent_at=at)


def document_of(event: AlertEvent) -> dict[str, Any]:
    """What a webhook gets, as plain JSON values."""
    alert = event.alert
    return {
        "id": str(event.pk),
        "event": event.kind,
        "occurred_at": event.occurred_at.isoformat(),
        "message": event.message,
        "value": event.value,
        "unit": event.unit,
        "subject": event.subject,
        "parts": event.parts,
        "alert": {
            "id": str(alert.pk),
            "name": alert.name,
            "description": alert.description,
            "severity": alert.severity,
            "server": server_subject(alert.server) if alert.server else None,
            "metric_name": alert.metric_name,
            "comparison_operator": alert.comparison_operator,
            "threshold_value": alert.threshold_value,
        },
    }


def signature(*, secret: str, timestamp: str, body: bytes) -> str:
    """`X-Signature`: HMAC-SHA256 in hex over the X-Timestamp, a full stop and the body."""
    mac = hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256)
    return f"sha256={mac.hexdigest()}"


def _to_log(event: AlertEvent, _channel: Channel, _at: datetime) -> None:
    severity = Severity(event.alert.severity)
    over = event.kind in (AlertEventKind.RESOLVED, AlertEventKind.MEASURED)
    level = logging.INFO if over else _LEVELS[severity]
    logger.log(level, "[%s] %s", severity, event.message)


def _to_email(event: AlertEvent, channel: Channel, _at: datetime) -> None:
    # A name may hold line breaks, which end a header.
    subject = " ".join(f"[{event.alert.severity}] {event.alert.name}: {event.kind}".split())
    try:
        EmailMessage(subject=subject, body=_letter(event), to=channel["to"]).send()
    except (smtplib.SMTPException, OSError) as error:
        raise DeliveryFailed(
            f"The mail server did not take it ({error}); check EMAIL_URL."
        ) from None


def _letter(event: AlertEvent) -> str:
    lines = [event.message, "", f"At: {event.occurred_at:%Y-%m-%d %H:%M:%S} UTC"]
    if event.alert.description:
        lines.append(event.alert.description)
    lines += [
        f"- {part['subject']}: {written(part['value'], event.unit)} {part.get('text', '')}".rstrip()
        for part in event.parts
    ]
    return "\n".join(lines) + "\n"


def _to_webhook(event: AlertEvent, channel: Channel, at: datetime) -> None:
    body = json.dumps(document_of(event), separators=(",", ":")).encode()
    timestamp = str(int(at.timestamp()))
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "mcp-registry-gateway",
        "X-Event-ID": str(event.pk),
        "X-Timestamp": timestamp,
    }
    if secret := _secret(event, channel):
        headers["X-Signature"] = signature(secret=secret, timestamp=timestamp, body=body)
    try:
        call(channel["url"], body=body, headers=headers, policy=current_policy())
    except CallFailed as error:
        raise DeliveryFailed(f"The webhook failed: {error}.") from None


def _secret(event: AlertEvent, channel: Channel) -> str | None:
    """The secret that signs; DeliveryFailed rather than an unsigned call where one is lost."""
    if channel.get("secret") != HIDDEN:
        return None
    sealed = event.alert.channel_secrets
    try:
        found: dict[str, str] = (sealed.open() if sealed is not None else None) or {}
        return found[channel["url"]]
    except DecryptionError as error:
        raise DeliveryFailed(str(error)) from None
    except KeyError:
        raise DeliveryFailed("The webhook's secret is missing; write it again.") from None


_SENDERS: dict[str, Callable[[AlertEvent, Channel, datetime], None]] = {
    "log": _to_log,
    "email": _to_email,
    "webhook": _to_webhook,
}


def _note(
    event: AlertEvent, channel: str, *, sent_at: datetime | None = None, error: str = ""
) -> None:
    noted = {"sent_at": sent_at and sent_at.isoformat(), "error": error}
    with connection.cursor() as cursor:
        cursor.execute(_NOTE, {"event": event.pk, "channel": channel, "noted": json.dumps(noted)})
