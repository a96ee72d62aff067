"""Several evaluators over the same alerts at the same moment."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier

import pytest
from django.db import connection
from django.utils.timezone import now

from gateway.models import CircuitBreaker
from monitoring.alerts import evaluate
from monitoring.models import AlertEvent, PerformanceAlert
from tests.factories import MCPServerFactory, PerformanceAlertFactory

EVALUATORS = 4
ALERTS = 10
pytestmark = pytest.mark.django_db(transaction=True)


def passes(at, monkeypatch) -> None:
    """Let every evaluator decide on the same standing before any of them writes."""
    decided = Barrier(EVALUATORS)
    active = evaluate._active

    def all_have_read():
        alerts = active()
        decided.wait(timeout=20)
        return alerts

    monkeypatch.setattr(evaluate, "_active", all_have_read)

    def run(_: int) -> int:
        try:
            return evaluate.alerts_evaluate(at=at)
        finally:
            connection.close()  # each thread owns a connection

    with ThreadPoolExecutor(EVALUATORS) as pool:
        assert list(pool.map(run, range(EVALUATORS))) == [ALERTS] * EVALUATORS
    monkeypatch.setattr(evaluate, "_active", active)


def kinds() -> Counter[str]:
    return Counter(AlertEvent.objects.values_list("kind", flat=True))


def jobs() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM procrastinate_jobs WHERE task_name = 'alert_notify'")
        return int(cursor.fetchone()[0])


def test_each_change_is_made_and_told_once(monkeypatch):
    before = jobs()  # those of other tests outlive them
    MCPServerFactory()
    for _ in range(ALERTS):
        PerformanceAlertFactory(
            duration_minutes=0, cooldown_minutes=60, notification_channels=[{"type": "log"}]
        )
    at = now()
    CircuitBreaker.objects.update(state="open")
    passes(at, monkeypatch)
    assert kinds() == {"triggered": ALERTS}
    passes(at + timedelta(hours=1), monkeypatch)
    assert kinds() == {"triggered": ALERTS, "reminded": ALERTS}
    CircuitBreaker.objects.update(state="closed")
    passes(at + timedelta(hours=1, minutes=1), monkeypatch)
    passes(at + timedelta(hours=1, minutes=3), monkeypatch)
    assert kinds() == dict.fromkeys(("triggered", "reminded", "resolved"), ALERTS)
    assert jobs() - before == 3 * ALERTS
    rows = PerformanceAlert.objects.values_list("is_triggered", "trigger_count")
    assert set(rows) == {(False, 1)}
