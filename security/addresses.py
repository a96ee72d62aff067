"""Where a request comes from, when proxies stand in between."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

__all__ = ["client_address"]


def client_address(
    *, peer: str | None, forwarded_for: str, trusted: Sequence[IPv4Network | IPv6Network]
) -> str | None:
    """The address nearest to us that is no trusted proxy of ours; None when there is none.

    `X-Forwarded-For` grows to the right, and everybody on the way may have written anything to
    the left of what our own proxies added: so it is read from the right, and only as far as the
    addresses that are trusted reach.
    """
    nearest = _parsed(peer)
    hops = [hop.strip() for hop in forwarded_for.split(",")] if forwarded_for else []
    while nearest is not None and hops and any(nearest in network for network in trusted):
        further = _parsed(hops.pop())
        if further is None:
            break
        nearest = further
    return None if nearest is None else str(nearest)


def _parsed(text: str | None) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text or "")
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.scope_id:
        # fe80::1%eth0: the zone means something on one machine only, and inet does not take it.
        address = IPv6Address(int(address))
    # A dual-stack socket shows an IPv4 peer as ::ffff:203.0.113.7.
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
