"""Health checks and tool syncs against real servers on loopback."""

from datetime import timedelta

import pytest
from cryptography.fernet import Fernet
from django.utils.timezone import now

from registry import health, tasks, upstream
from registry.audit import Actor
from registry.db.encryption import DecryptionError
from registry.health import Checked
from registry.mcp_client import Limits, UpstreamError, UpstreamTooLarge
from registry.models import HealthStatus, MCPServer, ServerTool
from registry.services import health_check, server_update, tools_sync
from tests.factories import MCPServerFactory, ServerToolFactory
from tests.mcp_server import (
    answering,
    closed_port,
    http_answer,
    mcp_over_http,
    mcp_over_sse,
    running,
    sample_server,
)

pytestmark = pytest.mark.django_db
ACTOR = Actor(service_name="test")


@pytest.fixture(autouse=True)
def loopback(settings):
    settings.GATEWAY_ALLOW_PRIVATE_UPSTREAMS = True
    settings.GATEWAY_HEALTH_TIMEOUT_MS = 3000


def server_at(url, **fields):
    return MCPServerFactory(endpoint_url=url, **fields)


def checked(server, **later):
    health_check(server=server, at=now() + timedelta(**later))
    server.refresh_from_db()
    return server


def test_a_healthy_server_tells_what_it_is():
    with mcp_over_http() as url:
        server = checked(server_at(url))
    assert server.health_status == "healthy"
    assert server.version == "3.2.1"
    assert "2026-07-28" in server.protocol_versions
    assert "tools" in server.capabilities
    assert server.avg_response_time > 0
    assert server.success_rate == 1
    assert server.health_metadata == {"server_name": "test-server"}


def test_sse_and_stored_credentials_work():
    seen = []

    async def app(scope, receive, send):
        if scope["type"] == "http":
            seen.append(dict(scope["headers"]).get(b"x-api-key"))
        await inner(scope, receive, send)

    with mcp_over_sse() as url:
        assert checked(server_at(url, transport_type="sse")).health_status == "healthy"

    inner = sample_server().streamable_http_app()
    with running(app) as base:
        server = server_at(f"{base}/mcp", credentials={"headers": {"X-API-Key": "s3cret"}})
        assert checked(server).health_status == "healthy"
    assert set(seen) == {b"s3cret"}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (http_answer(b"<html>", content_type="text/html"), "Unexpected content type"),
        (http_answer(b'{"a": 1}'), "no JSON-RPC message"),
        (b"garbage\r\n\r\n", "does not speak HTTP"),
        (http_answer(b"", status="401 Unauthorized"), "credentials are missing or wrong"),
        (http_answer(b"", status="500 Oops"), "answers HTTP 500"),
        (http_answer(b"", status="307 Moved\r\nLocation: /elsewhere"), "redirects to /elsewhere"),
    ],
)
def test_a_server_that_answers_nonsense_is_unhealthy(answer, words):
    with answering(lambda _head: answer) as url:
        server = checked(server_at(url))
    assert server.health_status == "unhealthy"
    assert words in server.health_metadata["error"]
    assert server.success_rate == 0


def test_a_dead_a_hanging_and_an_unresolvable_server_are_unhealthy(settings):
    settings.GATEWAY_HEALTH_TIMEOUT_MS = 300
    dead = checked(server_at(f"http://127.0.0.1:{closed_port()}/mcp"))
    assert "No connection to 127.0.0.1" in dead.health_metadata["error"]
    lost = checked(server_at("http://nowhere.invalid/mcp"))
    assert "has no address" in lost.health_metadata["error"]
    with answering(lambda _head: None) as url:
        began = now()
        hanging = checked(server_at(url))
        assert now() - began < timedelta(seconds=3)
    assert hanging.health_metadata["error"] == "It gave no answer within 0.3 seconds."
    assert {dead.health_status, lost.health_status, hanging.health_status} == {"unhealthy"}


def test_private_addresses_are_not_connected_to(settings):
    settings.GATEWAY_ALLOW_PRIVATE_UPSTREAMS = False
    heads = []
    with answering(heads.append) as url:
        server = checked(server_at(url))
    assert "not a public address" in server.health_metadata["error"]
    assert heads == []


def test_the_checked_address_is_the_one_connected_to(monkeypatch):
    """The name resolves once; nothing asks DNS again between the check and the connection."""
    asked, heads = [], []

    def resolve(host, _port):
        asked.append(host)
        return ["127.0.0.1"]

    def answer(head):
        heads.append(head)
        return http_answer(b"", status="500 Oops")

    monkeypatch.setattr(upstream, "resolve", resolve)
    with answering(answer) as url:
        server = checked(server_at(url.replace("127.0.0.1", "rebinding.invalid")))
    assert server.health_metadata["error"] == "It answers HTTP 500."
    assert len(asked) == len(heads)
    assert b"host: rebinding.invalid:" in heads[0].lower()


