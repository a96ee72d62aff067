"""Is this key the caller's, and may it be used at all? Shared by both planes."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Protocol

from security.keys import ParsedKey, hash_secret, parse_key
from security.refusals import Reason, Refusal

__all__ = [
    "KeyFacts",
    "KeyState",
    "check_key",
    "check_state",
    "ip_allowed",
    "presented_key",
    "proves",
    "refuse_unknown_key",
]

BEARER = "bearer "


class KeyState(Protocol):
    """Whether a key that was proved may be used."""

    @property
    def is_active(self) -> bool: ...
    @property
    def expires_at(self) -> datetime | None: ...
    @property
    def is_locked(self) -> bool: ...
    @property
    def locked_until(self) -> datetime | None: ...
    @property
    def ip_whitelist(self) -> Sequence[str]: ...


class KeyFacts(KeyState, Protocol):
    """What is needed to prove and check a key; an `EnhancedAPIKey` row has it."""

    @property
    def key_hash(self) -> bytes: ...
    @property
    def salt(self) -> bytes: ...


def presented_key(*, authorization: str, x_api_key: str) -> ParsedKey | Refusal:
    """The key of a request's headers (empty strings where absent).

    `Authorization: Bearer` wins over `X-API-Key`, as it is the one that MCP specifies.
    """
    text = x_api_key.strip()
    if authorization[: len(BEARER)].lower() == BEARER:
        text = authorization[len(BEARER) :].strip()
    if not text:
        return Refusal(
            Reason.MISSING_CREDENTIALS,
            "No API key was sent. Send it as 'Authorization: Bearer <key>' or 'X-API-Key: <key>'.",
        )
    return parse_key(text) or refuse_unknown_key()


def refuse_unknown_key() -> Refusal:
    """One answer for a malformed, unknown, wrong or revoked key: it tells a guesser nothing."""
    return Refusal(
        Reason.INVALID_CREDENTIALS,
        "The API key is not valid. Check that it was copied whole, or ask for a new one.",
    )


def check_key(key: KeyFacts, *, secret: str, ip: str | None, at: datetime) -> Refusal | None:
    """None when the secret proves the key and the key may be used from `ip` at `at`.

    The secret is compared first and in constant time: who does not hold it learns nothing of
    the key's state.
    """
    if not proves(key, secret=secret):
        return refuse_unknown_key()
    return check_state(key, ip=ip, at=at)


def proves(key: KeyFacts, *, secret: str) -> bool:
    """Whether the secret is this key's, compared in constant time."""
    expected = hash_secret(salt=bytes(key.salt), secret=secret)
    return hmac.compare_digest(expected, bytes(key.key_hash))


def check_state(key: KeyState, *, ip: str | None, at: datetime) -> Refusal | None:
    """None when a key whose secret is proved may be used from `ip` at `at`."""
    if not key.is_active:
        return refuse_unknown_key()
    if key.is_locked and (key.locked_until is None or at < key.locked_until):
        wait = None if key.locked_until is None else (key.locked_until - at).total_seconds()
        until = "" if key.locked_until is None else f" until {key.locked_until:%Y-%m-%d %H:%M} UTC"
        return Refusal(
            Reason.KEY_LOCKED,
            f"The API key is locked{until}. Ask an administrator to unlock it.",
            retry_after=wait,
        )
    if key.expires_at is not None and at >= key.expires_at:
        return Refusal(
            Reason.KEY_EXPIRED,
            f"The API key expired on {key.expires_at:%Y-%m-%d}. Ask for a new one.",
        )
    if not ip_allowed(ip, key.ip_whitelist):
        return Refusal(
            Reason.IP_NOT_ALLOWED,
            f"The API key may not be used from {ip or 'an unknown address'}. "
            "Call from an address on the key's list, or have this one added.",
        )
    return None


def ip_allowed(ip: str | None, whitelist: Sequence[str]) -> bool:
    """Whether an address lies in one of the networks; an empty list allows every address."""
    if not whitelist:
        return True
    if ip is None:
        return False
    try:
        address = ip_address(ip)
    except ValueError:
        return False
    # A dual-stack socket shows an IPv4 peer as ::ffff:203.0.113.7.
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return any(_holds(entry, mapped or address) for entry in whitelist)


def _holds(entry: str, address: IPv4Address | IPv6Address) -> bool:
    network = _network(entry)
    return network is not None and address in network


@lru_cache(maxsize=10_000)
def _network(entry: str) -> IPv4Network | IPv6Network | None:
    """None for what is no network (only SQL can have written it): it holds nobody."""
    try:
        return ip_network(entry, strict=False)
    except ValueError:
        return None
