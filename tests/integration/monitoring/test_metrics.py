"""Figures of health checks on their way to `server_metrics`, from threads and from commands."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection, connections, transaction
from django.utils.timezone import now

from monitoring.logwriter import threads
from monitoring.logwriter.writer import default_folder
from registry import health
from registry.health import Checked
from registry.metrics import Measured
from registry.models import HealthStatus, MCPServer, ServerMetric
from tests.factories import MCPServerFactory, TenantFactory
from tests.mcp_server import closed_port
from tests.partitions import no_partitions
from tests.relay import relayed

pytestmark = pytest.mark.django_db(transaction=True)

CALLERS = 4


@pytest.fixture(autouse=True)
def spool(settings: Any, tmp_path: Path) -> Path:
    settings.GATEWAY_SPOOL_DIR = tmp_path
    return default_folder()


def record(server: MCPServer, at: datetime, **more: Any) -> int:
    outcome = Checked(server_id=server.pk, **({"status": HealthStatus.HEALTHY} | more))
    return health.record([outcome], at=at)


def in_worker(work: Callable[[], Any]) -> None:
    """Run `work` in a thread of a process that has a writer, as the worker runs its jobs."""

    async def process() -> None:
        async with threads.process_writer():
            await asyncio.to_thread(work)

    asyncio.run(process())


def test_a_command_leaves_the_row_at_once(settings: Any) -> None:
    settings.GATEWAY_ALLOW_PRIVATE_UPSTREAMS = True
    TenantFactory(slug="default")
    call_command("register_server", "Away", f"http://127.0.0.1:{closed_port()}/mcp")
    server, row = MCPServer.objects.get(), ServerMetric.objects.get()
    assert (row.server_id, row.timestamp) == (server.pk, server.last_health_check)
    assert (row.error_rate, row.response_time_ms) == (1.0, None)
    assert row.custom_metrics == {"health_status": "unhealthy"}


def test_what_is_undone_leaves_no_row() -> None:
    server = MCPServerFactory()
    with transaction.atomic():
        assert record(server, now()) == 1
        transaction.set_rollback(True)
    assert not ServerMetric.objects.exists()


def test_threads_share_one_writer_and_each_row_is_there_once_within_a_second() -> None:
    servers, at = MCPServerFactory.create_batch(CALLERS), now()
    at_once = Barrier(CALLERS)

    def check(server: MCPServer) -> None:
        try:
            at_once.wait(10)
            for number in range(5):
                moment = at + timedelta(seconds=number)
                assert record(server, moment, response_time_ms=float(number)) == 1
        finally:
            connection.close()

    def work() -> None:
        with ThreadPoolExecutor(CALLERS) as pool:
            list(pool.map(check, servers))
        until = time.monotonic() + 1.5  # flushed twice a second
        while ServerMetric.objects.count() < 5 * CALLERS:
            assert time.monotonic() < until, "the writer did not write by itself"
            time.sleep(0.02)
        connection.close()

    in_worker(work)
    found = sorted(ServerMetric.objects.values_list("server_id", "response_time_ms"))
    assert found == sorted((server.pk, float(n)) for server in servers for n in range(5))


def test_what_is_left_last_is_written_when_the_process_ends() -> None:
    server = MCPServerFactory()

    def work() -> None:
        record(server, now())
        connection.close()

    in_worker(work)
    assert ServerMetric.objects.count() == 1


def test_a_missing_partition_holds_up_no_health_check(spool: Path) -> None:
    server = MCPServerFactory()
    no_partitions("server_metrics")
    assert record(server, now()) == 1
    server.refresh_from_db()
    assert server.health_status == "healthy"
    assert len(list(spool.glob("*.spool"))) == 1
    call_command("run_maintenance", "--task", "partitions_create")
    record(server, now() + timedelta(seconds=1))
    assert ServerMetric.objects.count() == 2
    assert list(spool.glob("*.spool")) == []


def test_without_postgresql_the_rows_of_a_command_wait_for_the_next_process(
    monkeypatch: pytest.MonkeyPatch, spool: Path
) -> None:
    monkeypatch.setattr(threads, "POOL_WAIT_SECONDS", 0.2)
    row = Measured(server_id=MCPServerFactory().pk, timestamp=now(), error_rate=0.0)
    with relayed(monkeypatch) as relay:
        relay.cut()
        threads.metrics_write([row])
    assert len(list(spool.glob("*.spool"))) == 1
    in_worker(lambda: None)
    assert ServerMetric.objects.count() == 1
    assert list(spool.glob("*.spool")) == []


def test_the_spool_is_the_same_one_past_a_pooler(settings: Any, spool: Path) -> None:
    before = dict(connections["default"].settings_dict)
    try:
        connections["default"].settings_dict.update(HOST="db.example.org", PORT="6432")
        assert default_folder() == spool
        connections["default"].settings_dict["NAME"] = "another"
        assert default_folder() != spool
    finally:
        connections["default"].settings_dict.update(before)