def test_a_slow_or_half_broken_server_is_degraded(settings):
    settings.GATEWAY_HEALTH_SLOW_MS = 0.001
    with mcp_over_http() as url:
        server = checked(server_at(url))
    assert server.health_status == "degraded"
    assert "is the limit" in server.health_metadata["error"]


def test_what_cannot_be_checked_stays_unknown_and_costs_no_success():
    server = checked(server_at("wss://mcp.example.org/", transport_type="websocket"))
    assert (server.health_status, server.success_rate) == ("unknown", None)
    assert "websocket" in server.health_metadata["error"]


def test_maintenance_stays_and_averages_move():
    server = MCPServerFactory(
        health_status="maintenance",
        avg_response_time=100.0,
        success_rate=1.0,
        health_metadata={"synced_at": "x", "error": "old"},
    )
    bad = Checked(server_id=server.pk, status=HealthStatus.UNHEALTHY, error="It is away.")
    good = Checked(server_id=server.pk, status=HealthStatus.HEALTHY, response_time_ms=200.0)
    assert health.record([bad], at=now()) == 1
    server.refresh_from_db()
    assert server.success_rate == pytest.approx(0.8)
    assert server.avg_response_time == 100.0
    assert server.health_metadata == {"synced_at": "x", "error": "It is away."}
    health.record([good], at=now() + timedelta(minutes=1))
    server.refresh_from_db()
    assert server.health_status == "maintenance"
    assert server.avg_response_time == pytest.approx(120.0)
    assert server.health_metadata == {"synced_at": "x"}


def test_an_older_check_does_not_overwrite_a_newer_one(django_capture_on_commit_callbacks):
    server = MCPServerFactory(health_status="healthy", last_health_check=now())
    late = Checked(server_id=server.pk, status=HealthStatus.UNHEALTHY, error="x")
    with django_capture_on_commit_callbacks() as left:
        assert health.record([late], at=now() - timedelta(minutes=1)) == 0
    assert left == []


def test_a_batch_is_one_update(django_assert_num_queries):
    servers = MCPServerFactory.create_batch(5)
    results = [Checked(server_id=s.pk, status=HealthStatus.HEALTHY) for s in servers]
    with django_assert_num_queries(3):  # savepoint, update, release
        assert health.record(results, at=now()) == 5


def test_the_round_skips_disabled_fresh_and_made_up_servers():
    with mcp_over_http() as url:
        due = server_at(url)
        server_at(url, is_enabled=False)
        server_at(url, last_health_check=now())
        seeded = {"health_metadata": {"seeded": True}, "health_status": "degraded"}
        made_up = server_at("https://code-search.mcp.invalid/mcp", **seeded)
        assert tasks.servers_health_check(at=now()) == 1
        assert MCPServer.objects.get(health_status="healthy") == due

        server_update(actor=ACTOR, server=made_up, endpoint_url=url)
        assert tasks.servers_health_check(at=now() + timedelta(seconds=5)) == 1
    made_up.refresh_from_db()
    assert made_up.health_status == "healthy", "at a real address it is a real server"


def test_a_server_under_a_reserved_name_is_checked_like_any_other():
    real = server_at("https://search.invalid/mcp")
    assert tasks.servers_health_check(at=now()) == 1
    real.refresh_from_db()
    assert real.health_status == "unhealthy"
    assert "has no address" in real.health_metadata["error"]


def test_a_round_that_is_told_to_stop_stops():
    server_at("https://mcp.example.org/")
    assert tasks.servers_health_check(at=now(), stop=lambda: True) == 0


def test_sync_adds_changes_and_retires_tools_and_keeps_their_counters():
    with mcp_over_http(sample_server(tools=3)) as url:
        server = server_at(url)
        first = tools_sync(server=server, at=now())
    assert (first.tools, first.added, first.resources, first.prompts) == (3, 3, 2, 1)
    ServerTool.objects.filter(name="tool_2").update(total_calls=7)
    ServerTool.objects.filter(name="tool_1").update(schema_hash="old", is_enabled=False)

    with mcp_over_http(sample_server(tools=2)) as url:
        MCPServer.objects.update(endpoint_url=url)
        server.refresh_from_db()
        second = tools_sync(server=server, at=now())
    assert (second.added, second.changed, second.vanished) == (0, 1, 1)
    gone = ServerTool.objects.get(name="tool_2")
    assert (gone.is_enabled, gone.total_calls, gone.schema_hash) == (False, 7, "")
    assert not ServerTool.objects.get(name="tool_1").is_enabled  # an operator's word stays

    with mcp_over_http(sample_server(tools=3)) as url:
        MCPServer.objects.update(endpoint_url=url)
        server.refresh_from_db()
        tools_sync(server=server, at=now())
    back = ServerTool.objects.get(name="tool_2")
    assert (back.is_enabled, back.total_calls) == (True, 7)
    assert ServerTool.objects.count() == 3


