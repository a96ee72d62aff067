"""The one module that decides whether a caller may make a call. Pure: rows in, verdict out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, time
from fnmatch import fnmatchcase
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from security.refusals import Reason, Refusal

__all__ = [
    "PLUMBING",
    "AccessRule",
    "Call",
    "Caller",
    "Target",
    "decide",
    "has_scope",
    "refuse_watching",
]

# What keeps a connection going rather than doing anything on a server. A list of allowed
# methods does not have to name these; a denial may.
PLUMBING = (
    "initialize",
    "ping",
    "server/discover",
    "logging/setLevel",
    "notifications/*",
    "response",
    "stream",
    "session/end",
)

_LISTED = "The servers you may call are listed at /api/v1/servers, for a key with the scope 'read'."


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRule:
    """The row of `server_access_control` that decides: the most specific active one."""

    id: UUID
    can_proxy: bool = True
    allowed_methods: Sequence[str] = ()
    denied_methods: Sequence[str] = ()
    access_start_time: time | None = None
    access_end_time: time | None = None
    allowed_days: Sequence[int] = ()
    allowed_hours: Sequence[int] = ()
    timezone: str = "UTC"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A key that has been checked, and whom it belongs to."""

    api_key_id: UUID
    user_id: UUID | None
    tenant_id: UUID | None
    tenant_slug: str
    tenant_status: str
    tenant_settings: Mapping[str, Any]
    scopes: Sequence[str]
    allowed_servers: Sequence[str]
    allowed_methods: Sequence[str]
    rate_limit_per_hour: int
    rate_limit_per_day: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The server that a path names, as the caller sees it."""

    id: UUID
    slug: str
    is_enabled: bool
    rule: AccessRule | None


@dataclass(frozen=True, slots=True)
class Call:
    """What is to be done: a JSON-RPC method, and the tool, prompt or resource it names.

    `response`, `stream` and `session/end` stand for what has no method: the answer to a server's
    request, the GET stream and the DELETE of a session.
    """

    method: str
    name: str = ""


def has_scope(scopes: Iterable[str], wanted: str) -> bool:
    """Whether a key's scopes include one; `admin` implies the others."""
    return any(scope in {wanted, "admin"} for scope in scopes)


def refuse_watching(caller: Caller) -> Refusal | None:
    """None when the caller may see figures of the whole gateway, as in the REST API."""
    if not has_scope(caller.scopes, "metrics"):
        return Refusal(
            Reason.SCOPE_MISSING,
            "The API key lacks the scope 'metrics'. Use a key that has it: "
            "create_api_key NAME --scope metrics.",
        )
    if caller.tenant_id is None:
        return None
    runs_gateway = caller.tenant_settings.get("runs_gateway") is True
    if caller.tenant_status != "active" or not runs_gateway:
        return Refusal(
            Reason.SCOPE_MISSING,
            "This is about the whole gateway, so it is for operators: use a key with the scope "
            "'metrics' of the tenant that runs the gateway, or of no tenant.",
        )
    return None


def decide(
    caller: Caller, target: Target | None, call: Call, *, slug: str, at: datetime
) -> Refusal | None:
    """None when the call may be made; else the first reason against it."""
    if caller.tenant_id is not None and caller.tenant_status != "active":
        return Refusal(
            Reason.SERVER_NOT_ALLOWED,
            f"Tenant '{caller.tenant_slug}' is {caller.tenant_status}. Ask an operator.",
        )
    if not has_scope(caller.scopes, "proxy"):
        return Refusal(
            Reason.SCOPE_MISSING,
            "The API key lacks the scope 'proxy'. Use a key that has it.",
        )
    if not slug:
        return Refusal(
            Reason.SERVER_NOT_FOUND,
            f"Name a server in the address: /mcp/<server>. {_LISTED}",
        )
    if target is None or not target.is_enabled:
        state = "is switched off" if target else "does not exist or is not yours"
        return Refusal(
            Reason.SERVER_NOT_FOUND,
            f"Server '{slug}' {state}. {_LISTED}",
        )
    return _refuse_server(caller, target) or _refuse_method(caller, target, call, at)


def _refuse_server(caller: Caller, target: Target) -> Refusal | None:
    listed = not caller.allowed_servers or target.slug in caller.allowed_servers
    if not listed:
        why = "The API key is limited to certain servers, and this is none of them"
    elif target.rule is not None and not target.rule.can_proxy:
        why = "An access rule forbids calls"
    elif target.rule is None and caller.tenant_settings.get("default_access") == "deny":
        why = "No access rule allows calls, and the tenant's default is to deny"
    else:
        return None
    return Refusal(
        Reason.SERVER_NOT_ALLOWED,
        f"{why}: server '{target.slug}'. Ask an administrator for access.",
    )


def _refuse_method(caller: Caller, target: Target, call: Call, at: datetime) -> Refusal | None:
    rule = target.rule
    if rule is not None and not _inside_time(rule, at):
        return Refusal(
            Reason.OUTSIDE_ALLOWED_TIME,
            f"Server '{target.slug}' may not be called at this time ({rule.timezone}). "
            f"{_times_in_words(rule)}",
        )
    denied = rule is not None and _matches(call, rule.denied_methods)
    allowed = _allowed(call, caller.allowed_methods) and (
        rule is None or _allowed(call, rule.allowed_methods)
    )
    if denied or not allowed:
        what = f"{call.method}:{call.name}" if call.name else call.method
        return Refusal(
            Reason.METHOD_DENIED,
            f"'{what}' is not allowed on server '{target.slug}' with this key. "
            "Use another one, or ask an administrator.",
        )
    return None


def _allowed(call: Call, patterns: Sequence[str]) -> bool:
    return not patterns or _matches(call, PLUMBING) or _matches(call, patterns)


def _matches(call: Call, patterns: Sequence[str]) -> bool:
    """Whether one pattern fits: `tools/*`, or `tools/call:delete_*` with the name as well."""
    for pattern in patterns:
        method, colon, name = pattern.partition(":")
        if fnmatchcase(call.method, method) and (not colon or fnmatchcase(call.name, name)):
            return True
    return False


def _inside_time(rule: AccessRule, at: datetime) -> bool:
    local = at.astimezone(ZoneInfo(rule.timezone))
    if rule.allowed_days and local.weekday() not in rule.allowed_days:
        return False
    if rule.allowed_hours and local.hour not in rule.allowed_hours:
        return False
    start = rule.access_start_time or time.min
    end = rule.access_end_time
    clock = local.time()
    if end is None:
        return clock >= start
    if start <= end:
        return start <= clock < end
    return clock >= start or clock < end  # over midnight


def _times_in_words(rule: AccessRule) -> str:
    names = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
    parts = []
    if rule.allowed_days:
        parts.append("on " + ", ".join(names[day] for day in sorted(rule.allowed_days)))
    if rule.allowed_hours:
        parts.append("in the hours " + ", ".join(str(h) for h in sorted(rule.allowed_hours)))
    if rule.access_start_time or rule.access_end_time:
        start = rule.access_start_time or time.min
        end = f"{rule.access_end_time:%H:%M}" if rule.access_end_time else "midnight"
        parts.append(f"from {start:%H:%M} to {end}")
    return f"It may be called {', '.join(parts)}."
