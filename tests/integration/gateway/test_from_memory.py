"""Calls from memory: without SQL when warm, obedient at once, and alive without PostgreSQL."""

from __future__ import annotations

import asyncio
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest
from django.db import OperationalError, connection, connections
from django.utils.timezone import now

from gateway.models import CircuitBreaker
from gateway.proxy.breaker import BreakerClient
from gateway.proxy.contact import Contact
from gateway.proxy.orm import OrmThreads
from gateway.proxy.plane import TOLD_OF, DataPlane
from gateway.proxy.watch import Watch
from monitoring.logwriter import LogWriter
from monitoring.models import AuditLog, RequestLog
from registry.db.pool import async_pool
from registry.models import MCPServer, Tenant
from security.keys import generate_key
from security.models import EnhancedAPIKey, ServerAccessControl
from tests.factories import (
    EnhancedAPIKeyFactory,
    MCPServerFactory,
    ServerToolFactory,
    TenantFactory,
    UserFactory,
)
from tests.integration.gateway.conftest import Scene, running_gateway, told, wait_until
from tests.integration.gateway.test_proxy import reason
from tests.peers import Peer, answer, status
from tests.relay import Relay, relayed

BACKGROUND = {"watch", "watch: beat", "watch: back", "gauges", "usage", "tools", "log-writer"}


