"""Where notifications go: the entries of `PerformanceAlert.notification_channels`.

    {"type": "log"}
    {"type": "email", "to": ["ops@example.org"]}
    {"type": "webhook", "url": "https://hooks.example.org/alerts", "secret": "…"}

Each may name the `events` that it is told; without, those of `TOLD`. A webhook's secret signs
what is sent. It is kept apart and encrypted; in the list stands `HIDDEN` in its place, and who
sends that back keeps the secret. The path of a webhook is often a secret, too: who may not change
an alert sees its host and a sign for the rest (`channel_public`), which stands for the stored one
when it is sent back.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.utils.crypto import salted_hmac

from registry.db.encryption import DecryptionError, Sealed
from registry.upstream import (
    HostNotFound,
    InvalidURL,
    UpstreamURLError,
    check_url,
    current_policy,
    port_of,
    resolve,
)

__all__ = [
    "EVENTS",
    "HIDDEN",
    "TOLD",
    "Channel",
    "addresses_check",
    "channel_key",
    "channel_label",
    "channel_public",
    "channels_whole",
    "check_channels",
    "secrets_split",
    "told",
]

Channel = Mapping[str, Any]

HIDDEN = "not shown"
MASK = "not-shown-"  # begins what stands for the path of a webhook
_MASKED = re.compile(rf"^https?://[^/]*/{MASK}[0-9a-f]+$")
EVENTS = ("triggered", "reminded", "resolved", "acknowledged", "no_data", "measured")
TOLD = ("triggered", "reminded", "resolved")
MOST_CHANNELS = 20
MOST_ADDRESSES = 20
SHORTEST_SECRET, LONGEST_SECRET = 8, 512
LONGEST_URL = 2048
_KEYS = {
    "log": {"type", "events"},
    "email": {"type", "events", "to"},
    "webhook": {"type", "events", "url", "secret"},
}
_EXAMPLE = "https://hooks.example.org/alerts"


def check_channels(channels: Any) -> None:
    """ValidationError with one sentence for each entry that does not fit. Asks no DNS."""
    if not isinstance(channels, list):
        raise ValidationError('Write a list of channels, such as [{"type": "log"}].')
    if len(channels) > MOST_CHANNELS:
        raise ValidationError(f"Write at most {MOST_CHANNELS} channels.")
    faults = []
    seen: set[str] = set()
    for number, channel in enumerate(channels, 1):
        try:
            _check(channel)
            if (key := channel_key(channel)) in seen:
                raise ValueError("there is the same one before it; leave one out.")
            seen.add(key)
        except ValueError as error:
            faults.append(f"Channel {number}: {error}")
    if faults:
        raise ValidationError(faults)


def _check(channel: Any) -> None:
    kind = channel.get("type") if isinstance(channel, dict) else None
    if not isinstance(kind, str) or kind not in _KEYS:
        raise ValueError('write an object whose "type" is one of: log, email, webhook.')
    if unknown := set(channel) - _KEYS[kind]:
        names = ", ".join(sorted(unknown))
        raise ValueError(f"{kind} has no {names}; it takes {', '.join(sorted(_KEYS[kind]))}.")
    _check_events(channel.get("events", ["triggered"]))
    if kind == "email":
        _check_addresses(channel.get("to"))
    if kind == "webhook":
        _check_webhook(channel)


def _check_events(events: Any) -> None:
    fits = isinstance(events, list) and events and all(event in EVENTS for event in events)
    if not fits:
        raise ValueError(f'"events" is a list of some of: {", ".join(EVENTS)}.')


def _check_addresses(addresses: Any) -> None:
    if not isinstance(addresses, list) or not 0 < len(addresses) <= MOST_ADDRESSES:
        raise ValueError(f'"to" is a list of 1 to {MOST_ADDRESSES} e-mail addresses.')
    for address in addresses:
        try:
            validate_email(address)
        except (ValidationError, TypeError, AttributeError):
            raise ValueError(
                f"'{address}' is no e-mail address; write one such as ops@example.org."
            ) from None


def _check_webhook(channel: Channel) -> None:
    url = channel.get("url")
    if not isinstance(url, str) or len(url) > LONGEST_URL:
        raise ValueError(f'"url" is missing or no text; write one such as {_EXAMPLE}.')
    try:
        check_url(url, transport="http")
    except InvalidURL:
        raise ValueError(
            f'"url" is to be a whole http or https URL without user, password or fragment, '
            f"such as {_EXAMPLE}."
        ) from None
    secret = channel.get("secret")
    fits = isinstance(secret, str) and SHORTEST_SECRET <= len(secret) <= LONGEST_SECRET
    if "secret" in channel and not fits:
        raise ValueError(
            f'"secret" is a text of {SHORTEST_SECRET} to {LONGEST_SECRET} characters; '
            "leave it out to send unsigned."
        )


def channels_whole(channels: Any, *, stored: Iterable[Channel]) -> Any:
    """The channels with the stored URL where `channel_public`'s is given.

    ValidationError for such a one that none of the stored has. What does not look like a channel
    stays as it is.
    """
    if not isinstance(channels, list):
        return channels
    known = {channel_public(one)["url"]: one["url"] for one in stored if "url" in one}
    whole, faults = [], []
    for number, channel in enumerate(channels, 1):
        url = channel.get("url") if isinstance(channel, dict) else None
        if isinstance(url, str) and _MASKED.search(url):
            channel = {**channel, "url": known.get(url, url)}
            if url not in known:
                faults.append(
                    f"Channel {number}: '{url}' is shown in place of a URL that this alert does "
                    "not have; write the whole URL."
                )
        whole.append(channel)
    if faults:
        raise ValidationError({"notification_channels": faults})
    return whole


def addresses_check(channels: Iterable[Channel]) -> None:
    """ValidationError for a webhook to an address that may not be connected to.

    Looks names up, so call it outside of transactions. A name without an address is accepted, as
    for servers: what protects is the check at each connection.
    """
    policy = current_policy()
    for number, channel in enumerate(channels, 1):
        if channel["type"] != "webhook":
            continue
        parts = check_url(channel["url"], transport="http")
        host = parts.hostname or ""
        try:
            for ip in resolve(host, port_of(parts)):
                policy.check(ip, host=host)
        except HostNotFound:
            continue
        except UpstreamURLError as error:
            raise ValidationError(
                {"notification_channels": [f"Channel {number}: {error}"]}
            ) from None


def secrets_split(
    channels: Iterable[Channel], *, stored: Sealed | None
) -> tuple[list[dict[str, Any]], dict[str, str] | None]:
    """The channels as they may be shown, and {URL: secret} for all that are signed (or None).

    `HIDDEN` stands for the stored secret of the same URL; ValidationError when there is none:
    a secret does not move to another address by itself.
    """
    shown, secrets = [], {}
    for number, channel in enumerate(channels, 1):
        entry = dict(channel)
        if "secret" in entry:
            url, secret = entry["url"], entry["secret"]
            secrets[url] = _known(stored, url, number) if secret == HIDDEN else secret
            entry["secret"] = HIDDEN
        shown.append(entry)
    return shown, secrets or None


def _known(stored: Sealed | None, url: str, number: int) -> str:
    try:
        known: dict[str, str] = (stored.open() if stored is not None else None) or {}
    except DecryptionError:
        known = {}
    if url not in known:
        raise ValidationError(
            {
                "notification_channels": [
                    f"Channel {number}: no secret is stored for this URL; write the secret."
                ]
            }
        )
    return known[url]


def told(channel: Channel, event: str) -> bool:
    """Whether a channel wants to hear of this kind of event."""
    return event in channel.get("events", TOLD)


def channel_key(channel: Channel) -> str:
    """What tells a channel from others of its alert; shows nothing of a URL's token."""
    target = channel.get("url") or sorted(channel.get("to", []))
    digest = hashlib.sha256(json.dumps([channel["type"], target]).encode())
    return f"{channel['type']}-{digest.hexdigest()[:16]}"


def channel_public(channel: Channel) -> dict[str, Any]:
    """What everybody may see: for a webhook's path and query stands a sign that tells it apart."""
    shown = dict(channel)
    if "url" in shown:
        parts = urlsplit(shown["url"])
        if parts.path.strip("/") or parts.query:
            sign = salted_hmac("webhook", shown["url"]).hexdigest()[:16]  # no guess can be tried
            shown["url"] = parts._replace(path=f"/{MASK}{sign}", query="").geturl()
    return shown


def channel_label(channel: Channel) -> str:
    """For people: 'log', 'email ops@example.org', 'webhook hooks.example.org'."""
    match channel["type"]:
        case "email":
            return f"email {', '.join(channel['to'])}"
        case "webhook":
            return f"webhook {urlsplit(channel['url']).hostname}"
    return str(channel["type"])
