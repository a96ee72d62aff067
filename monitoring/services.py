"""The only writers of alerts, retention policies and refresh schedules.

Each change leaves an audit entry. The logs have writers of their own: `monitoring.audit` and
`monitoring.logwriter`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db import models, transaction
from django.db.models import F, Q

from monitoring.alerts.channels import (
    Channel,
    addresses_check,
    channel_public,
    channels_whole,
    check_channels,
    secrets_split,
)
from monitoring.alerts.events import AN_OPERATOR, event_record
from monitoring.alerts.figures import Reading
from monitoring.alerts.metrics import unknown
from monitoring.audit import Actor, audit_write
from monitoring.models import (
    AlertEventKind,
    DataRetentionPolicy,
    MaterializedView,
    PerformanceAlert,
)
from registry.changes import row_change
from registry.db.encryption import Sealed
from registry.periodic import task_defer

__all__ = [
    "VIEW_REFRESH",
    "alert_acknowledge",
    "alert_create",
    "alert_delete",
    "alert_update",
    "materialized_view_refresh",
    "materialized_view_update",
    "retention_policy_create",
    "retention_policy_delete",
    "retention_policy_update",
]

VIEW_REFRESH = "view_refresh"  # the queue's name for refreshing one view

# What makes another rule of a rule, and what an evaluation remembers of the one before.
_CONDITION = ("server_id", "metric_name", "threshold_value", "comparison_operator")
_MEMORY = (
    "pending_since", "clear_since", "unmeasured_since", "no_data_since", "last_measured",
    "last_value",
)  # fmt: skip

Row = TypeVar("Row", bound=models.Model)


def alert_create(*, actor: Actor, **fields: Any) -> PerformanceAlert:
    """Watch a metric of `performance_monitoring`. ValidationError names what does not fit."""
    fields = _channels_whole(fields, of=None)
    _check_channels(fields)
    alert = PerformanceAlert(**_secrets_apart(fields, stored=None))
    alert.clean_fields()
    _check_metric(alert)
    _check_condition(alert)
    return _insert(alert, actor=actor, action="alert.create")


def alert_update(*, actor: Actor, alert: PerformanceAlert, **changes: Any) -> PerformanceAlert:
    """Change a rule. One that fires goes on firing until the changed rule resolves it.

    A changed condition is counted from anew; switched off, it is over.
    """
    changes = _channels_whole(changes, of=alert)
    _check_channels(changes)  # looks up names: before any row is locked
    with transaction.atomic():
        held = PerformanceAlert.objects.select_for_update(of=("self",)).get(pk=alert.pk)
        changes = _secrets_apart(changes, stored=held.channel_secrets)
        current = _change(alert, changes, actor=actor, action="alert.update")
        if condition := _changed_condition(held, current):
            if "metric_name" in condition:
                _check_metric(current)
            _check_condition(current)
            _look_anew(current)
        if held.is_active and not current.is_active:
            _switch_off(current, at=current.updated_at)
    return current


def alert_delete(*, actor: Actor, alert: PerformanceAlert) -> bool:
    """Stop watching; False when somebody else already did."""
    return _delete(alert, actor=actor, action="alert.delete")


@transaction.atomic
def alert_acknowledge(
    *, actor: Actor, alert: PerformanceAlert, user_id: UUID | None, at: datetime, key: str = ""
) -> bool:
    """Say that somebody looks after an alert that fires; False when there is nothing to say.

    `user_id` is None for a key that belongs to nobody, `key` names the key in words. An
    acknowledgement holds for one firing: one that is older than the firing counts as none. The
    event of a tenant's alert does not name an operator; the alert and the audit log do.
    """
    unanswered = Q(acknowledged_at=None) | Q(acknowledged_at__lt=F("first_triggered"))
    firing = PerformanceAlert.objects.filter(unanswered, pk=alert.pk, is_triggered=True)
    told = {"acknowledged_by": user_id, "acknowledged_with": key, "acknowledged_at": at}
    if firing.update(**told, updated_at=at) != 1:
        return False
    audit_write(
        actor=actor, action="alert.acknowledge", resource=alert, details={"name": alert.name}
    )
    alert.refresh_from_db()
    who = AN_OPERATOR if _is_of_others(alert, actor) else alert.acknowledger
    reading = Reading(alert.last_value, why=f"{who} looks after it")
    event_record(alert=alert, kind=AlertEventKind.ACKNOWLEDGED, reading=reading, at=at)
    return True


def retention_policy_create(*, actor: Actor, **fields: Any) -> DataRetentionPolicy:
    """Have old rows of a log deleted. ValidationError names what does not fit."""
    policy = DataRetentionPolicy(**fields)
    return _insert(policy, actor=actor, action="retention_policy.create")


@transaction.atomic
def retention_policy_update(
    *, actor: Actor, policy: DataRetentionPolicy, **changes: Any
) -> DataRetentionPolicy:
    """Change a policy; a run that goes on meanwhile ends before its next batch."""
    return _change(policy, changes, actor=actor, action="retention_policy.update")


def retention_policy_delete(*, actor: Actor, policy: DataRetentionPolicy) -> bool:
    """Keep the rows for good again; False when the policy was gone."""
    return _delete(policy, actor=actor, action="retention_policy.delete")


@transaction.atomic
def materialized_view_update(
    *, actor: Actor, view: MaterializedView, **changes: Any
) -> MaterializedView:
    """Change when a view is refreshed; what it shows is code and changes with a release."""
    current = _change(view, changes, actor=actor, action="materialized_view.update")
    if not {"refresh_strategy", "refresh_interval_minutes", "is_active"}.isdisjoint(changes):
        # The next pass reckons anew: a shorter interval must not wait for the longer one's end.
        MaterializedView.objects.filter(pk=current.pk).update(next_refresh=None)
        current.next_refresh = None
    return current


@transaction.atomic
def materialized_view_refresh(*, actor: Actor, view: MaterializedView) -> None:
    """Have a view refreshed soon, whatever its schedule; once, however often it is asked for."""
    task_defer(VIEW_REFRESH, view_id=str(view.pk))
    details = {"name": view.name}
    audit_write(actor=actor, action="materialized_view.refresh", resource=view, details=details)


@transaction.atomic
def _insert(row: Row, *, actor: Actor, action: str) -> Row:
    row.full_clean()
    row.save(force_insert=True)
    audit_write(actor=actor, action=action, resource=row, details={"name": str(row)})
    return row


def _change(row: Row, changes: Mapping[str, Any], *, actor: Actor, action: str) -> Row:
    current, changed = row_change(row=row, changes=changes)
    if changed:
        audit_write(actor=actor, action=action, resource=current, details=_public(changed))
    return current


def _public(changed: dict[str, Any]) -> dict[str, Any]:
    """What changed, as everybody may see it who reads the audit log."""
    channels = changed.get("notification_channels", {})
    shown = {side: [channel_public(one) for one in channels[side]] for side in channels}
    return {**changed, "notification_channels": shown} if shown else changed


@transaction.atomic
def _delete(row: models.Model, *, actor: Actor, action: str) -> bool:
    held = type(row)._default_manager.select_for_update(of=("self",)).filter(pk=row.pk).first()
    if held is None:
        return False
    audit_write(actor=actor, action=action, resource=held, details={"name": str(held)})
    held.delete()
    return True


def _channels_whole(fields: Mapping[str, Any], *, of: PerformanceAlert | None) -> dict[str, Any]:
    """The fields with stored URLs in place of what is shown of them to readers."""
    if "notification_channels" not in fields:
        return dict(fields)
    stored: Iterable[Channel] = ()
    if of is not None:  # as it is stored: a form has put its own values into the row
        stored = PerformanceAlert.objects.values_list("notification_channels", flat=True).get(
            pk=of.pk
        )
    whole = channels_whole(fields["notification_channels"], stored=stored)
    return {**fields, "notification_channels": whole}


def _check_channels(fields: Mapping[str, Any]) -> None:
    if "notification_channels" not in fields:
        return
    try:
        check_channels(fields["notification_channels"])
    except ValidationError as error:
        raise ValidationError({"notification_channels": error.messages}) from None
    addresses_check(fields["notification_channels"])


def _secrets_apart(fields: Mapping[str, Any], *, stored: Sealed | None) -> dict[str, Any]:
    """The fields with the webhooks' secrets in a column of their own."""
    if "notification_channels" not in fields:
        return dict(fields)
    shown, secrets = secrets_split(fields["notification_channels"], stored=stored)
    return {**fields, "notification_channels": shown, "channel_secrets": secrets}