def test_a_warm_call_runs_no_sql(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    statements: list[str] = []
    execute, run = psycopg.AsyncCursor.execute, OrmThreads.run

    def note(what: object) -> None:
        task = asyncio.current_task()
        if (task is None or task.get_name() not in BACKGROUND) and "BEGIN" not in str(what):
            statements.append(str(what))

    async def noted_execute(cursor: Any, query: Any, *rest: Any, **options: Any) -> Any:
        note(query)
        return await execute(cursor, query, *rest, **options)

    async def noted_run(threads: OrmThreads, work: Callable[[], Any]) -> Any:
        note(work)
        return await run(threads, work)

    monkeypatch.setattr(psycopg.AsyncCursor, "execute", noted_execute)
    monkeypatch.setattr(OrmThreads, "run", noted_run)
    assert scene.call().status_code == 200
    assert len(statements) == 2  # the key with its server, and the route
    assert [scene.send().status_code for _ in range(10)] == [200] * 10
    assert len(statements) == 2
    scene.peer.behave = status(400)
    assert scene.send().status_code == 400
    assert scene.send(key=scene.key.text[:-4] + "zzzz").status_code == 401
    assert len(statements) == 3  # another secret of a known key is looked up, and not remembered
    assert scene.send(key=scene.key.text[:-4] + "zzzz").status_code == 401
    assert len(statements) == 4


CHANGES = {
    "a key revoked": (
        "UPDATE enhanced_api_keys SET is_active = false WHERE id = %(key)s",
        "invalid_credentials",
    ),
    "a key deleted": ("DELETE FROM enhanced_api_keys WHERE id = %(key)s", "invalid_credentials"),
    "a key's scopes": (
        "UPDATE enhanced_api_keys SET scopes = '{read}' WHERE id = %(key)s",
        "scope_missing",
    ),
    "a user switched off": (
        "UPDATE users SET is_active = false WHERE id = %(user)s",
        "invalid_credentials",
    ),
    "a tenant suspended": (
        "UPDATE tenants SET status = 'suspended' WHERE id = %(tenant)s",
        "server_not_allowed",
    ),
    "a rule made": (
        "INSERT INTO server_access_control (id, server_id, tenant_id, can_read, can_write,"
        " can_admin, can_proxy, allowed_methods,"
        " denied_methods, allowed_days, allowed_hours, timezone, is_active, access_count,"
        " created_at, updated_at) VALUES (gen_random_uuid(), %(server)s, %(tenant)s, true,"
        " false, false, false,"
        " '{}', '{}', '{}', '{}', 'UTC', true, 0, now(), now())",
        "server_not_allowed",
    ),
    "a rule changed": (
        "UPDATE server_access_control SET denied_methods = '{tools/*}' WHERE user_id = %(user)s",
        "method_denied",
    ),
    "a server switched off": (
        "UPDATE mcp_servers SET is_enabled = false WHERE id = %(server)s",
        "server_not_found",
    ),
    "a tool switched off": (
        "UPDATE server_tools SET is_enabled = false WHERE server_id = %(server)s",
        "method_denied",
    ),
    "a breaker opened": (
        "UPDATE circuit_breakers SET state = 'open' WHERE server_id = %(server)s",
        "circuit_open",
    ),
    "a pool and its queue closed": (
        "WITH queue AS (UPDATE request_queues SET is_accepting_requests = false, max_size = 0"
        "                WHERE server_id = %(server)s AND queue_name = '')"
        " UPDATE connection_pools SET timeout_ms = 1, max_size = 1 WHERE server_id = %(server)s"
        " AND pool_name = ''",
        None,
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_operator_s_sql_is_obeyed_at_once(scene: Scene, change: str):
    user = UserFactory(tenant=scene.tenant)
    EnhancedAPIKey.objects.filter(id=scene.key.id).update(user=user)
    ServerToolFactory(server=scene.server, name="add", schema_hash="x")
    if change == "a rule changed":
        ServerAccessControl.objects.create(server=scene.server, user=user)
    assert scene.call().status_code == 200
    statement, expected = CHANGES[change]
    ids = {"key": scene.key.id, "user": user.id, "tenant": scene.tenant.id}
    with connection.cursor() as cursor:
        cursor.execute(statement, ids | {"server": scene.server.id})
    if expected is None:
        gate = told[scene.url].plane.upstreams.all()[0].gate
        wait_until(lambda: scene.send().status_code == 200 and not gate.limits.accepting)
        assert (gate.limits.slots, gate.limits.wait_seconds) == (1, 0.001)
    else:
        wait_until(lambda: scene.send().status_code != 200)
        assert reason(scene.send()) == expected


def test_a_new_server_stands_before_the_shared_one_at_once(scene: Scene):
    MCPServerFactory(tenant=None, slug="common", endpoint_url="http://127.0.0.1:9/")
    assert reason(scene.call(slug="common")) == "upstream_unreachable"
    MCPServerFactory(tenant=scene.tenant, slug="common", endpoint_url=scene.peer.url)
    wait_until(lambda: scene.send(slug="common").status_code == 200)


def test_an_expiry_needs_no_notice(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    EnhancedAPIKey.objects.filter(id=scene.key.id).update(expires_at=now() + timedelta(hours=1))
    assert scene.call().status_code == 200
    monkeypatch.setattr("gateway.proxy.exchange.now", lambda: now() + timedelta(hours=2))
    assert reason(scene.send()) == "key_expired"


def test_a_lost_listener_is_replaced_and_nothing_is_missed(scene: Scene):
    assert scene.call().status_code == 200
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'mcp-gateway changes'"
        )
        assert cursor.fetchall() == [(True,)]
        cursor.execute("UPDATE mcp_servers SET is_enabled = false")
    wait_until(lambda: scene.send().status_code == 404)
    wait_until(lambda: told[scene.url].plane.contact.era is not None)


# ---------------------------------------------------------------- PostgreSQL is away


class Clock:
    """Monotonic seconds that a test moves on."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def relay(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    with relayed(monkeypatch) as relay:
        yield relay


@pytest.fixture
def cuttable(
    relay: Relay, clock: Clock, peer: Peer, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Scene]:
    """A scene whose gateway alone loses its database when the relay is cut."""
    settings.GATEWAY_ALLOW_PRIVATE_UPSTREAMS = True
    settings.GATEWAY_STALE_SECONDS = 300
    monkeypatch.setattr("gateway.proxy.plane.GAUGE_SECONDS", 0.1)
    monkeypatch.setattr("gateway.proxy.watch.LONGEST_PAUSE", 0.2)
    tenant = TenantFactory()
    server = MCPServerFactory(tenant=tenant, endpoint_url=peer.url)
    key = EnhancedAPIKeyFactory(tenant=tenant)
    with running_gateway(DataPlane(Contact(clock=clock))) as url:
        scene = Scene(url, tenant, server, key, peer)
        assert scene.call().status_code == 200
        yield scene
        relay.mend()
        wait_until(lambda: told[url].plane.contact.era is not None, seconds=20)


def ready(scene: Scene) -> httpx2.Response:
    return httpx2.get(f"{scene.url}/health/ready", trust_env=False)


def contact_of(scene: Scene) -> Contact:
    return told[scene.url].plane.contact


def away(scene: Scene, relay: Relay) -> None:
    relay.cut()
    wait_until(lambda: contact_of(scene).is_away)


def test_warm_keys_are_answered_and_cold_ones_are_not(cuttable: Scene, relay: Relay, clock: Clock):
    assert ready(cuttable).json() == {"status": "ok"}
    away(cuttable, relay)
    assert [cuttable.send().status_code for _ in range(5)] == [200] * 5
    other = EnhancedAPIKeyFactory(tenant=cuttable.tenant)
    for cold in (generate_key().text, other.text, cuttable.key.text[:-4] + "zzzz"):
        refused = cuttable.send(key=cold)
        assert (refused.status_code, reason(refused)) == (503, "database_unavailable")
        assert int(refused.headers["retry-after"]) >= 1
    assert ready(cuttable).status_code == 200
    assert set(ready(cuttable).json()) == {"status", "database_away_since"}

    clock.seconds += 301
    assert reason(cuttable.send()) == "database_unavailable"
    assert ready(cuttable).status_code == 503
    assert ready(cuttable).json()["reason"] == "database"

    relay.mend()
    wait_until(lambda: cuttable.send().status_code == 200, seconds=20)
    assert cuttable.send(key=other.text).status_code == 200
    assert ready(cuttable).json() == {"status": "ok"}


def test_with_zero_seconds_nothing_is_answered_from_memory(
    cuttable: Scene, relay: Relay, settings: Any
):
    settings.GATEWAY_STALE_SECONDS = 0
    assert cuttable.send().status_code == 200
    away(cuttable, relay)
    assert reason(cuttable.send()) == "database_unavailable"
    assert ready(cuttable).status_code == 503


def test_what_changed_meanwhile_counts_as_soon_as_the_database_is_back(
    cuttable: Scene, relay: Relay
):
    away(cuttable, relay)
    EnhancedAPIKey.objects.filter(id=cuttable.key.id).update(is_active=False)
    assert cuttable.send().status_code == 200  # it cannot know yet
    relay.mend()
    wait_until(lambda: contact_of(cuttable).era is not None, seconds=20)
    assert reason(cuttable.send()) == "invalid_credentials"


def test_a_gateway_that_starts_without_a_database_is_not_ready(
    relay: Relay, peer: Peer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("gateway.proxy.watch.LONGEST_PAUSE", 0.2)
    relay.cut()
    with running_gateway() as url:
        scene = Scene(url, TenantFactory(), MCPServerFactory(), EnhancedAPIKeyFactory(), peer)
        wait_until(lambda: contact_of(scene).is_away)
        assert ready(scene).status_code == 503
        assert reason(scene.send()) == "database_unavailable"
        relay.mend()
        wait_until(lambda: ready(scene).status_code == 200, seconds=20)


@pytest.mark.parametrize("is_tiny", [True, False], ids=["a tiny bound", "no folder"])
def test_log_rows_without_room_are_counted_and_told_and_no_audit_row_is_lost(
    relay: Relay,
    peer: Peer,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    is_tiny: bool,
):
    settings.GATEWAY_ALLOW_PRIVATE_UPSTREAMS = settings.GATEWAY_METRICS_OPEN = True
    settings.GATEWAY_SPOOL_DIR = tmp_path / "spool"
    settings.GATEWAY_SPOOL_MAX_BYTES = 1 if is_tiny else 10**9
    monkeypatch.setattr("gateway.proxy.watch.LONGEST_PAUSE", 0.2)
    monkeypatch.setattr("gateway.proxy.plane.POOL_WAIT_SECONDS", 0.3)
    tenant = TenantFactory()
    server = MCPServerFactory(tenant=tenant, endpoint_url=peer.url)
    with running_gateway() as url:
        scene = Scene(url, tenant, server, EnhancedAPIKeyFactory(tenant=tenant), peer)
        scene.row(scene.call())
        away(scene, relay)
        if not is_tiny:
            shutil.rmtree(settings.GATEWAY_SPOOL_DIR)
            settings.GATEWAY_SPOOL_DIR.touch()
        assert [scene.send().status_code for _ in range(5)] == [200] * 5
        assert scene.send(key="").status_code == 401
        page = f"{url}/metrics"
        wait_until(
            lambda: re.search(
                r"^mcp_gateway_log_rows_dropped_total(\{.*\})? 6(\.0)?$",
                httpx2.get(page, trust_env=False).text,
                re.MULTILINE,
            )
        )
        relay.mend()
        wait_until(lambda: contact_of(scene).era is not None, seconds=20)
    assert RequestLog.objects.count() == 1
    told_of = AuditLog.objects.filter(action__in=["call.deny", "request_log.drop"])
    assert {entry.action: entry.details["count"] for entry in told_of} == {
        "call.deny": 1,
        "request_log.drop": 6,
    }


def test_a_dead_server_is_left_alone_meanwhile_and_its_row_is_told(cuttable: Scene, relay: Relay):
    breaker = CircuitBreaker.objects.filter(server=cuttable.server)
    breaker.update(failure_threshold=3, timeout_ms=60_000)
    assert cuttable.call().status_code == 200
    away(cuttable, relay)
    cuttable.peer.behave = status(500)
    assert [cuttable.send().status_code for _ in range(3)] == [500] * 3
    seen = len(cuttable.peer.seen)
    assert reason(cuttable.send()) == "circuit_open"
    assert len(cuttable.peer.seen) == seen
    assert breaker.get().state == "closed"  # the row could not be told

    relay.mend()
    found = wait_until(lambda: breaker.filter(state="open").first(), seconds=20)
    assert (found.failure_count, found.total_failures) == (3, 3)
    assert reason(cuttable.call()) == "circuit_open"


def back(scene: Scene, relay: Relay) -> None:
    """Notices come again, and what was seen meanwhile is told; nobody calls."""
    relay.mend()
    plane = told[scene.url].plane
    wait_until(lambda: plane.contact.era is not None and not plane.breaker._local, seconds=20)


@pytest.mark.parametrize("failures", [0, 1])
def test_a_second_outage_finds_what_served_in_the_first(
    cuttable: Scene, relay: Relay, failures: int
):
    """The route of a call from memory stays known, whether its breaker had news or not."""
    away(cuttable, relay)
    cuttable.peer.behave = status(500) if failures else answer
    assert cuttable.send().status_code == (500 if failures else 200)
    back(cuttable, relay)
    assert CircuitBreaker.objects.get(server=cuttable.server).total_failures == failures
    away(cuttable, relay)
    cuttable.peer.behave = answer
    assert cuttable.send().status_code == 200


@pytest.mark.django_db(transaction=True)
def test_breakers_in_memory_stay_until_the_database_is_known_to_be_back():
    """Gauges may get through before that: calls would only put the breakers there again."""
    server = MCPServerFactory()

    async def story() -> None:
        plane = DataPlane()
        orm = OrmThreads()
        plane.breaker = BreakerClient(orm, plane.contact, changed=plane.routes.renew)
        async with async_pool(max_size=1, timeout=5) as plane.pool:
            plane.log = LogWriter(plane.pool)
            route = await plane.find_route(server.id)
            plane.contact.away()
            permit = await plane.breaker.permit(route)
            await plane.breaker.failed(permit, timed_out=False)
            await plane._write_gauges()
            assert list(plane.breaker._local) == [route.breaker_id]
            plane.contact.reachable()
            await plane._write_gauges()
            assert not plane.breaker._local
        orm.close()

    asyncio.run(story())
    assert CircuitBreaker.objects.get(server=server).total_failures == 1


# ---------------------------------------------------------------- PostgreSQL is frozen


def test_a_silent_database_holds_up_no_answer_of_a_failing_server(
    cuttable: Scene, relay: Relay, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("gateway.proxy.orm.DATABASE_SECONDS", 0.3)
    cuttable.peer.behave = status(500)
    relay.freeze()
    assert cuttable.send().status_code == 500
    relay.mend()
    breaker = CircuitBreaker.objects.filter(server=cuttable.server)
    wait_until(lambda: breaker.get().total_failures == 1, seconds=20)


def test_what_was_given_up_is_undone_when_the_database_answers_again(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("gateway.proxy.orm.DATABASE_SECONDS", 0.3)
    threads = OrmThreads()

    async def story() -> None:
        assert await threads.run(Tenant.objects.count) == 0
        relay.freeze()
        with pytest.raises(OperationalError, match="did not answer"):
            await threads.run(TenantFactory)
        relay.mend()

    asyncio.run(story())
    threads._threads.shutdown(wait=True)
    assert not Tenant.objects.exists()


def test_a_silent_database_does_not_keep_a_gateway_from_stopping(relay: Relay, peer: Peer):
    server = MCPServerFactory(endpoint_url=peer.url)
    with running_gateway() as url:
        scene = Scene(url, server.tenant, server, EnhancedAPIKeyFactory(tenant=server.tenant), peer)
        scene.call()
        relay.freeze()
        scene.send(timeout=30)


async def refused(**_: Any) -> None:
    raise psycopg.OperationalError("no connection to listen on")


async def deaf(**_: Any) -> psycopg.AsyncConnection[Any]:
    """As through a transaction pooler: LISTEN works, and what is told goes somewhere else."""
    parameters = connections["default"].get_connection_params() | {"dbname": "postgres"}
    parameters.pop("cursor_factory", None)
    return await psycopg.AsyncConnection.connect(**parameters, autocommit=True)


@pytest.mark.parametrize("listener", [refused, deaf])
def test_without_a_listener_that_hears_each_call_asks(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, listener: Any
):
    """A wrong DATABASE_DIRECT_URL costs speed, and no change is missed."""
    monkeypatch.setattr("gateway.proxy.watch.async_direct_connection", listener)
    monkeypatch.setattr("gateway.proxy.watch.BEAT_SECONDS", 0.1)
    with running_gateway() as url:
        alone = Scene(url, scene.tenant, scene.server, scene.key, scene.peer)
        wait_until(lambda: contact_of(alone).is_reachable)
        assert contact_of(alone).era is None
        assert alone.send().status_code == 200
        MCPServer.objects.filter(id=scene.server.id).update(is_enabled=False)
        assert reason(alone.send()) == "server_not_found"


@pytest.mark.django_db(transaction=True)
def test_no_notice_is_lost_beside_the_one_that_proves_hearing():
    """All of one packet counts; a fault while listening ends the trust in what is remembered."""
    contact, told_labels = Contact(), []
    parameters = connections["default"].get_connection_params()

    async def announce(text: str) -> None:
        with psycopg.connect(**parameters, autocommit=True) as own:
            own.execute(
                "SELECT pg_notify('gateway_changes', t) FROM unnest(%s::text[]) AS t",
                [["a.id=before", text, "a.id=after"]],
            )

    async def back() -> None:
        await announce("a.id=fault")

    def forget(label: str) -> None:
        told_labels.append(label)
        if label == "a.id=fault":
            raise RuntimeError("on purpose")

    async def story() -> None:
        watch = Watch(contact, forget=forget, announce=announce, back=back)
        attempt = asyncio.create_task(watch._one_attempt())
        await asyncio.wait_for(attempt, 10)

    asyncio.run(story())
    assert [label for label in told_labels if "mark" not in label] == [
        "a.id=before", "a.id=after", "a.id=before", "a.id=fault",
    ]  # fmt: skip
    assert contact.era is None


# ---------------------------------------------------------------- a flood of calls


def test_after_its_notice_no_call_of_a_revoked_key_passes(scene: Scene):
    """Calls that begin once the gateway was told are refused, every one, in a flood of them."""
    assert scene.call().status_code == 200
    obeyed = threading.Event()
    late: list[int] = []

    def flood() -> None:
        headers = {"content-type": "application/json", "x-api-key": scene.key.text}
        with httpx2.Client(trust_env=False, headers=headers) as client:
            answers = 0
            while answers < 20:
                was_obeyed = obeyed.is_set()
                answer = client.post(
                    f"{scene.url}/mcp/{scene.server.slug}",
                    content=b'{"jsonrpc":"2.0","id":1,"method":"ping"}',
                )
                if was_obeyed:
                    answers += 1
                    late.append(answer.status_code)

    threads = [threading.Thread(target=flood) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        EnhancedAPIKey.objects.filter(id=scene.key.id).update(is_active=False)
        label = f"enhanced_api_keys.id={scene.key.id}"
        wait_until(lambda: label in told[scene.url].seen)
    finally:
        obeyed.set()
        for thread in threads:
            thread.join(30)
    assert late == [401] * 80


# ---------------------------------------------------------------- notices of others


def test_what_anybody_may_send_drops_nothing(scene: Scene, caplog: pytest.LogCaptureFixture):
    assert scene.call().status_code == 200
    plane = told[scene.url].plane
    remembered = len(plane.keys), len(plane.routes)
    junk = ["junk", "junk.id=1", "users.name=x", "users.id=", "mcp_servers.", "=", "x" * 99]
    with connection.cursor() as cursor:
        for text in junk:
            cursor.execute("SELECT pg_notify('gateway_changes', %s)", [text])
    wait_until(lambda: set(junk) <= set(told[scene.url].seen))
    assert (len(plane.keys), len(plane.routes)) == remembered == (1, 1)
    assert caplog.text.count("somebody else sends notices") == 1


@pytest.mark.django_db
def test_each_trigger_that_tells_of_changes_is_believed() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT tgrelid::regclass::text, tgargs FROM pg_trigger"
            " WHERE tgfoid = 'registry_change_notice_v1'::regproc AND tgnargs > 0"
        )
        found: dict[str, set[str]] = {}
        for table, columns in cursor.fetchall():
            found.setdefault(table, set()).update(bytes(columns).decode()[:-1].split("\0"))
    assert found == TOLD_OF
