"""Security's periodic work: logins and keys whose time is over."""

from __future__ import annotations

from datetime import datetime, timedelta

from django.db.models import QuerySet

from monitoring.audit import Actor
from registry.periodic import PeriodicTask, Stop, never
from security.models import EnhancedAPIKey, Session
from security.services import api_key_expire

__all__ = ["PERIODIC"]

SESSIONS_KEPT = timedelta(days=7)  # after their end, so that a login can still be looked into
# Until then a caller is told that the key has expired; afterwards that it is not known.
KEYS_KEPT = timedelta(days=30)
WORKER = Actor(service_name="worker")


def sessions_remove(*, at: datetime, stop: Stop = never) -> int:
    """Delete logins that ended a week ago, a thousand at a time."""
    removed = 0
    while not stop():
        batch = list(_ended(at).values_list("pk", flat=True)[:1000])
        if not batch:
            break
        removed += Session.objects.filter(pk__in=batch).delete()[0]
    return removed


def api_keys_expire(*, at: datetime, stop: Stop = never) -> int:
    """Switch off keys that expired a month ago; the clock has refused them since then."""
    done = 0
    for key in _overdue(at):
        if stop():
            break
        done += api_key_expire(actor=WORKER, key=key, at=at)
    return done


def _ended(at: datetime) -> QuerySet[Session]:
    return Session.objects.filter(expires_at__lt=at - SESSIONS_KEPT)


def _overdue(at: datetime) -> QuerySet[EnhancedAPIKey]:
    over = EnhancedAPIKey.objects.filter(is_active=True, expires_at__lte=at - KEYS_KEPT)
    return over.order_by("id")


PERIODIC = (
    PeriodicTask(
        name="sessions_remove",
        cron="17 * * * *",
        unit="sessions",
        does="Delete logins that ended more than a week ago.",
        due=lambda at: _ended(at).count(),
        run=sessions_remove,
    ),
    PeriodicTask(
        name="api_keys_expire",
        cron="27 * * * *",
        unit="API keys",
        does="Switch off API keys that expired more than a month ago.",
        due=lambda at: _overdue(at).count(),
        run=api_keys_expire,
    ),
)
