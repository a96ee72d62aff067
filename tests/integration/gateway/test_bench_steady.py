"""The measuring of pages and of a soak, tiny: that they measure, not what."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta

import pytest
from django.urls import resolve
from django.utils.timezone import now

from gateway.bench.looking import Figures, Page, following, measure, measure_metrics, pages
from gateway.bench.pages import lines as page_lines
from gateway.bench.samples import Process, Sample, Table, growths, memories, sample_take
from gateway.bench.steady import Hurry, Load, loading
from gateway.jobs import PERIODIC
from monitoring.models import ScheduledTask
from monitoring.schedule import tasks_sync
from registry.db.scratch import connect
from tests.factories import AuditLogFactory, RequestLogFactory, TenantFactory, UserFactory
from tests.integration.gateway.conftest import Scene, wait_until

MB = 2**20
MINUTE = timedelta(minutes=1)


@pytest.mark.django_db(transaction=True)
def test_pages_and_metrics_are_timed_with_their_statements():
    tenant = TenantFactory()
    RequestLogFactory.create_batch(60, tenant_id=tenant.pk)
    AuditLogFactory(tenant_id=tenant.pk)
    user = UserFactory(tenant=None, is_staff=True, is_superuser=True)
    known = {page.name: page for page in pages()}
    assert len(known) == len(pages()) > 60
    assert all(resolve(page.path.partition("?")[0]) for page in known.values())
    first = known["API: request-logs, first page"]
    for page in (known["request log, tenant"], first, following(first, user=user)):
        found = measure(page, user=user, times=2)
        assert len(found.times) == 2
        assert 3 <= found.statements <= 20
        assert found.slowest_ms <= max(found.times)
        assert not found.counts
    assert "counts" not in found.missed
    scraped = measure_metrics(times=1)
    assert scraped.times[0] >= scraped.cpu_ms > 0


def test_what_misses_a_goal_is_marked():
    page = Page("list: things", "/things/")
    good = Figures(page, [9.0, 1.0, 2.0], 1.0, goal_ms=3, statements=4, goal_statements=4)
    bad = replace(good, times=[9.0, 4.0], statements=5, scanned=10**6, counts=True)
    assert good.missed == []
    assert bad.missed == ["time", "statements", "scan", "count"]
    assert [line[0] for line in page_lines([good, bad])[1:]] == [" ", "!"]


def test_a_load_is_sent_tasks_are_hurried_and_a_sample_taken(scene: Scene):
    tasks_sync(PERIODIC.values(), at=now())
    ScheduledTask.objects.update(next_run=now() + timedelta(hours=1))
    load = Load(scene.url, server=scene.server.slug, key=scene.key.text, rate=100)
    hurry = Hurry(PERIODIC, speed=3600)
    with loading(load), hurry, connect() as own:
        wait_until(lambda: load.answers["unknown key: 401"], seconds=30)
        wait_until(ScheduledTask.objects.filter(next_run__lte=now() + MINUTE).exists, seconds=30)
        taken = sample_take(own, seconds=1.0, roots={"tests": os.getpid()})
    assert load.answers["add: 200"] > load.answers["unknown key: 401"]
    assert hurry.broken == []
    assert set(hurry.runs(over=timedelta(hours=1)).values()) >= {(0, 12.0), (0, 60.0)}
    mine = taken.processes["tests"]
    assert mine.resident > mine.anonymous > 10 * MB
    assert mine.files > mine.threads > 1
    assert sum(taken.connections.values()) >= 2
    assert taken.tables["mcp_servers"].rows == 1
    assert taken.memory()["tests"] == mine.resident


def sample(minute: int, *, worker: int, rows: int) -> Sample:
    return Sample(
        seconds=minute * 60,
        processes={
            "serve": Process(100 * MB + minute % 3 * 4096, 0, 9, 4),
            "worker": Process(worker, 0, 9, 4),
        },
        tables={
            "request_logs": Table(minute * 3000, minute * MB),
            "tenants": Table(1, 8192),
            "periodic_tasks": Table(14, minute * MB),
            "leaks": Table(rows, 8192),
        },
    )


def test_a_process_that_doubles_within_a_month_grows_and_one_that_wavers_does_not():
    # 2 MB a minute, at a speed of 24 that is 120 MB a day.
    samples = [sample(n, worker=(50 + 2 * n) * MB, rows=n) for n in range(61)]
    serve, worker = memories(samples, speed=24)
    assert (serve.verdict, worker.verdict) == ("flat", "grows")
    assert worker.slope.value == pytest.approx(120 * MB)
    assert memories(samples[:12], speed=24)[0].verdict == "too few samples"


def test_tables_that_grow_are_told_and_logs_come_last():
    samples = [sample(n, worker=MB, rows=n) for n in range(11)]
    found = [(one.table, one.rows, one.is_bloat, one.is_log) for one in growths(samples)]
    assert found == [
        ("periodic_tasks", 0, True, False),
        ("leaks", 5, False, False),
        ("request_logs", 15_000, False, True),
    ]
