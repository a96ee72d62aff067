"""The worker as a process of its own: it checks a real server, and it stops when it is told."""

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from django.conf import settings
from django.db import connection
from django.utils.timezone import now
from psycopg import sql

from gateway.jobs import PERIODIC
from gateway.models import CircuitBreaker
from monitoring.alerts.evaluate import alerts_evaluate
from monitoring.models import AlertEvent, ScheduledTask
from registry.audit import Actor
from registry.db.partitions import read_partitions
from registry.models import MCPServer
from registry.services import server_register
from tests.factories import MCPServerFactory, PerformanceAlertFactory
from tests.mcp_server import mcp_over_http
from tests.receiver import receiving

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def environment():
    """What a worker needs to find the test database."""
    database = connection.settings_dict
    host, port = database["HOST"], database["PORT"]
    user, name = database["USER"], database["NAME"]
    url = f"postgresql://{user}@/{name}?host={host or database['OPTIONS'].get('host')}"
    return {
        **os.environ,
        "DATABASE_URL": f"{url}&port={port}" if port else url,
        "DEBUG": "on",
        "GATEWAY_ALLOW_PRIVATE_UPSTREAMS": "on",
        "GATEWAY_LOCAL_DIR": str(settings.LOCAL_DIR),
        "PYTHONUNBUFFERED": "1",
    }


def start(environment, *arguments):
    return subprocess.Popen(
        [sys.executable, "manage.py", "worker", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(what, seconds=30):
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.1)
    return found


@pytest.mark.django_db(transaction=True)
def test_a_registered_server_is_checked_read_and_the_worker_stops_in_time(environment, settings):
    settings.GATEWAY_ALLOW_PRIVATE_UPSTREAMS = True
    with mcp_over_http() as url:
        server = server_register(actor=Actor(service_name="test"), tenant=None, name="s", url=url)
        worker = start(environment, "--concurrency", "2")
        try:
            wait_for(lambda: MCPServer.objects.get().tools.count() == 2)
            server.refresh_from_db()
            assert server.health_status == "healthy"
            wait_for(lambda: not _waiting())  # what succeeded is removed
        finally:
            worker.send_signal(signal.SIGTERM)
            out, err = worker.communicate(timeout=20)
    assert worker.returncode == 0, err
    assert "Worker started, 2 job(s) at a time." in out
    assert "Worker stopped." in out
    assert "Traceback" not in err
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM procrastinate_workers")
        assert cursor.fetchone() == (0,)


@pytest.mark.django_db(transaction=True)
def test_a_webhook_that_hangs_delays_no_other_and_one_that_fails_is_tried_again(environment):
    MCPServerFactory()
    CircuitBreaker.objects.update(state="open")
    with receiving(hangs=True) as hanging, receiving(500, 200) as failing, receiving() as well:
        for receiver in (hanging, hanging, hanging, hanging, failing, well):
            PerformanceAlertFactory(
                duration_minutes=0,
                notification_channels=[{"type": "webhook", "url": receiver.url}],
            )
        alerts_evaluate(at=now())
        worker = start(environment, "--concurrency", "2")
        try:
            wait_for(lambda: well.calls)
            # Four calls to the one that hangs would have taken four time-outs before it.
            assert len(hanging.calls) <= 2
            wait_for(lambda: len(failing.calls) == 2)
            wait_for(lambda: _sent() == 2)
        finally:
            worker.send_signal(signal.SIGTERM)
            _, err = worker.communicate(timeout=20)
    assert worker.returncode == 0, err
    assert len(well.calls) == 1
    assert AlertEvent.objects.count() == 6


@pytest.mark.django_db(transaction=True)
def test_a_notification_that_a_dead_worker_left_is_taken_up_again(environment):
    MCPServerFactory()
    CircuitBreaker.objects.update(state="open")
    with receiving() as receiver:
        PerformanceAlertFactory(
            duration_minutes=0,
            notification_channels=[{"type": "webhook", "url": receiver.url}],
        )
        alerts_evaluate(at=now())
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO procrastinate_workers (last_heartbeat)"
                " VALUES (now() - interval '10 minutes') RETURNING id"
            )
            cursor.execute(
                "UPDATE procrastinate_jobs SET status = 'doing', worker_id = %s"
                " WHERE args ->> 'event_id' = %s",
                [*cursor.fetchone(), str(AlertEvent.objects.get().pk)],
            )
        assert PERIODIC["jobs_tidy"].run(at=now()) == 1
        worker = start(environment)
        try:
            wait_for(lambda: receiver.calls)
            wait_for(lambda: _sent() == 1)
        finally:
            worker.send_signal(signal.SIGTERM)
            worker.communicate(timeout=20)
    assert len(receiver.calls) == 1


@pytest.mark.django_db(transaction=True)
def test_what_a_killed_worker_was_doing_is_done_by_another_one(environment):
    first = start(environment)
    try:
        wait_for(lambda: ScheduledTask.objects.filter(last_outcome="done").count() > 5)
    finally:
        first.kill()
        first.communicate(timeout=20)
    # As if it had been killed within the nightly run, more than a minute ago.
    nightly = ScheduledTask.objects.filter(name="partitions_remove")
    ended = now() - timedelta(seconds=1)
    nightly.update(
        claim_id=uuid4(), claimed_by="killed", running_since=ended, lease_until=ended,
        next_run=now() + timedelta(days=1), last_outcome="",
    )  # fmt: skip
    second = start(environment)
    try:
        wait_for(lambda: nightly.get().last_outcome == "done")
    finally:
        second.send_signal(signal.SIGTERM)
        second.communicate(timeout=20)
    assert (nightly.get().runs, nightly.get().failures) == (1, 1)


def _sent():
    deliveries = AlertEvent.objects.values_list("deliveries", flat=True)
    return sum(bool(row["sent_at"]) for found in deliveries for row in found.values())


def _waiting():
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM procrastinate_jobs WHERE task_name = 'server_first_contact'"
        )
        return cursor.fetchone()[0]


def test_it_refuses_to_work_with_secrets_that_are_not_its_own(environment):
    refused = {key: value for key, value in environment.items() if key not in SECRETS}
    worker = start(refused | {"DEBUG": "off"})
    _, err = worker.communicate(timeout=30)
    assert worker.returncode == 1
    assert "Set SECRET_KEY and ENCRYPTION_KEYS" in err
    assert "Traceback" not in err


def test_a_senseless_concurrency_is_wrong_usage(environment):
    worker = start(environment, "--concurrency", "0")
    _, err = worker.communicate(timeout=30)
    assert (worker.returncode, "at least 1" in err) == (2, True)


SECRETS = {"SECRET_KEY", "ENCRYPTION_KEYS"}


@pytest.mark.django_db(transaction=True)
def test_partitions_that_are_missing_are_made_at_the_start(environment):
    *_, last = read_partitions(connection, "request_logs")
    with connection.cursor() as cursor:
        cursor.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(last.name)))
    worker = start(environment)
    try:
        wait_for(lambda: last in read_partitions(connection, "request_logs"))
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.communicate(timeout=30)
    assert worker.returncode == 0
