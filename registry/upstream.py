"""Which addresses the gateway may connect to on behalf of somebody who typed a URL.

A registered URL makes this process send requests from inside its network. So the address that a
name resolves to must be public, and the address that was checked must be the one connected to:
a name may answer differently the second time (DNS rebinding). Nothing here needs the ORM.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Any
from urllib.parse import SplitResult, urlsplit

from django.conf import settings

__all__ = [
    "AddressNotAllowed",
    "AddressPolicy",
    "HostNotFound",
    "InvalidURL",
    "UpstreamURLError",
    "check_url",
    "current_policy",
    "guarded_socket",
    "is_public",
    "resolve",
    "resolve_allowed",
]

SCHEMES = {
    "http": ("http", "https"),
    "sse": ("http", "https"),
    "websocket": ("ws", "wss"),
}
DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}

_GLOBAL_UNICAST = IPv6Network("2000::/3")  # RFC 4291, section 2.4: all that is routed today
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the IPv4 address is the last 32 bits
_6TO4 = IPv6Network("2002::/16")  # RFC 3056: the IPv4 address follows the prefix
# Public by number, yet answered by the cloud's own control plane or an anycast relay.
_NOT_PUBLIC = (ip_network("168.63.129.16/32"), ip_network("192.88.99.0/24"))
# No server can be meant, not even in a private network: this host, link-local with the clouds'
# metadata services, groups.
_NEVER: tuple[IPv4Network | IPv6Network, ...] = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8",
        "169.254.0.0/16",
        "100.100.100.200/32",
        "168.63.129.16/32",
        "224.0.0.0/4",
        "255.255.255.255/32",
        "::/128",
        "fe80::/10",
        "fd00:ec2::254/128",
        "fd20:ce::254/128",
        "ff00::/8",
    )
)


class UpstreamURLError(Exception):
    """A server's URL cannot be used; the message says why and what to do."""


class InvalidURL(UpstreamURLError):
    """The text is no URL for the transport."""


class HostNotFound(UpstreamURLError):
    """The name has no address now; it may have one later."""


class AddressNotAllowed(UpstreamURLError):
    """The policy forbids connecting to this address."""


def is_public(ip: str) -> bool:
    """Whether an address is reachable on the open internet, and nothing else.

    An IPv6 address that carries an IPv4 one (mapped, NAT64, 6to4) is judged by what it carries.
    """
    address = _bare(ip)
    if isinstance(address, IPv6Address):
        return address in _GLOBAL_UNICAST and address.is_global
    ordinary = address.is_global and not address.is_multicast and not address.is_reserved
    return ordinary and not any(address in network for network in _NOT_PUBLIC)


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """Decides about addresses, never about names."""

    allow_private: bool = False

    def allowed(self, ip: str) -> bool:
        """Whether this very address may be connected to; False for text that is no address."""
        try:
            address = _bare(ip)
        except ValueError:
            return False
        if any(address in network for network in _NEVER):
            return False
        return self.allow_private or is_public(ip)

    def check(self, ip: str, *, host: str) -> None:
        """AddressNotAllowed, naming the host, when the address is forbidden."""
        if not self.allowed(ip):
            raise AddressNotAllowed(_refusal(host=host, ip=ip, private_allowed=self.allow_private))


def current_policy() -> AddressPolicy:
    """What `GATEWAY_ALLOW_PRIVATE_UPSTREAMS` says now."""
    return AddressPolicy(allow_private=settings.GATEWAY_ALLOW_PRIVATE_UPSTREAMS)


def check_url(url: str, *, transport: str) -> SplitResult:
    """The parts of an absolute URL that fits the transport, or InvalidURL. Asks no DNS."""
    schemes = SCHEMES[transport]
    example = f"{schemes[-1]}://mcp.example.org/mcp"
    if any(character.isspace() or not character.isprintable() for character in url):
        raise InvalidURL(f"The URL holds blanks or control characters; write it as {example}.")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidURL(f"'{url}' is no URL ({error}); write it as {example}.") from None
    if parts.scheme not in schemes or not host:
        raise InvalidURL(
            f"'{url}' does not fit transport '{transport}'; write a whole URL such as {example}."
        )
    if "@" in parts.netloc:
        raise InvalidURL("A URL must not carry a user or password; store them as credentials.")
    if parts.fragment or url.endswith("#"):
        raise InvalidURL("A URL must not end in a fragment; remove the part from '#' on.")
    if "\\" in url:
        raise InvalidURL(f"A URL has no backslash; write it as {example}.")
    return parts


def port_of(parts: SplitResult) -> int:
    return parts.port or DEFAULT_PORTS[parts.scheme]


def resolve(host: str, port: int) -> list[str]:
    """Every address of a name, in the system's order; HostNotFound when there is none."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise HostNotFound(f"The host '{host}' has no address; check its spelling.") from None
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


async def resolve_allowed(host: str, port: int, *, policy: AddressPolicy) -> Sequence[str]:
    """The addresses of a name, all of them allowed; connect to these, not to the name.

    One forbidden address among them refuses the name: whoever mixes them means to be lucky.
    """
    loop = asyncio.get_running_loop()
    addresses = await loop.run_in_executor(None, resolve, host, port)
    for ip in addresses:
        policy.check(ip, host=host)
    return addresses


def guarded_socket(address: Any, *, policy: AddressPolicy) -> socket.socket:
    """A socket to an allowed address: checked when connecting, past any DNS trick.

    `address` is as `getaddrinfo` gives it, which is how aiohttp asks its `socket_factory`.
    PermissionError, an OSError as for any address that cannot be reached, when it is forbidden.
    """
    family, kind, protocol, _, sockaddr = address
    try:
        policy.check(sockaddr[0], host=sockaddr[0])
    except AddressNotAllowed as error:
        raise PermissionError(errno.EACCES, str(error)) from None
    made = socket.socket(family, kind, protocol)
    made.setblocking(False)
    return made


def _bare(ip: str) -> IPv4Address | IPv6Address:
    """The address that packets really go to, without zone and without an IPv6 wrapping."""
    address = ip_address(ip.partition("%")[0])
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    if address in _6TO4:
        return IPv4Address(int(address) >> 80 & 0xFFFFFFFF)
    return address


def _refusal(*, host: str, ip: str, private_allowed: bool) -> str:
    where = ip if host in (ip, f"[{ip}]") else f"{host} ({ip})"
    if private_allowed:
        return f"{where} is a link-local, metadata or group address, where no server may be."
    return (
        f"{where} is not a public address; to reach private servers set "
        "GATEWAY_ALLOW_PRIVATE_UPSTREAMS=on."
    )
