"""Which headers cross the gateway. Lists of what may pass, so that the unknown stays outside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["request_headers", "response_headers"]

Headers = Mapping[str, str]

_TO_SERVER = {
    "accept",
    "accept-language",
    "content-type",
    "last-event-id",
    "traceparent",
    "tracestate",
    "baggage",
    "user-agent",
}
_TO_CLIENT = {
    "allow",
    "cache-control",
    "content-encoding",
    "content-language",
    "content-length",
    "content-type",
    "retry-after",
}


def request_headers(incoming: Headers, *, request_id: str, own: Headers) -> dict[str, str]:
    """What the server gets: MCP's and tracing headers, never the caller's credentials.

    `own` are the gateway's credentials for this server.
    """
    passed = {
        name: value
        for name, value in incoming.items()
        if name in _TO_SERVER or name.startswith("mcp-")
    }
    # The bytes are passed on as they come, so they must come in a form every client reads.
    if "content-type" in passed:
        passed["content-type"] = "application/json"  # in UTF-8, whatever else was stated
    return passed | {"accept-encoding": "identity", "x-request-id": request_id, **own}


def response_headers(outgoing: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """What the client gets back of a server's headers, names in lower case."""
    passed = []
    for name, value in outgoing:
        lower = name.lower()
        if lower in _TO_CLIENT or lower.startswith("mcp-"):
            passed.append((lower, value))
    return passed
