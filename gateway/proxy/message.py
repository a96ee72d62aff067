"""What is in a request: one look at the JSON-RPC message, which is then forwarded untouched."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from security.access import Call

__all__ = ["InvalidMessage", "Message", "check_headers", "parse_message"]

PARSE_ERROR, INVALID_REQUEST, HEADER_MISMATCH = -32700, -32600, -32020

# Which parameter says what a method is about.
_NAMED_BY = {
    "tools/call": "name",
    "prompts/get": "name",
    "resources/read": "uri",
    "resources/subscribe": "uri",
    "resources/unsubscribe": "uri",
}
# Those whose name the 2026-07-28 revision repeats in the Mcp-Name header.
_IN_HEADER = {"tools/call", "prompts/get", "resources/read"}
_VERSION_KEY = "io.modelcontextprotocol/protocolVersion"


class InvalidMessage(Exception):
    """The body is no JSON-RPC message that may be passed on; `code` is JSON-RPC's."""

    def __init__(
        self, message: str, *, code: int = INVALID_REQUEST, message_id: Any = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.id = message_id


@dataclass(frozen=True, slots=True)
class Message:
    """A request, a notification (no id) or the answer to a server's request (`response`)."""

    call: Call
    id: str | int | None = None
    protocol_version: str = ""
    # Ends or answers something that already holds a connection, so it must not wait for one.
    is_reply: bool = field(default=False)
    # What `_meta` says of the trace: W3C's traceparent and tracestate.
    trace: Mapping[str, str] | None = None


# What stands for messages without a method (see `Call`), so no message may claim to be it.
_NOT_METHODS = {"response", "stream", "session/end"}
_MEMBERS = {"jsonrpc", "id", "method", "params", "result", "error"}


class _DuplicateKey(ValueError):
    pass


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two readers could see two messages in one that says a thing twice: refuse it."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _DuplicateKey
    return found


def parse_message(body: bytes) -> Message:
    """The message of a POST; InvalidMessage says what is wrong with it."""
    try:
        # As text: json would guess UTF-16 and UTF-32 too, and a server might read otherwise.
        message = json.loads(body.decode(), object_pairs_hook=_no_duplicates)
    except _DuplicateKey:
        raise InvalidMessage("A JSON object names one key twice. Send each key once.") from None
    except (ValueError, RecursionError):
        raise InvalidMessage(
            "The body is not valid JSON. Send one JSON-RPC 2.0 message.", code=PARSE_ERROR
        ) from None
    if isinstance(message, list):
        raise InvalidMessage("JSON-RPC batches are not part of MCP. Send one message a request.")
    if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
        raise InvalidMessage('The body is no JSON-RPC message: "jsonrpc": "2.0" is missing.')
    return _message(message)


def _message(message: dict[str, Any]) -> Message:
    _refuse_lookalikes(message, _MEMBERS)
    id_ = message.get("id")
    if isinstance(id_, bool) or not isinstance(id_, str | int | None):
        raise InvalidMessage("The JSON-RPC id must be a string or a whole number.")
    method, params = message.get("method"), message.get("params", {})
    if method is None and ("result" in message or "error" in message):
        return Message(Call("response"), id_, is_reply=True)
    if not isinstance(method, str) or not method:
        raise InvalidMessage("The JSON-RPC method is missing.", message_id=id_)
    if method in _NOT_METHODS:
        raise InvalidMessage(f"'{method}' is no method of MCP.", message_id=id_)
    if not isinstance(params, dict):
        raise InvalidMessage("MCP parameters are a JSON object.", message_id=id_)
    _refuse_lookalikes(params, {_NAMED_BY.get(method, "name")})
    name = params.get(_NAMED_BY.get(method, ""), "")
    if method in _NAMED_BY and (not isinstance(name, str) or not name):
        wanted = _NAMED_BY[method]
        raise InvalidMessage(
            f"'{method}' needs the parameter '{wanted}', a string.", message_id=id_
        )
    is_notification = "id" not in message and method.startswith("notifications/")
    meta = params.get("_meta")
    meta = meta if isinstance(meta, dict) else {}
    version = params.get("protocolVersion") if method == "initialize" else meta.get(_VERSION_KEY)
    return Message(
        Call(method, name),
        id_,
        version if isinstance(version, str) else "",
        is_notification,
        _trace(meta) if "traceparent" in meta else None,
    )


def _refuse_lookalikes(found: dict[str, Any], known: set[str]) -> None:
    """Some readers ignore case in keys: to them "Method" beside "method" is a second method."""
    for key in found:
        if key not in known and key.casefold() in known:
            raise InvalidMessage(f"The key '{key}' is written '{key.casefold()}' in JSON-RPC.")


def _trace(meta: dict[str, Any]) -> dict[str, str]:
    found = {name: meta.get(name) for name in ("traceparent", "tracestate")}
    return {name: value for name, value in found.items() if isinstance(value, str)}


def check_headers(message: Message, headers: Mapping[str, str]) -> None:
    """Refuse a request whose headers name another call than its body (2026-07-28).

    The gateway decides on the body. A server that acts on the headers must not be led elsewhere.
    """
    call = message.call
    stated = headers.get("mcp-method")
    if stated is not None and stated != call.method and not message.is_reply:
        raise InvalidMessage(
            f"The Mcp-Method header says '{stated}', the body '{call.method}'. Make them equal.",
            code=HEADER_MISMATCH,
            message_id=message.id,
        )
    name = headers.get("mcp-name")
    if name is not None and call.method in _IN_HEADER and _decoded(name) != call.name:
        raise InvalidMessage(
            f"The Mcp-Name header is not the body's name '{call.name}'. Make them equal.",
            code=HEADER_MISMATCH,
            message_id=message.id,
        )


def _decoded(value: str) -> str | None:
    """A header value, or the text inside `=?base64?…?=`; None when that is malformed."""
    if not (value.startswith("=?base64?") and value.endswith("?=")):
        return value
    try:
        return base64.b64decode(value[9:-2], validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
