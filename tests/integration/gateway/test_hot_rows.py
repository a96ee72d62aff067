"""What changes with every call or every few seconds: it stays on its page, and tells nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.core.management import call_command
from django.db import connection, connections
from django.utils.timezone import now
from psycopg.conninfo import conninfo_to_dict

from gateway.models import CircuitBreaker
from gateway.proxy.gauges import Gauges
from gateway.proxy.route import Route, find_route
from gateway.proxy.upstream import Upstream
from gateway.proxy.usage import Usage
from gateway.services import breaker_record_failure, breaker_record_success
from monitoring.logwriter import Backlog
from registry import health
from registry.db.embedded import DATABASE, Cluster
from registry.db.pool import Pool, async_pool
from registry.health import Checked
from registry.models import HealthStatus, MCPServer
from security.models import EnhancedAPIKey
from tests.cluster import SETTINGS
from tests.factories import (
    EnhancedAPIKeyFactory,
    MCPServerFactory,
    ServerAccessControlFactory,
    ServerToolFactory,
    TenantFactory,
)

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.xdist_group("hot_rows"),
    pytest.mark.timeout(300),  # the first one makes a cluster, and all that it holds
]
ROUNDS = 60
HOT_SHARE = 0.95


@pytest.fixture(scope="module", autouse=True)
def own_cluster(
    tmp_path_factory: pytest.TempPathFactory, django_db_setup: None, django_db_blocker: Any
) -> Iterator[None]:
    """A server that nobody else uses.

    An open transaction in any database of a server, such as another test's, lets PostgreSQL put
    off looking which versions of a row are dead; pages fill up, and updates leave them.
    """
    folder = tmp_path_factory.mktemp("hot")
    for above in (folder, folder.parent, folder.parent.parent):
        above.chmod(0o711)  # root's server is another user, who has to pass through
    cluster, default = Cluster(folder / "cluster", settings=SETTINGS), connections["default"]
    usual = dict(default.settings_dict)
    with cluster.running(), django_db_blocker.unblock():
        found = conninfo_to_dict(cluster.url(DATABASE))
        default.close()
        default.settings_dict |= {
            "NAME": found["dbname"],
            "USER": found["user"],
            "PASSWORD": "",
            "HOST": found["host"],
            "PORT": found["port"],
        }
        try:
            call_command("migrate", verbosity=0)
            yield
        finally:
            default.close()
            default.settings_dict |= usual
    cluster.remove()


def hot_share(table: str, work: Callable[[], Any]) -> tuple[float, int]:
    """Of the updates that `work` makes, the share that stayed on their page; and their number."""

    def counts() -> tuple[int, int]:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_stat_force_next_flush()")
            cursor.execute("SELECT pg_stat_clear_snapshot()")
            cursor.execute(
                "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = %s",
                [table],
            )
            return cursor.fetchone()

    updates, hot = counts()
    work()
    after = counts()
    made = after[0] - updates
    return (after[1] - hot) / made, made


def with_pool(work: Callable[[Pool], Any]) -> None:
    async def run() -> None:
        async with async_pool(max_size=1, timeout=5) as pool:
            await work(pool)
            # A session tells its figures when it is idle for a while, or is asked to.
            async with pool.connection() as own:
                await own.execute("SELECT pg_stat_force_next_flush()")

    asyncio.run(run())


def test_a_breaker_s_counts_stay_on_their_page() -> None:
    MCPServerFactory.create_batch(20)
    breakers = list(CircuitBreaker.objects.values_list("id", flat=True))

    def fail_and_recover() -> None:
        for _ in range(ROUNDS // 10):
            for id_ in breakers:
                told = {"breaker_id": id_, "at": now(), "probe_until": None, "healthy_calls": 1}
                for _ in range(6):  # opens on the way
                    breaker_record_failure(**told)
                CircuitBreaker.objects.filter(id=id_).update(state="closed", failure_count=1)
                breaker_record_success(**told)

    share, updates = hot_share("circuit_breakers", fail_and_recover)
    assert updates == ROUNDS // 10 * 20 * 8
    assert share >= HOT_SHARE


def test_counters_of_keys_and_rules_stay_on_their_page() -> None:
    keys = [key.id for key in EnhancedAPIKeyFactory.create_batch(30)]
    rules = [
        ServerAccessControlFactory(tenant=tenant).id for tenant in TenantFactory.create_batch(30)
    ]

    async def flushes(pool: Pool) -> None:
        usage = Usage()
        for number in range(ROUNDS):
            at = now() + timedelta(seconds=10 * number)
            for key in keys:
                usage.keys[key].add(at=at, failed=False)
            for rule in rules:
                usage.rules[rule].add(at=at, failed=False)
            await usage.flush(pool)

    share, updates = hot_share("enhanced_api_keys", lambda: with_pool(flushes))
    assert updates == ROUNDS * 30
    assert share >= HOT_SHARE
    share, updates = hot_share("server_access_control", lambda: with_pool(flushes))
    assert updates == ROUNDS * 30
    assert share >= HOT_SHARE


def routes() -> list[Route]:
    found: list[Route | None] = []
    ids = list(MCPServer.objects.values_list("id", flat=True))

    async def read(pool: Pool) -> None:
        async with pool.connection() as own:
            found.extend([await find_route(own, server_id=id_) for id_ in ids])

    with_pool(read)
    return [route for route in found if route is not None]


@pytest.mark.parametrize(
    ("table", "count"), [("connection_pools", 20), ("request_queues", 20), ("gateway_processes", 1)]
)
def test_gauges_stay_on_their_page(table: str, count: int) -> None:
    MCPServerFactory.create_batch(20)
    found = routes()

    async def write(pool: Pool) -> None:
        upstreams, gauges = [Upstream(route) for route in found], Gauges()
        for number in range(ROUNDS):
            for upstream in upstreams:
                upstream.created = upstream.gate.processed = number
            await gauges.write(pool, upstreams, Backlog(number, 0, 0))
        for upstream in upstreams:
            await upstream.close()

    share, updates = hot_share(table, lambda: with_pool(write))
    assert updates == (ROUNDS - 1) * count
    assert share >= HOT_SHARE


def test_health_checks_within_a_minute_stay_on_their_page() -> None:
    servers, at = MCPServerFactory.create_batch(20), now()

    def check(number: int) -> None:
        results = [
            Checked(server_id=server.pk, status=HealthStatus.HEALTHY, response_time_ms=5.0 + number)
            for server in servers
        ]
        health.record(results, at=at + timedelta(seconds=number / 2))

    check(0)
    share, updates = hot_share("mcp_servers", lambda: [check(n) for n in range(1, ROUNDS)])
    assert updates == (ROUNDS - 1) * 20
    assert share >= HOT_SHARE


def test_a_tool_s_row_is_written_once_a_minute_by_all_processes_together() -> None:
    tool = ServerToolFactory()

    def totals() -> tuple[int, int]:
        tool.refresh_from_db()
        return tool.total_calls, tool.error_count

    def count(usage: Usage, *, failed: bool = False) -> None:
        for name in (tool.name, "no tool of anybody's"):
            usage.count_tool(tool.server_id, name, at=now(), failed=failed, milliseconds=1.0)

    def flush(usage: Usage, *, at_last: bool = False) -> None:
        with_pool(lambda pool: usage.flush_tools(pool, at_last=at_last))

    one, other = Usage(), Usage()
    count(one)
    count(other, failed=True)
    flush(one)
    flush(other)
    assert totals() == (1, 0)
    assert set(other.tools) == {(tool.server_id, tool.name)}  # kept, and nothing else is
    count(other)
    type(tool).objects.update(last_used_at=now() - timedelta(minutes=1))
    flush(other)
    assert (totals(), dict(other.tools)) == ((3, 1), {})
    count(one)
    flush(one, at_last=True)
    assert totals() == (4, 1)


def notices(listening: psycopg.Connection[Any]) -> list[str]:
    """All that were sent so far: PostgreSQL keeps the order of commits."""
    listening.execute("NOTIFY gateway_changes, 'mark'")
    found: list[str] = []
    while "mark" not in found:
        batch = [n.payload for n in listening.notifies(timeout=10, stop_after=1)]
        assert batch, "the mark did not arrive"
        found += batch
    return found[: found.index("mark")]


def test_counting_tells_nobody_and_deciding_tells_once() -> None:
    """NOTIFY takes a lock that all commits of the cluster share, so counters must not send it."""
    server, at = MCPServerFactory(), now()
    key, tool = EnhancedAPIKeyFactory(tenant=server.tenant), ServerToolFactory(server=server)
    rule = ServerAccessControlFactory(server=server, tenant=server.tenant)
    breaker = CircuitBreaker.objects.get(server=server)
    [route] = routes()

    async def count(pool: Pool) -> None:
        usage, upstream = Usage(), Upstream(replace(route, pool_max_size=7))
        usage.keys[key.id].add(at=at, failed=True)
        usage.failed_attempts[key.id].add(at=at, failed=True)
        usage.rules[rule.id].add(at=at, failed=True)
        usage.count_tool(server.id, tool.name, at=at, failed=False, milliseconds=1.0)
        await usage.flush(pool)
        await usage.flush_tools(pool)
        gauges = Gauges()
        await gauges.write(pool, [upstream], Backlog(0, 0, 0))
        await gauges.write(pool, [upstream], Backlog(0, 0, 0))
        await gauges.remove(pool)
        await upstream.close()

    with psycopg.connect(
        **connections["default"].get_connection_params(), autocommit=True
    ) as listening:
        listening.execute("LISTEN gateway_changes")
        with_pool(count)
        breaker_record_failure(breaker_id=breaker.id, at=at, probe_until=None, healthy_calls=1)
        breaker_record_success(breaker_id=breaker.id, at=at, probe_until=None, healthy_calls=1)
        health.record([Checked(server_id=server.pk, status=HealthStatus.HEALTHY)], at=at)
        key.refresh_from_db()
        key.save()  # every column is written, none is changed
        assert notices(listening) == []

        EnhancedAPIKey.objects.update(is_active=False)
        MCPServer.objects.update(slug="renamed")
        told = notices(listening)
    assert told == [
        f"enhanced_api_keys.id={key.id}",
        f"mcp_servers.id={server.id}",
        f"mcp_servers.slug={server.slug}",
        "mcp_servers.slug=renamed",
    ]
