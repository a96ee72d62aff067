"""Security's periodic work: keys whose time is over. (Old logins are a retention policy's.)"""

from __future__ import annotations

from datetime import datetime, timedelta

from django.db.models import QuerySet

from monitoring.audit import Actor
from registry.periodic import PeriodicTask, Stop, never
from security.models import EnhancedAPIKey
from security.services import api_key_expire

__all__ = ["PERIODIC", "keys_overdue"]

# Until then a caller is told that the key has expired; afterwards that it is not known.
KEYS_KEPT = timedelta(days=30)
WORKER = Actor(service_name="worker")


def api_keys_expire(*, at: datetime, stop: Stop = never) -> int:
    """Switch off keys that expired a month ago; the clock has refused them since then."""
    done = 0
    for key in keys_overdue(at):
        if stop():
            break
        done += api_key_expire(actor=WORKER, key=key, at=at)
    return done


def keys_overdue(at: datetime) -> QuerySet[EnhancedAPIKey]:
    """Keys that ended a month before and are still switched on."""
    over = EnhancedAPIKey.objects.filter(is_active=True, expires_at__lte=at - KEYS_KEPT)
    return over.order_by("id")


PERIODIC = (
    PeriodicTask(
        name="api_keys_expire",
        cron="27 * * * *",
        unit="API keys",
        does="Switch off API keys that expired more than a month ago.",
        due=lambda at: keys_overdue(at).count(),
        run=api_keys_expire,
    ),
)
