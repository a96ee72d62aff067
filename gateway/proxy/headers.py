"""Which headers cross the gateway. Lists of what may pass, so that the unknown stays outside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address

__all__ = ["client_address", "request_headers", "response_headers"]

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
    "x-accel-buffering",
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
    return passed | {"accept-encoding": "identity", "x-request-id": request_id, **own}


def response_headers(outgoing: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """What the client gets back of a server's headers, names in lower case."""
    passed = []
    for name, value in outgoing:
        lower = name.lower()
        if lower in _TO_CLIENT or lower.startswith("mcp-"):
            passed.append((lower, value))
    return passed


def client_address(
    peer: str | None, headers: Headers, trusted: Iterable[IPv4Network | IPv6Network]
) -> str | None:
    """The caller's address: the peer's, or what trusted reverse proxies say of it.

    X-Forwarded-For is read from the right; the first address that is not a trusted proxy's is
    the caller. What stands left of it the caller may have made up.
    """
    networks = list(trusted)
    chain = [*headers.get("x-forwarded-for", "").split(","), peer or ""]
    address: str | None = None
    for hop in reversed(chain):
        try:
            parsed = ip_address(hop.strip())
        except ValueError:
            break
        address = str(getattr(parsed, "ipv4_mapped", None) or parsed)
        if not any(ip_address(address) in network for network in networks):
            break
    return address
