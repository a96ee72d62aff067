"""What a caller of /mcp/<server> gets, and the row that each answer leaves."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from datetime import timedelta

import httpx2
import pytest
from aiohttp import web
from django.utils.timezone import now

from registry.models import MCPServer
from security.models import APIKey, EnhancedAPIKey, ServerAccessControl
from tests.factories import MCPServerFactory, ServerToolFactory, UserFactory
from tests.integration.gateway.conftest import CALL, Scene
from tests.peers import after, answer, break_off, events, status

from security.keys import generate_key, plain_hash  # isort: skip


def reason(response: httpx2.Response) -> str:
    return response.json()["error"]["data"]["reason"]


def test_a_call_is_answered_and_logged(scene: Scene):
    response = scene.call()

    assert response.status_code == 200
    assert response.json() == {"jsonrpc": "2.0", "id": 1, "result": {"echo": "tools/call"}}
    row = scene.row(response)
    assert (row.tenant_id, row.api_key_id) == (scene.tenant.id, scene.key.id)
    assert (row.rpc_method, row.tool_name) == ("tools/call", "add")
    assert (row.target_server_id, row.status_code, row.error_type) == (scene.server.id, 200, "")
    assert row.response_size_bytes == len(response.content)
    assert 0 < row.upstream_ms < row.duration_ms


def test_the_caller_s_credentials_stay_and_the_server_s_own_are_sent(scene: Scene):
    MCPServer.objects.filter(id=scene.server.id).update(
        credentials={"headers": {"Authorization": "Bearer upstream-secret"}}
    )
    headers = {"cookie": "a=b", "x-custom": "1", "mcp-session-id": "s1", "x-request-id": "mine"}
    response = scene.call(headers=headers)

    seen = scene.peer.seen[0]["headers"]
    assert seen["authorization"] == "Bearer upstream-secret"
    assert seen["mcp-session-id"] == "s1"
    assert seen["x-request-id"] == response.headers["x-request-id"] != "mine"
    assert not {"cookie", "x-custom", "x-api-key"} & set(seen)
    assert scene.row(response).request_metadata == {"client_request_id": "mine"}


def test_the_body_is_forwarded_byte_for_byte(scene: Scene):
    body = b'{ "jsonrpc":"2.0",\n "id" : "x", "method":"tools/list"}'
    scene.call(body)
    assert scene.peer.seen[0]["body"] == body


@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
def test_a_key_is_taken_from_either_header(scene: Scene, header: str):
    value = scene.key.text if header == "x-api-key" else f"bearer {scene.key.text}"
    assert scene.call(key="", headers={header: value}).status_code == 200


def test_missing_and_wrong_keys_are_refused_with_a_challenge_and_a_row(scene: Scene):
    missing = scene.call(key="")
    assert (missing.status_code, reason(missing)) == (401, "missing_credentials")
    assert missing.headers["www-authenticate"].startswith("Bearer")
    assert missing.json()["id"] is None  # who has no key has nothing parsed

    wrong = scene.call(key=scene.key.text[:-1] + ("0" if scene.key.text[-1] != "0" else "1"))
    assert (wrong.status_code, reason(wrong)) == (401, "invalid_credentials")
    unknown = scene.call(key=generate_key().text)
    assert unknown.json()["error"]["message"] == wrong.json()["error"]["message"]

    assert scene.row(missing).api_key_id is None
    attempt = scene.row(wrong)
    assert (attempt.api_key_id, attempt.tenant_id) == (None, None)
    assert attempt.request_metadata == {"key_prefix": scene.key.key_prefix}
    assert scene.row(wrong).error_type == "invalid_credentials"
    assert scene.row(unknown).status_code == 401
    assert not scene.peer.seen


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"is_active": False}, (401, "invalid_credentials")),
        ({"is_locked": True}, (401, "key_locked")),
        ({"is_locked": True, "locked_until": now() + timedelta(hours=1)}, (401, "key_locked")),
        ({"is_locked": True, "locked_until": now() - timedelta(hours=1)}, None),
        ({"expires_at": now() - timedelta(seconds=1)}, (401, "key_expired")),
        ({"ip_whitelist": ["203.0.113.0/24"]}, (403, "ip_not_allowed")),
        ({"ip_whitelist": ["127.0.0.0/8"]}, None),
        ({"scopes": ["read"]}, (403, "scope_missing")),
        ({"scopes": ["admin"]}, None),
        ({"allowed_servers": ["another"]}, (403, "server_not_allowed")),
        ({"allowed_methods": ["tools/list"]}, (403, "method_denied")),
        ({"allowed_methods": ["tools/call:ad*"]}, None),
    ],
)
def test_the_key_s_own_limits(scene: Scene, change: dict, expected: tuple[int, str] | None):
    EnhancedAPIKey.objects.filter(id=scene.key.id).update(**change)
    response = scene.call()
    if expected is None:
        assert response.status_code == 200
    else:
        assert (response.status_code, reason(response)) == expected
        row = scene.row(response)
        assert (row.status_code, row.error_type, row.api_key_id) == (*expected, scene.key.id)


def test_rules_decide_by_the_most_specific_subject(scene: Scene):
    user = UserFactory(tenant=scene.tenant)
    EnhancedAPIKey.objects.filter(id=scene.key.id).update(user=user)
    rules = ServerAccessControl.objects
    rules.create(server=scene.server, tenant=scene.tenant, can_proxy=False)
    assert reason(scene.call()) == "server_not_allowed"
    rules.create(server=scene.server, user=user, denied_methods=["tools/call:add"])
    assert reason(scene.call()) == "method_denied"
    rules.create(server=scene.server, api_key=scene.key)
    assert scene.call().status_code == 200


def test_a_rule_s_days_are_kept(scene: Scene):
    other_days = sorted(set(range(7)) - {now().weekday(), (now() + timedelta(hours=1)).weekday()})
    ServerAccessControl.objects.create(
        server=scene.server, tenant=scene.tenant, allowed_days=other_days
    )
    response = scene.call()
    assert (response.status_code, reason(response)) == (403, "outside_allowed_time")


def test_a_tenant_may_deny_by_default(scene: Scene):
    scene.tenant.settings = {"default_access": "deny"}
    scene.tenant.save()
    assert reason(scene.call()) == "server_not_allowed"


def test_servers_of_others_do_not_exist_and_own_ones_win_over_shared(scene: Scene):
    foreign = MCPServerFactory(endpoint_url=scene.peer.url)
    response = scene.call(slug=foreign.slug)
    assert (response.status_code, reason(response)) == (404, "server_not_found")
    assert scene.row(response).target_server_id is None

    shared = MCPServerFactory(tenant=None, slug="common", endpoint_url="http://127.0.0.1:9/")
    assert reason(scene.call(slug="common")) == "upstream_unreachable"
    MCPServerFactory(tenant=scene.tenant, slug=shared.slug, endpoint_url=scene.peer.url)
    assert scene.call(slug="common").status_code == 200


def test_an_address_without_a_server_says_where_servers_are_listed(scene: Scene):
    for method in ("POST", "GET"):
        answer = scene.call(slug="/", method=method)
        assert (answer.status_code, reason(answer)) == (404, "server_not_found")
        message = answer.json()["error"]["message"]
        assert "/mcp/<server>" in message
        assert "/api/v1/servers" in message


def test_the_hourly_limit_answers_429_with_retry_after(scene: Scene):
    EnhancedAPIKey.objects.filter(id=scene.key.id).update(rate_limit_per_hour=2)
    assert [scene.call().status_code for _ in range(2)] == [200, 200]
    refused = scene.call()
    assert (refused.status_code, reason(refused)) == (429, "rate_limited")
    assert 1 <= int(refused.headers["retry-after"]) <= 7200


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "batches"),
        (b'{"id": 1, "method": "ping"}', '"jsonrpc"'),
        (b'{"jsonrpc": "2.0", "id": 1}', "method is missing"),
        (b'{"jsonrpc": "2.0", "id": true, "method": "ping"}', "id must be"),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {}}', "'name'"),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call"}', "twice"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_malformed_messages_are_refused(scene: Scene, body: bytes, words: str):
    response = scene.call(body)
    assert (response.status_code, reason(response)) == (400, "invalid_request")
    assert words in response.json()["error"]["message"]
    assert not scene.peer.seen


def test_headers_must_name_the_body_s_call(scene: Scene):
    assert scene.call(headers={"mcp-method": "tools/call", "mcp-name": "add"}).status_code == 200
    for headers in ({"mcp-method": "tools/list"}, {"mcp-name": "delete"}):
        response = scene.call(headers=headers)
        assert response.status_code == 400
        assert response.json()["error"]["code"] == -32020


def test_too_large_a_request_is_refused_before_it_is_read(scene: Scene, settings):
    settings.GATEWAY_MAX_REQUEST_BYTES = 1000
    response = scene.call(b"x" * 2000)
    assert (response.status_code, reason(response)) == (413, "request_too_large")


def test_unlisted_origins_are_refused_and_listed_ones_get_cors(scene: Scene, settings):
    settings.GATEWAY_ALLOWED_ORIGINS = ["https://app.example.org"]
    refused = scene.call(headers={"origin": "https://evil.example.org"})
    assert (refused.status_code, reason(refused)) == (403, "origin_not_allowed")
    allowed = scene.call(headers={"origin": "https://app.example.org"})
    assert allowed.headers["access-control-allow-origin"] == "https://app.example.org"
    preflight = scene.call(method="OPTIONS", headers={"origin": "https://app.example.org"})
    assert preflight.status_code == 204
    assert "POST" in preflight.headers["access-control-allow-methods"]


@pytest.mark.parametrize(
    ("behave", "expected"),
    [
        (status(200, "<html>"), (502, "upstream_invalid")),
        (status(302), (502, "upstream_invalid")),
    ],
)
def test_what_is_no_mcp_answer_is_not_passed_on(scene: Scene, behave, expected):
    scene.peer.behave = behave
    response = scene.call()
    assert (response.status_code, reason(response)) == expected


@pytest.mark.parametrize("code", [400, 404, 500, 503])
def test_a_server_s_own_errors_pass_untouched(scene: Scene, code: int):
    scene.peer.behave = status(code, "its own words")
    response = scene.call()
    assert (response.status_code, response.text) == (code, "its own words")
    row = scene.row(response)
    assert row.status_code == code
    assert row.error_type == ("upstream_error" if code >= 500 else "")


def test_a_dead_server_answers_502_and_leaves_a_row(scene: Scene):
    MCPServer.objects.filter(id=scene.server.id).update(endpoint_url="http://127.0.0.1:9/mcp")
    response = scene.call()
    assert (response.status_code, reason(response)) == (502, "upstream_unreachable")
    assert scene.row(response).error_type == "upstream_unreachable"


def test_a_silent_server_answers_504(scene: Scene):
    scene.server.queues.update(processing_timeout_ms=100)
    scene.peer.behave = after(5)
    response = scene.call()
    assert (response.status_code, reason(response)) == (504, "upstream_timeout")


def test_private_addresses_are_refused_at_connect_time(scene: Scene, settings, caplog):
    settings.GATEWAY_ALLOW_PRIVATE_UPSTREAMS = False
    port = scene.peer.port
    for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]"):
        url = f"http://{host}:{port}/mcp"
        MCPServer.objects.filter(id=scene.server.id).update(endpoint_url=url)
        response = scene.call()
        assert (response.status_code, reason(response)) == (502, "upstream_unreachable")
        assert f"'{scene.server.slug}' cannot be reached" in response.json()["error"]["message"]
        assert "127.0.0.1" not in response.text, "the address is the operators' business"
    assert "127.0.0.1 is not a public address" in caplog.text
    assert not scene.peer.seen


def test_events_reach_the_caller_as_they_are_sent(scene: Scene):
    gates = [threading.Event() for _ in range(3)]
    scene.peer.behave = events(gates)
    url, headers = f"{scene.url}/mcp/{scene.server.slug}", {"x-api-key": scene.key.text}
    with httpx2.stream(
        "POST", url, json=CALL, headers=headers, timeout=5, trust_env=False
    ) as response:
        assert response.headers.get_list("x-accel-buffering") == ["no"]
        chunks = response.iter_text()
        for number, gate in enumerate(gates):
            gate.set()  # the next event is only sent once the one before was read
            assert next(chunks) == f"data: {number}\n\n"


def test_a_caller_that_leaves_ends_the_call_upstream(scene: Scene):
    gates, ended = [threading.Event(), threading.Event()], threading.Event()
    gates[0].set()
    scene.peer.behave = events(gates, ended=ended)
    url, headers = f"{scene.url}/mcp/{scene.server.slug}", {"x-api-key": scene.key.text}
    with httpx2.stream(
        "POST", url, json=CALL, headers=headers, timeout=5, trust_env=False
    ) as response:
        next(response.iter_text())
    assert ended.wait(5), "the upstream call went on"
    row = scene.row(response)
    assert row.error_type == "client_disconnected"


def test_an_answer_that_breaks_off_is_cut_and_logged(scene: Scene):
    scene.peer.behave = break_off
    with pytest.raises(httpx2.HTTPError):
        scene.call().raise_for_status()


def test_sessions_and_streams_pass_through(scene: Scene):
    async def with_session(request):
        response = await answer(request)
        response.headers["Mcp-Session-Id"] = "abc"
        return response

    scene.peer.behave = with_session
    assert scene.call().headers["mcp-session-id"] == "abc"
    scene.peer.behave = status(405)
    assert scene.call(method="GET").status_code == 405
    scene.call(method="DELETE", headers={"mcp-session-id": "abc"})
    assert scene.peer.seen[-1]["method"] == "DELETE"
    assert scene.call(method="PUT").status_code == 405


def test_a_plain_key_is_accepted_and_becomes_an_enhanced_one(scene: Scene):
    key = generate_key()
    plain = APIKey.objects.create(
        name="old",
        tenant=scene.tenant,
        key_prefix=key.prefix,
        key_hash=plain_hash(key),
        scopes=["proxy"],
    )
    assert scene.call(key=key.text).status_code == 200
    plain.refresh_from_db()
    assert not plain.is_active
    assert EnhancedAPIKey.objects.get(key_prefix=key.prefix).scopes == ["proxy"]
    assert scene.call(key=key.text).status_code == 200


def test_a_plain_key_stays_plain_when_upgrading_is_off(scene: Scene, settings):
    settings.GATEWAY_UPGRADE_PLAIN_KEYS = False
    key = generate_key()
    APIKey.objects.create(
        name="old",
        tenant=scene.tenant,
        key_prefix=key.prefix,
        key_hash=plain_hash(key),
        scopes=["proxy"],
    )
    assert scene.call(key=key.text).status_code == 200
    assert not EnhancedAPIKey.objects.filter(key_prefix=key.prefix).exists()


def test_what_a_call_used_is_counted_when_the_gateway_stops(scene: Scene):
    from tests.integration.gateway.conftest import running_gateway

    tool = ServerToolFactory(server=scene.server, name="add")
    with running_gateway() as url:
        other = Scene(url, scene.tenant, scene.server, scene.key, scene.peer)
        other.call()
        other.call(key=scene.key.text[:-4] + "zzzz")
    tool.refresh_from_db()
    scene.key.refresh_from_db()
    assert (tool.total_calls, tool.success_count, tool.error_count) == (1, 1, 0)
    assert tool.avg_execution_time > 0
    assert (scene.key.failed_attempts, scene.key.last_used is not None) == (1, True)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"is_active": False}, "invalid_credentials"),
        ({"expires_at": now() - timedelta(seconds=1)}, "key_expired"),
    ],
)
@pytest.mark.parametrize("upgrading", [True, False])
def test_a_plain_key_out_of_service_is_refused(
    scene: Scene, settings, change: dict, expected: str, upgrading: bool
):
    settings.GATEWAY_UPGRADE_PLAIN_KEYS = upgrading
    key = generate_key()
    fields = {"name": "old", "tenant": scene.tenant, "scopes": ["proxy"]} | change
    APIKey.objects.create(key_prefix=key.prefix, key_hash=plain_hash(key), **fields)
    response = scene.call(key=key.text)
    assert (response.status_code, reason(response)) == (401, expected)
    assert not scene.peer.seen


def test_the_plain_key_of_an_inactive_user_is_refused(scene: Scene, settings):
    settings.GATEWAY_UPGRADE_PLAIN_KEYS = False
    key, user = generate_key(), UserFactory(tenant=scene.tenant, is_active=False)
    APIKey.objects.create(
        name="old",
        tenant=scene.tenant,
        user=user,
        key_prefix=key.prefix,
        key_hash=plain_hash(key),
        scopes=["proxy"],
    )
    assert reason(scene.call(key=key.text)) == "invalid_credentials"


def test_a_switched_off_tool_cannot_be_called(scene: Scene):
    tool = ServerToolFactory(server=scene.server, name="add", is_enabled=False, schema_hash="x")
    response = scene.call()
    assert (response.status_code, reason(response)) == (403, "method_denied")
    assert "switched off" in response.json()["error"]["message"]
    # One that merely vanished from the server's list is for the server to refuse.
    type(tool).objects.filter(id=tool.id).update(schema_hash="")
    assert scene.call().status_code == 200


def test_headers_in_any_bytes_come_through(scene: Scene):
    async def odd(request):
        response = await answer(request)
        response.headers["Mcp-Note"] = "caf\u00e9 \u2603"
        return response

    scene.peer.behave = odd
    response = scene.call()
    assert response.status_code == 200
    raw = dict(response.headers.raw)
    assert raw[b"mcp-note"].decode() == "caf\u00e9 \u2603"


def test_what_the_gateway_itself_refuses_does_not_open_the_breaker(scene: Scene, settings):
    settings.GATEWAY_ALLOW_PRIVATE_UPSTREAMS = False
    scene.server.breakers.update(failure_threshold=1)
    for _ in range(3):
        assert reason(scene.call()) == "upstream_unreachable"


def test_large_bodies_are_read_as_well(scene: Scene):
    padding = "x" * 200_000
    message = CALL | {"params": {"name": "add", "arguments": {"text": padding}}}
    assert scene.call(message).status_code == 200
    assert padding.encode() in scene.peer.seen[0]["body"]


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 099 Foo",
        b"HTTP/1.1 999 Foo",
        b"HTTP/1.1 101 Foo",
        b"HTTP/1.1 200 OK\r\nMcp-A: a\x01b",
    ],
)
def test_a_server_that_answers_nonsense_costs_only_its_own_call(scene: Scene, head: bytes):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer_once() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                rest = b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
                connection.sendall(head + b"\r\n" + rest)

        threading.Thread(target=answer_once, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
        MCPServer.objects.filter(id=scene.server.id).update(endpoint_url=url)
        response = scene.call(timeout=5)
    assert response.status_code == 502
    assert reason(response) in {"upstream_invalid", "upstream_unreachable"}


@pytest.mark.parametrize("theirs", ["\\u0000", "\\ud800", "a\\u0000b"])
def test_no_header_keeps_a_call_out_of_the_log(scene: Scene, theirs: str):
    response = scene.call(headers={"x-request-id": theirs})
    assert scene.row(response).request_metadata == {"client_request_id": theirs}


def test_a_name_that_no_text_holds_is_logged_all_the_same(scene: Scene):
    body = b'{"jsonrpc":"2.0","id":1,"method":"prompts/get","params":{"name":"a\\u0000\\ud800"}}'
    response = scene.call(body)
    assert scene.row(response).request_metadata == {"name": "a?"}


@pytest.mark.parametrize(
    "body",
    [
        b'{"jsonrpc":"2.0","id":1,"method":"ping","Method":"tools/call"}',
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","Name":"b"}}',
        '{"jsonrpc":"2.0","id":1,"method":"ping","params":{},"param\u017f":{}}'.encode(),
        b'{"jsonrpc":"2.0","id":1,"method":"stream"}',
        b'{"jsonrpc":"2.0","id":1,"method":"session/end"}',
        '{"jsonrpc":"2.0","id":1,"method":"ping"}'.encode("utf-16"),
    ],
)
def test_what_another_reader_could_take_otherwise_is_refused(scene: Scene, body: bytes):
    response = scene.call(body)
    assert (response.status_code, reason(response)) == (400, "invalid_request")
    assert not scene.peer.seen


def test_odd_paths_and_lists_are_no_faults_of_ours(scene: Scene):
    assert reason(scene.call(slug="%00")) == "server_not_found"
    EnhancedAPIKey.objects.filter(id=scene.key.id).update(ip_whitelist=["garbage"])
    assert reason(scene.call()) == "ip_not_allowed"


def test_an_answer_that_drips_is_ended(scene: Scene):
    async def drip(request):
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.02)

    scene.server.queues.update(processing_timeout_ms=200)
    scene.peer.behave = drip
    with pytest.raises(httpx2.RemoteProtocolError):
        scene.call(timeout=5)


def test_a_trace_goes_on_at_the_server(scene: Scene):
    trace = {
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": "vendor=t61rcWkgMzE",
        "baggage": "team=search",
    }
    body = json.dumps(
        {**CALL, "params": {"name": "add", "_meta": {"traceparent": trace["traceparent"]}}},
        separators=(" ,", " :"),  # nobody's usual way to write it
    ).encode()
    assert scene.call(body, headers=trace).status_code == 200
    (seen,) = scene.peer.seen
    assert trace.items() <= seen["headers"].items()
    assert seen["body"] == body
