"""Whoever makes or changes a key hands on no more than they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_network
from typing import Any, Protocol

from django.core.exceptions import ValidationError

from security.access import has_scope

__all__ = ["Limits", "narrowed"]

LISTS = ("allowed_servers", "allowed_methods", "ip_whitelist")


class Limits(Protocol):
    """The lists of the key that a caller presented; empty ones restrict nothing."""

    allowed_servers: list[str]
    allowed_methods: list[str]
    ip_whitelist: list[str]


def narrowed(
    values: Mapping[str, Any], *, limits: Limits | None, scopes: Sequence[str], new: bool
) -> dict[str, Any]:
    """A key's fields as their maker may set them: an empty list becomes the maker's own.

    `limits` and `scopes` are the maker's; no limits where no key with lists was presented. With
    `new` the fields that are left out are filled too. ValidationError names the field that goes
    beyond.
    """
    result = dict(values)
    errors = {}
    for name in LISTS:
        held = list(getattr(limits, name, ()))
        if not held or not (new or name in values):
            continue
        asked = list(values.get(name) or held)
        result[name] = asked
        if beyond := [entry for entry in asked if not _covers[name](held, entry)]:
            errors[name] = f"Beyond what your own key may: {', '.join(beyond)}."
    missing = [scope for scope in values.get("scopes", ()) if not has_scope(scopes, scope)]
    if missing:
        errors["scopes"] = f"You lack these scopes yourself: {', '.join(missing)}."
    if errors:
        raise ValidationError(errors)
    return result


def _names(held: Sequence[str], slug: str) -> bool:
    return slug in held


def _patterns(held: Sequence[str], pattern: str) -> bool:
    """Whether one pattern of `held` fits whatever `pattern` fits."""
    method, _, name = pattern.partition(":")
    for wider in held:
        wide_method, colon, wide_name = wider.partition(":")
        # Without a name a pattern fits every name.
        names = not colon or _wider(wide_name, name if ":" in pattern else "*")
        if _wider(wide_method, method) and names:
            return True
    return False


def _wider(wide: str, narrow: str) -> bool:
    """Whether a pattern is the other, or ends in its only wildcard and begins the other.

    Other pairs may well be wider too; what cannot be seen at once counts as no.
    """
    if wide == narrow:
        return True
    start, star, rest = wide.partition("*")
    is_prefix = bool(star) and not rest and not set(start) & set("?[")
    return is_prefix and narrow.startswith(start)


def _networks(held: Sequence[str], text: str) -> bool:
    try:
        asked = ip_network(text, strict=False)
    except ValueError:
        return True  # the field's own validator says it better
    networks = (ip_network(entry, strict=False) for entry in held)
    return any(
        asked.version == network.version and asked.subnet_of(network)  # type: ignore[arg-type]
        for network in networks
    )


_covers = {"allowed_servers": _names, "allowed_methods": _patterns, "ip_whitelist": _networks}
