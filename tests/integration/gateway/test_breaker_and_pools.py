"""Breaker, pool and queue as a caller meets them, over real sockets."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from django.db import connection
from django.utils.timezone import now

from gateway.jobs import PERIODIC
from gateway.models import CircuitBreaker, ConnectionPool, GatewayProcess, RequestQueue
from gateway.services import GAUGE_LIFETIME, breakers_recover, gauges_of_gone_processes_remove
from registry.services import health_check
from tests.factories import MCPServerFactory
from tests.integration.gateway.conftest import CALL, Scene, running_gateway, wait_until
from tests.integration.gateway.test_proxy import reason
from tests.mcp_server import mcp_over_http
from tests.peers import answer, status, when

LIST = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
INITIALIZE = {"jsonrpc": "2.0", "id": 3, "method": "initialize"}
CANCEL = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}


def breaker_of(scene: Scene) -> CircuitBreaker:
    return CircuitBreaker.objects.get(server=scene.server, service_name="")


def test_the_breaker_opens_probes_once_and_closes(scene: Scene):
    breakers = CircuitBreaker.objects.filter(server=scene.server)
    breakers.update(failure_threshold=3, timeout_ms=60_000)
    scene.peer.behave = status(503)
    assert [scene.call().status_code for _ in range(3)] == [503] * 3
    refused = scene.call()
    assert (refused.status_code, reason(refused)) == (503, "circuit_open")
    assert 50 <= int(refused.headers["retry-after"]) <= 60
    assert len(scene.peer.seen) == 3
    row = scene.row(refused)
    assert (row.status_code, row.error_type, row.upstream_ms) == (503, "circuit_open", None)

    # The time-out is over: of many callers in two processes one gets through.
    breakers.update(last_state_change=now() - timedelta(minutes=2))
    release = threading.Event()
    scene.peer.behave = when(release)
    with running_gateway() as other_url, ThreadPoolExecutor(8) as pool:
        other = Scene(other_url, scene.tenant, scene.server, scene.key, scene.peer)
        calls = [pool.submit((scene, other)[n % 2].call) for n in range(8)]
        wait_until(lambda: sum(call.done() for call in calls) == 7)
        assert scene.peer.in_flight == 1
        release.set()
        answers = sorted(call.result().status_code for call in calls)
    assert answers == [200] + [503] * 7
    assert breaker_of(scene).state == "half_open"
    assert scene.call().status_code == 200
    assert breaker_of(scene).state == "closed"


def test_a_failed_probe_opens_again(scene: Scene):
    CircuitBreaker.objects.filter(server=scene.server).update(
        state="open", last_state_change=now() - timedelta(minutes=2)
    )
    scene.peer.behave = status(500)
    assert scene.call().status_code == 500
    assert reason(scene.call()) == "circuit_open"


def test_a_breaker_that_nobody_calls_is_closed_by_health_checks(db, settings):
    settings.GATEWAY_ALLOW_PRIVATE_UPSTREAMS = True
    with mcp_over_http() as url:
        server = MCPServerFactory(endpoint_url=url)
        breakers = CircuitBreaker.objects.filter(server=server)
        opened = now() - timedelta(minutes=2)
        breakers.update(state="open", last_state_change=opened, last_failure_time=opened)
        close = PERIODIC["breakers_close"]

        def after_a_check(minute: int) -> tuple[int, str]:
            health_check(server=server, at=opened + timedelta(minutes=minute))
            at = opened + timedelta(minutes=minute, seconds=20)
            assert close.due is not None
            due = close.due(at)
            assert close.run(at=at) == due
            assert close.run(at=at + timedelta(seconds=5)) == 0, "one check was counted twice"
            return due, breakers.get().state

        assert after_a_check(1) == (0, "open"), "calls had no time to try it"
        assert after_a_check(2) == (1, "half_open")
        assert after_a_check(4) == (1, "closed")
        assert breakers.get().total_requests == 0


@pytest.mark.parametrize(
    ("of_server", "of_breaker"),
    [
        pytest.param({"health_status": "unhealthy"}, {}, id="the check failed"),
        pytest.param({"health_status": "maintenance"}, {}, id="an operator keeps it out"),
        pytest.param({"is_enabled": False}, {}, id="nobody may call it"),
        pytest.param({"last_health_check": None}, {}, id="nobody checked it"),
        pytest.param({"last_health_check": timedelta(hours=2)}, {}, id="checked before it opened"),
        pytest.param({}, {"last_success_time": timedelta(0)}, id="the check was counted"),
        pytest.param({}, {"last_state_change": timedelta(seconds=70)}, id="calls go first"),
        pytest.param({}, {"timeout_ms": 2 * 3600 * 1000}, id="its time-out is not over"),
        pytest.param(
            {},
            {"state": "half_open", "probe_until": -timedelta(seconds=30)},
            id="a call tries it",
        ),
        pytest.param({}, {"state": "closed"}, id="it is closed"),
    ],
)
def test_a_health_check_leaves_a_breaker_alone(db, of_server, of_breaker):
    at = now()

    def times(fields: dict[str, Any]) -> dict[str, Any]:
        return {
            name: at - value if isinstance(value, timedelta) else value
            for name, value in fields.items()
        }

    answering = {"health_status": "healthy", "last_health_check": timedelta(minutes=1)}
    server = MCPServerFactory(**times(answering | of_server))
    open_for_an_hour = {"state": "open", "last_state_change": timedelta(hours=1)}
    breakers = CircuitBreaker.objects.filter(server=server)
    breakers.update(**times(open_for_an_hour | of_breaker))
    before = breakers.values().get()
    assert PERIODIC["breakers_close"].run(at=at) == 0
    assert breakers.values().get() == before


def test_breakers_are_closed_in_one_statement(db, django_assert_num_queries):
    at = now()
    for _ in range(3):
        server = MCPServerFactory(health_status="healthy", last_health_check=at)
        CircuitBreaker.objects.filter(server=server).update(
            state="open", success_threshold=1, last_state_change=at - timedelta(hours=1)
        )
    with django_assert_num_queries(1):
        assert breakers_recover(at=at) == 3
    assert not CircuitBreaker.objects.exclude(state="closed").exists()


def test_a_healthy_call_writes_nothing_to_the_breaker(scene: Scene):
    def version() -> object:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT xmin::text FROM circuit_breakers WHERE server_id = %s", [scene.server.id]
            )
            return cursor.fetchone()

    before = version()
    assert scene.call().status_code == 200
    assert version() == before
    scene.peer.behave = status(400)  # the caller's fault, not the server's
    scene.call()
    assert version() == before


def test_successes_between_failures_keep_the_breaker_closed(scene: Scene):
    CircuitBreaker.objects.filter(server=scene.server).update(failure_threshold=2)
    for behave in (status(500), answer, status(500), answer):
        scene.peer.behave = behave
        scene.call()
    found = breaker_of(scene)
    assert (found.state, found.failure_count) == ("closed", 0)
    assert (found.total_requests, found.total_failures) == (4, 2)


@pytest.fixture
def busy(scene: Scene):
    """A server with one connection, held by a call until `release`."""
    ConnectionPool.objects.filter(server=scene.server).update(max_size=1)
    release = threading.Event()
    scene.peer.behave = when(release)
    with ThreadPoolExecutor(10) as pool:
        held = pool.submit(scene.call)
        wait_until(lambda: scene.peer.in_flight == 1)

        def background(message: dict) -> Future[httpx2.Response]:
            return pool.submit(scene.call, message)

        yield scene, background, release
        release.set()
        assert held.result().status_code == 200


def test_a_full_queue_answers_503_at_once(busy):
    scene, background, release = busy
    RequestQueue.objects.filter(server=scene.server).update(max_size=1)
    waiting = background(CALL)
    gauge = RequestQueue.objects.filter(server=scene.server).exclude(queue_name="")
    wait_until(lambda: gauge.filter(current_size=1).exists())
    refused = scene.call()
    assert (refused.status_code, reason(refused)) == (503, "queue_full")
    assert int(refused.headers["retry-after"]) >= 1
    release.set()
    assert waiting.result().status_code == 200
    assert scene.peer.most_in_flight == 1
    assert scene.row(waiting.result()).queue_ms > 0


def test_waiting_ends_with_queue_timeout(busy):
    scene, _, _ = busy
    ConnectionPool.objects.filter(server=scene.server, pool_name="").update(timeout_ms=50)
    refused = scene.call()
    assert (refused.status_code, reason(refused)) == (503, "queue_timeout")


def test_the_queue_lets_in_by_priority(busy):
    scene, background, release = busy
    gauge = RequestQueue.objects.filter(server=scene.server).exclude(queue_name="")
    calls = []
    for number, message in enumerate((LIST, CALL, INITIALIZE), start=1):
        calls.append(background(message))
        wait_until(lambda n=number: gauge.filter(current_size=n).exists())
    release.set()
    assert all(call.result().status_code == 200 for call in calls)
    order = [b"initialize", b"tools/call", b"tools/list"]
    seen = [sent["body"] for sent in scene.peer.seen[1:]]
    assert all(method in body for method, body in zip(order, seen, strict=True))


def test_a_cancellation_passes_a_busy_server_s_queue(busy):
    scene, _, _ = busy
    scene.peer.behave = answer
    assert scene.call(CANCEL).status_code == 202


def test_gauges_are_fresh_and_go_with_their_process(scene: Scene):
    release = threading.Event()
    scene.peer.behave = when(release)
    pools = ConnectionPool.objects.filter(server=scene.server).exclude(pool_name="")
    with running_gateway() as url, ThreadPoolExecutor(1) as threads:
        other = Scene(url, scene.tenant, scene.server, scene.key, scene.peer)
        held = threads.submit(other.call)
        found = wait_until(lambda: pools.filter(active_connections=1).first())
        assert now() - found.updated_at < timedelta(seconds=5)
        process = GatewayProcess.objects.get(name=found.pool_name)
        assert (process.log_rows_spooled, process.log_rows_lost, process.last_loss) == (0, 0, None)
        release.set()
        held.result()
        wait_until(lambda: pools.filter(active_connections=0, idle_connections=1).exists())
    assert not pools.exists()
    assert not GatewayProcess.objects.filter(name=process.name).exists()


def test_gauges_of_dead_processes_disappear(db):
    server = MCPServerFactory()
    for age in (GAUGE_LIFETIME * 2, timedelta(0)):
        pool = ConnectionPool.objects.create(server=server, pool_name=f"p{age}")
        queue = RequestQueue.objects.create(server=server, queue_name=f"p{age}")
        process = GatewayProcess.objects.create(name=f"p{age}")
        for row in (pool, queue, process):
            type(row).objects.filter(id=row.id).update(updated_at=now() - age)
    ConnectionPool.objects.filter(pool_name="").update(updated_at=now() - timedelta(days=9))
    assert gauges_of_gone_processes_remove(at=now()) == 3
    assert ConnectionPool.objects.filter(server=server).count() == 2  # settings and the young


def test_listening_streams_hold_no_connection_and_are_bounded(scene: Scene, monkeypatch):
    monkeypatch.setattr("gateway.proxy.upstream.MAX_STREAMS", 1)
    ConnectionPool.objects.filter(server=scene.server).update(max_size=1)
    release = threading.Event()
    scene.peer.behave = when(release)
    listen = {"jsonrpc": "2.0", "id": 7, "method": "subscriptions/listen"}
    with ThreadPoolExecutor(1) as threads:
        held = threads.submit(scene.call, listen)
        wait_until(lambda: scene.peer.in_flight == 1)
        scene.peer.behave = answer
        assert scene.call().status_code == 200
        refused = scene.call(listen)
        assert (refused.status_code, reason(refused)) == (503, "queue_full")
        release.set()
        assert held.result().status_code == 200


def test_a_caller_that_leaves_gives_its_probe_back(scene: Scene):
    CircuitBreaker.objects.filter(server=scene.server).update(
        state="open", last_state_change=now() - timedelta(minutes=2)
    )
    scene.peer.behave = when(threading.Event())
    with pytest.raises(httpx2.TimeoutException):
        scene.call(timeout=0.3)
    wait_until(lambda: breaker_of(scene).probe_until is None)
    scene.peer.behave = answer
    assert scene.call().status_code == 200


def test_callers_who_wait_in_vain_open_the_breaker(scene: Scene):
    CircuitBreaker.objects.filter(server=scene.server).update(failure_threshold=1)
    RequestQueue.objects.filter(server=scene.server).update(processing_timeout_ms=400)
    scene.peer.behave = when(threading.Event())
    with pytest.raises(httpx2.TimeoutException):
        scene.call(timeout=0.3)
    wait_until(lambda: breaker_of(scene).state == "open")
    assert breaker_of(scene).total_timeouts == 1
