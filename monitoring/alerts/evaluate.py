"""One pass over all active alerts: two reads, two writes of what was measured, and what changed.

Any number of workers may run a pass at the same time. Each change is one UPDATE that names the
standing it was decided on; whoever finds that standing unchanged has won and writes the event.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, fields, replace
from datetime import datetime
from typing import Any

from django.db import connection, transaction
from django.db.models import F

from monitoring.alerts.events import event_record, server_subject
from monitoring.alerts.figures import Extremes, Figures, Reading
from monitoring.alerts.history import history_keep
from monitoring.alerts.rules import Change, Standing, step
from monitoring.models import AlertEventKind, PerformanceAlert

__all__ = ["alerts_evaluate"]

logger = logging.getLogger("monitoring.alerts")

_READ_OF_SERVER = ("server__slug", "server__tenant__slug")
_READ = (
    "name", "description", "metric_name", "threshold_value", "comparison_operator",
    "duration_minutes", "cooldown_minutes", "severity", "notification_channels", "updated_at",
    *(field.name for field in fields(Standing)),
)  # fmt: skip

# Rows that an editor or another pass holds are left for the next pass. `updated_at` stays: it
# tells when somebody or something changed the alert, not when it was looked at.
_REMEMBER = """
WITH measured AS (
    SELECT * FROM unnest(%(ids)s::uuid[], %(values)s::float8[], %(holds)s::boolean[])
        AS measured(id, value, holds)
), held AS (
    SELECT id FROM performance_alerts
    WHERE id = ANY(%(ids)s::uuid[]) AND (last_measured IS NULL OR last_measured < %(at)s)
    ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE performance_alerts AS alert SET
    last_value = measured.value,
    last_measured = %(at)s,
    last_triggered = CASE WHEN alert.is_triggered AND measured.holds
                          THEN %(at)s ELSE alert.last_triggered END
FROM measured JOIN held USING (id)
WHERE alert.id = measured.id
"""


def alerts_evaluate(*, at: datetime) -> int:
    """Hold every active alert against the figures of now; returns how many.

    An alert that cannot be written, such as one that an editor holds, does not keep the others
    from being looked at: its error is raised at the end.
    """
    alerts = _active()
    if not alerts:
        return 0
    figures = Figures.read()
    failed: Exception | None = None
    readings = {alert.pk: _reading(figures, alert) for alert in alerts}
    for alert in alerts:
        reading = readings[alert.pk]
        try:
            _look(alert, reading, at)
        except Exception as error:  # noqa: BLE001  (whatever is the matter with this one)
            logger.warning("alert %s could not be written: %s", alert.name, error)
            failed = error
    _remember(alerts, readings, at)
    history_keep([*figures.extremes(), *_of_servers(alerts, readings)], at=at)
    if failed is not None:
        raise failed
    return len(alerts)


def _active() -> list[PerformanceAlert]:
    active = PerformanceAlert.objects.filter(is_active=True).select_related("server__tenant")
    return list(active.only(*_READ, *_READ_OF_SERVER).order_by("pk"))


def _reading(figures: Figures, alert: PerformanceAlert) -> Reading:
    server = server_subject(alert.server) if alert.server else None
    return figures.reading(metric=alert.metric_name, server=server, rule=alert.rule())


def _look(alert: PerformanceAlert, reading: Reading, at: datetime) -> None:
    before = Standing(**{field.name: getattr(alert, field.name) for field in fields(Standing)})
    rule = replace(alert.rule(), counts=reading.counts)
    value = reading.value if reading.counts else 0.0  # there is one, whatever it is
    after, changes = step(rule, before, value=value, at=at)
    if after != before:
        _change(alert, before, after, changes, reading, at)


@transaction.atomic
def _change(
    alert: PerformanceAlert,
    before: Standing,
    after: Standing,
    changes: tuple[Change, ...],
    reading: Reading,
    at: datetime,
) -> None:
    """Write the new standing unless somebody was faster, with its events.

    `updated_at` is in the condition because a rule that was edited meanwhile is another rule.
    """
    unchanged = PerformanceAlert.objects.filter(
        pk=alert.pk, is_active=True, updated_at=alert.updated_at, **asdict(before)
    )
    new: dict[str, Any] = asdict(after)
    if Change.TRIGGERED in changes:
        new |= {"trigger_count": F("trigger_count") + 1, "last_triggered": at}
    # A step that nobody is told of must not look like an edit to another pass, nor to people.
    if changes:
        new["updated_at"] = at
    if unchanged.update(**new) != 1:
        return
    for change in changes:
        event_record(alert=alert, kind=AlertEventKind(change), reading=reading, at=at)


def _of_servers(alerts: list[PerformanceAlert], readings: dict[Any, Reading]) -> set[Extremes]:
    """The figures of servers that rules name; several rules may look at the same one."""
    return {
        Extremes(alert.metric_name, server_subject(alert.server), value, value)
        for alert in alerts
        if alert.server and (value := readings[alert.pk].value) is not None
    }


def _remember(alerts: list[PerformanceAlert], readings: dict[Any, Reading], at: datetime) -> None:
    """Without a value where it was measured and says nothing."""
    measured = [
        (alert.pk, reading.value, reading.value is not None and alert.rule().holds(reading.value))
        for alert in alerts
        if (reading := readings[alert.pk]).value is not None or not reading.counts
    ]
    if not measured:
        return
    ids, values, holds = zip(*measured, strict=True)
    with connection.cursor() as cursor:
        cursor.execute(
            _REMEMBER, {"ids": list(ids), "values": list(values), "holds": list(holds), "at": at}
        )
