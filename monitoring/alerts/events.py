"""The history of alerts: one row a change, written with the jobs that tell of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from django.db import transaction

from monitoring.alerts.channels import channel_key, channel_label, told
from monitoring.alerts.figures import Reading, Row
from monitoring.alerts.metrics import metric_of
from monitoring.alerts.units import written
from monitoring.models import AlertEvent, AlertEventKind, PerformanceAlert, StatementSnapshot
from registry.models import MCPServer
from registry.periodic import task_defer

__all__ = ["AN_OPERATOR", "NOTIFY", "event_record", "server_subject"]

NOTIFY = "alert_notify"  # the task that brings one event to one channel, see alerts.deliver
LONGEST_STATEMENT = 1000
AN_OPERATOR = "an operator"  # what tenants are told instead of a name


@transaction.atomic
def event_record(
    *, alert: PerformanceAlert, kind: AlertEventKind, reading: Reading, at: datetime
) -> AlertEvent:
    """Keep what happened and queue the notifications: both stand with the caller's change.

    A job names event and channel, so that the same one is never queued twice.
    """
    channels = {
        channel_key(channel): channel
        for channel in alert.notification_channels
        if told(channel, kind)
    }
    event = AlertEvent.objects.create(
        alert=alert,
        occurred_at=at,
        kind=kind,
        value=reading.value,
        unit=reading.unit,
        subject=reading.subject,
        message=_message(alert, kind, reading),
        parts=_parts(alert, reading.parts),
        deliveries={key: _waiting(channel) for key, channel in channels.items()},
    )
    for key in channels:
        task_defer(NOTIFY, event_id=str(event.pk), channel=key)
    return event


def server_subject(server: MCPServer) -> str:
    """How the view names a server: tenant/slug, a shared one slug."""
    return f"{server.tenant.slug}/{server.slug}" if server.tenant else server.slug


def _waiting(channel: Any) -> dict[str, Any]:
    return {"channel": channel_label(channel), "attempts": 0, "sent_at": None, "error": ""}


_WORDS = {
    AlertEventKind.TRIGGERED: "fires",
    AlertEventKind.REMINDED: "still fires",
    AlertEventKind.RESOLVED: "is over",
    AlertEventKind.ACKNOWLEDGED: "is acknowledged",
    AlertEventKind.NO_DATA: "cannot be measured",
    AlertEventKind.MEASURED: "is measured again",
}


def _message(alert: PerformanceAlert, kind: AlertEventKind, reading: Reading) -> str:
    unit = metric_of(alert.metric_name).unit
    threshold = written(alert.threshold_value, unit, is_named=True, in_full=True)
    limit = f"the rule is {alert.comparison_operator} {threshold}"
    if reading.value is None or reading.why:
        return f"{alert.name} {_WORDS[kind]}: {reading.why or 'no value was read'}; {limit}."
    value = written(reading.value, reading.unit)
    figure = f"{alert.metric_name} of {reading.subject} is {value}"
    return f"{alert.name} {_WORDS[kind]}: {figure}; {limit}."


def _parts(alert: PerformanceAlert, rows: Sequence[Row]) -> list[dict[str, Any]]:
    texts = _statements(rows) if alert.metric_name == "slow_statement_ms" else {}
    return [
        {"subject": row.subject, "value": row.value}
        | ({"text": texts[row.subject]} if row.subject in texts else {})
        for row in rows
    ]


def _statements(rows: Iterable[Row]) -> dict[str, str]:
    """The normalised texts behind the ids that the view gives as subjects."""
    ids = [int(row.subject) for row in rows if row.subject.lstrip("-").isdigit()]
    found = StatementSnapshot.objects.filter(query_id__in=ids).values_list("query_id", "query")
    return {str(query_id): query[:LONGEST_STATEMENT] for query_id, query in found} if ids else {}