def _changed_condition(before: PerformanceAlert, after: PerformanceAlert) -> set[str]:
    """A rule that could never fire, from before this was checked, stays as it is until changed."""
    return {name for name in _CONDITION if getattr(before, name) != getattr(after, name)}


def _look_anew(alert: PerformanceAlert) -> None:
    """Forget how long the former condition held, or could not be measured."""
    forgotten = dict.fromkeys(_MEMORY)
    PerformanceAlert.objects.filter(pk=alert.pk).update(**forgotten)
    alert.__dict__.update(forgotten)


def _switch_off(alert: PerformanceAlert, *, at: datetime) -> None:
    """An alert that nobody evaluates any more must not seem to fire for ever."""
    _look_anew(alert)
    firing = PerformanceAlert.objects.filter(pk=alert.pk, is_triggered=True)
    if firing.update(is_triggered=False) == 1:
        alert.is_triggered = False
        reading = Reading(None, why="it was switched off")
        event_record(alert=alert, kind=AlertEventKind.RESOLVED, reading=reading, at=at)


def _is_of_others(alert: PerformanceAlert, actor: Actor) -> bool:
    """Whether a tenant reads of the alert to which the actor does not belong."""
    owner = alert.server.tenant_id if alert.server else None
    return owner is not None and owner != actor.tenant_id


def _check_metric(alert: PerformanceAlert) -> None:
    if words := unknown(alert.metric_name):
        raise ValidationError({"metric_name": words})


def _check_condition(alert: PerformanceAlert) -> None:
    if faults := alert.rule_faults():
        raise ValidationError(faults)
