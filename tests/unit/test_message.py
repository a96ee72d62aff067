from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.proxy.headers import request_headers, response_headers
from gateway.proxy.message import InvalidMessage, check_headers, parse_message

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.binary(max_size=300) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_message_or_refused(body: bytes):
    try:
        parse_message(body)
    except InvalidMessage as error:
        assert str(error)


@given(
    method=st.text(min_size=1),
    id_=st.none() | st.integers() | st.text(),
    params=st.dictionaries(st.text(), JSON, max_size=3),
)
def test_a_request_is_read_as_it_was_written(method: str, id_: object, params: dict):
    body = {"jsonrpc": "2.0", "id": id_, "method": method, "params": params}
    if method in {"tools/call", "prompts/get"}:
        return
    message = parse_message(json.dumps(body).encode())
    assert (message.call.method, message.id) == (method, id_)


@pytest.mark.parametrize(
    ("method", "params", "name"),
    [
        ("tools/call", {"name": "add", "arguments": {}}, "add"),
        ("prompts/get", {"name": "greet"}, "greet"),
        ("resources/read", {"uri": "file:///a"}, "file:///a"),
        ("tools/list", {"name": "ignored"}, ""),
    ],
)
def test_the_name_of_what_is_called(method: str, params: dict, name: str):
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    assert parse_message(json.dumps(body).encode()).call.name == name


def test_answers_and_notifications_are_told_from_requests():
    def read(**fields: object):
        return parse_message(json.dumps({"jsonrpc": "2.0", **fields}).encode())

    assert read(id=1, result={}).is_reply
    assert read(id=1, error={"code": 1, "message": ""}).call.method == "response"
    assert read(method="notifications/cancelled").is_reply
    assert not read(id=1, method="tools/list").is_reply


def test_both_eras_state_their_protocol_version():
    old = {"jsonrpc": "2.0", "id": 1, "method": "initialize"}
    old["params"] = {"protocolVersion": "2025-11-25"}
    new = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    new["params"] = {"_meta": {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}}
    versions = [parse_message(json.dumps(m).encode()).protocol_version for m in (old, new)]
    assert versions == ["2025-11-25", "2026-07-28"]


@given(st.text(min_size=1))
def test_a_name_in_base64_equals_the_body_s(name: str):
    try:
        encoded = base64.b64encode(name.encode()).decode()
    except UnicodeEncodeError:
        return
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name}}
    message = parse_message(json.dumps(body).encode())
    check_headers(message, {"mcp-method": "tools/call", "mcp-name": f"=?base64?{encoded}?="})
    with pytest.raises(InvalidMessage):
        check_headers(message, {"mcp-name": "=?base64?%%%?="})


def test_only_listed_headers_cross_the_gateway():
    incoming = {
        "authorization": "Bearer k",
        "cookie": "c",
        "host": "gateway",
        "x-api-key": "k",
        "proxy-authorization": "p",
        "connection": "keep-alive",
        "mcp-param-region": "eu",
        "traceparent": "00-1",
        "accept": "text/event-stream",
    }
    sent = request_headers(incoming, request_id="r", own={"authorization": "Bearer own"})
    assert sent == {
        "mcp-param-region": "eu",
        "traceparent": "00-1",
        "accept": "text/event-stream",
        "accept-encoding": "identity",
        "x-request-id": "r",
        "authorization": "Bearer own",
    }
    answered = response_headers(
        [("Set-Cookie", "s"), ("Mcp-Session-Id", "1"), ("Server", "x"), ("Transfer-Encoding", "c")]
    )
    assert answered == [("mcp-session-id", "1")]