def test_an_unchanged_listing_writes_no_tool():
    with mcp_over_http() as url:
        server = server_at(url)
        tools_sync(server=server, at=now())
        before = set(ServerTool.objects.values_list("pk", "updated_at"))
        assert tools_sync(server=server, at=now()).changed == 0
    assert set(ServerTool.objects.values_list("pk", "updated_at")) == before


def test_a_listing_without_end_is_refused_and_nothing_is_lost(monkeypatch):
    with mcp_over_http(sample_server(tools=30)) as url:
        server = server_at(url)
        known = ServerToolFactory(server=server, name="known")
        monkeypatch.setattr(health, "limits", lambda: Limits(entries=20))
        with pytest.raises(UpstreamTooLarge, match="more than 20 tools"):
            tools_sync(server=server, at=now())
        monkeypatch.setattr(health, "limits", lambda: Limits(response_bytes=3000))
        with pytest.raises(UpstreamTooLarge, match="3,000 bytes"):
            tools_sync(server=server, at=now())
    known.refresh_from_db()
    server.refresh_from_db()
    assert known.is_enabled
    assert "3,000 bytes" in server.health_metadata["sync_error"]


def test_what_postgresql_cannot_store_is_cleaned_and_misfits_are_left_out():
    mcp = sample_server(tools=1)
    mcp.add_tool(lambda: "x", name="nul", description="a\x00b", meta={"big": 10**40})
    mcp.add_tool(lambda: "x", name="n" * 300)
    with mcp_over_http(mcp) as url:
        result = tools_sync(server=server_at(url), at=now())
    assert (result.tools, result.skipped) == (2, 1)
    assert ServerTool.objects.get(name="nul").description == "ab"


def test_a_failing_sync_of_the_round_is_noted():
    server = server_at(f"http://127.0.0.1:{closed_port()}/mcp", health_status="healthy")
    assert tasks.servers_tools_sync(at=now()) == 0
    server.refresh_from_db()
    assert "No connection" in server.health_metadata["sync_error"]
    with pytest.raises(UpstreamError):
        tools_sync(server=server, at=now())


def test_the_sync_round_waits_ten_minutes():
    with mcp_over_http() as url:
        server_at(url, health_status="healthy")
        assert tasks.servers_tools_sync(at=now()) == 1
        assert tasks.servers_tools_sync(at=now()) == 0
        assert tasks.servers_tools_sync(at=now() + timedelta(minutes=10)) == 1


def test_a_lost_key_keeps_one_server_from_being_asked_and_no_other(settings):
    stored = {"headers": {"X-API-Key": "s3cret"}}
    healthy = HealthStatus.HEALTHY
    lost = server_at("http://127.0.0.1:9/", credentials=stored, health_status=healthy)
    settings.ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    with mcp_over_http() as url:
        well = server_at(url, credentials=stored, health_status=healthy)
        assert tasks.servers_tools_sync(at=now()) == 1
        assert tasks.servers_health_check(at=now()) == 2
    well.refresh_from_db()
    lost.refresh_from_db()
    assert well.health_status == "healthy"
    assert lost.health_status == "unknown"
    for words in ("error", "sync_error"):
        assert "not in ENCRYPTION_KEYS" in lost.health_metadata[words]
    tasks.server_first_contact(server_id=lost.pk, at=now())
    with pytest.raises(DecryptionError):
        lost.credentials.open()


def test_what_indexes_cover_is_written_once_a_minute_or_when_the_status_changes():
    server, at = MCPServerFactory(), now()

    def record(seconds: float, status: HealthStatus, ms: float | None) -> tuple[object, ...]:
        checked = Checked(server_id=server.pk, status=status, response_time_ms=ms)
        assert health.record([checked], at=at + timedelta(seconds=seconds)) == 1
        server.refresh_from_db()
        since = server.last_health_check - at
        return since.total_seconds(), server.health_status, server.avg_response_time

    assert record(0, HealthStatus.HEALTHY, 100.0) == (0, "healthy", 100.0)
    assert record(10, HealthStatus.HEALTHY, 200.0) == (0, "healthy", 100.0)
    assert record(20, HealthStatus.UNHEALTHY, None) == (20, "unhealthy", 100.0)
    assert record(30, HealthStatus.UNHEALTHY, None) == (20, "unhealthy", 100.0)
    assert server.success_rate == pytest.approx(0.64)  # no index covers it: each check counts
    assert record(80, HealthStatus.UNHEALTHY, None) == (80, "unhealthy", 100.0)
