"""The only writers of servers and of what servers offer. Each change leaves an audit entry."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl

from asgiref.sync import async_to_sync
from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.utils.text import slugify
from django.utils.timezone import now

from registry import health
from registry.audit import Actor, audit_write
from registry.changes import row_change
from registry.db.encryption import DecryptionError, Sealed
from registry.db.tenancy import transaction_left
from registry.headers import HEADER_NAME
from registry.health import Checked
from registry.models import HealthStatus, MCPServer, ServerTool, Tenant, Transport
from registry.offers import SyncResult, offers_store, sync_failure_note
from registry.periodic import task_defer
from registry.upstream import (
    SCHEMES,
    HostNotFound,
    InvalidURL,
    UpstreamURLError,
    check_url,
    current_policy,
    port_of,
    resolve,
)

__all__ = [
    "address_check",
    "health_check",
    "server_delete",
    "server_register",
    "server_set_enabled",
    "server_set_maintenance",
    "server_update",
    "tool_update",
    "tools_sync",
]

FIRST_CONTACT = "server_first_contact"
CHANGEABLE = {
    "name", "slug", "description", "endpoint_url", "transport_type", "tags", "registry_name",
    "credentials", "tenant",
}  # fmt: skip

_REGISTRY_NAME = re.compile(r"[a-zA-Z0-9.-]+/[a-zA-Z0-9._-]+")
_HEADER_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")
# Of a query's parameters, without their hyphens and underscores: what can only be a secret.
_SECRET_NAMES = {
    "accesskey", "accesstoken", "apikey", "apitoken", "auth", "authorization", "authtoken",
    "bearer", "clientsecret", "credential", "credentials", "jwt", "key", "passwd", "password",
    "pwd", "secret", "secretkey", "sig", "signature", "token", "xapikey",
}  # fmt: skip
# Letters that Unicode does not take apart into a plain one and its accent.
_WITHOUT_ACCENT = str.maketrans(
    {"æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ı": "i"}
)
# Of the connection, the protocol and each single call: a stored value would break every call, or
# be another one in calls than in health checks. gateway/proxy/headers.py says what calls carry.
_OWN_HEADERS = {
    "connection", "content-length", "expect", "host", "keep-alive", "proxy-connection", "te",
    "trailer", "transfer-encoding", "upgrade",
    "accept", "accept-encoding", "content-encoding", "content-type", "last-event-id",
    "mcp-method", "mcp-name", "mcp-protocol-version", "mcp-session-id",
    "baggage", "traceparent", "tracestate", "x-request-id",
}  # fmt: skip
_OWN_PREFIX = "mcp-param-"  # a tool's arguments
_NO_NAME = "A header's name is made of letters, digits and hyphens, such as Authorization."


def server_register(
    *,
    actor: Actor,
    tenant: Tenant | None,
    name: str,
    url: str,
    transport: str = Transport.HTTP,
    slug: str | None = None,
    description: str = "",
    tags: Sequence[str] = (),
    registry_name: str = "",
    credentials: Mapping[str, Any] | None = None,
    is_enabled: bool = True,
    allow_stdio: bool = False,
    defer_check: bool = True,
    address_checked: bool = False,
) -> MCPServer:
    """Add a server; without a tenant it is shared by all.

    `credentials` are `{"headers": {name: value}}`. A slug is made of the name unless given. Only a
    caller on the gateway's own machine passes `allow_stdio`. With `defer_check` a worker checks
    the server's health and reads its tools as soon as the row stands. ValidationError names the
    field that does not fit.

    Asks DNS before its transaction begins, so call it outside of one; a caller that cannot has
    asked `address_check` before and says so with `address_checked`.
    """
    server = MCPServer(
        tenant=tenant,
        name=name.strip(),
        slug=slug if slug is not None else _slug_of(name),
        description=description,
        endpoint_url=url.strip(),
        transport_type=transport,
        tags=_tags(tags),
        registry_name=registry_name,
        credentials=dict(credentials) if credentials else None,
        is_enabled=is_enabled,
    )
    if slug is None and server.name and not server.slug:
        raise ValidationError({"slug": "The name gives no slug; choose one of letters and digits."})
    _check(server, allow_stdio=allow_stdio, address=not address_checked)
    with _slug_clash_told(server), transaction.atomic():
        server.save(force_insert=True)
        details = {
            "name": server.name,
            "slug": server.slug,
            "transport": server.transport_type,
            "is_enabled": is_enabled,
        }
        audit_write(actor=actor, action="server.register", resource=server, details=details)
        if defer_check:
            task_defer(FIRST_CONTACT, server_id=str(server.id))
    return server


def server_update(
    *,
    actor: Actor,
    server: MCPServer,
    is_enabled: bool | None = None,
    allow_stdio: bool = False,
    address_checked: bool = False,
    **changes: Any,
) -> MCPServer:
    """Change fields of a server, by the model's names; returns it as it is now.

    A new address or transport makes the health unknown until the next check, which a worker is
    asked for. Another origin (transport, scheme, host, port) drops the stored credentials unless
    new ones come along: they were entrusted to the old one. ValidationError names the field that
    does not fit. About DNS and `address_checked` see `server_register`.
    """
    if unknown := set(changes) - CHANGEABLE:
        raise ValidationError(f"Not changeable: {', '.join(sorted(unknown))}.")
    if "tags" in changes:
        changes["tags"] = _tags(changes["tags"])
    wanted = MCPServer(**{name: getattr(server, name) for name in CHANGEABLE} | changes)
    moved = {"endpoint_url", "transport_type"} & changes.keys()
    _check(wanted, allow_stdio=allow_stdio, address=bool(moved) and not address_checked)
    with _slug_clash_told(wanted), transaction.atomic():
        dropped = "credentials" not in changes and _leaves_origin(server, changes)
        if dropped:
            changes["credentials"] = None
        current, changed = row_change(row=server, changes=changes)
        if changed:
            details = _told(changed, dropped=dropped)
            audit_write(actor=actor, action="server.update", resource=current, details=details)
        if {"endpoint_url", "transport_type", "credentials"} & changed.keys():
            health.forget(server_id=current.pk, at=now())
            task_defer(FIRST_CONTACT, server_id=str(current.pk))
        if is_enabled is not None:
            server_set_enabled(actor=actor, server=current, enabled=is_enabled)
    current.refresh_from_db()
    return current


def address_check(*, url: str, transport: str) -> None:
    """ValidationError when the gateway may not connect there. Asks DNS: no transaction."""
    if transport in SCHEMES:  # of another transport the services say what is wrong with it
        _check_address(url.strip(), transport)


@transaction.atomic
def server_set_enabled(*, actor: Actor, server: MCPServer, enabled: bool) -> bool:
    """Let calls through to a server, or stop them; False when it was so already."""
    other = MCPServer.objects.filter(pk=server.pk, is_enabled=not enabled)
    if other.update(is_enabled=enabled, updated_at=now()) != 1:
        return False
    server.is_enabled = enabled
    action = "server.enable" if enabled else "server.disable"
    audit_write(actor=actor, action=action, resource=server)
    return True


@transaction.atomic
def server_set_maintenance(*, actor: Actor, server: MCPServer, on: bool) -> bool:
    """Mark a server as under maintenance, which no check overwrites; False: it was so already."""
    rows = MCPServer.objects.filter(pk=server.pk)
    maintenance = HealthStatus.MAINTENANCE
    found = (
        rows.exclude(health_status=maintenance) if on else rows.filter(health_status=maintenance)
    )
    status = maintenance if on else HealthStatus.UNKNOWN
    if found.update(health_status=status, updated_at=now()) != 1:
        return False
    server.health_status = status
    audit_write(actor=actor, action="server.maintenance", resource=server, details={"on": on})
    return True


@transaction.atomic
def server_delete(*, actor: Actor, server: MCPServer) -> bool:
    """Remove a server with its tools, rules and gauges; its logs stay. False: it was gone."""
    # One caller's DELETE finds the row; what hangs on it goes by the model's cascades.
    held = MCPServer.objects.select_for_update().filter(pk=server.pk).first()
    if held is None:
        return False
    details = {"name": held.name, "slug": held.slug}
    audit_write(actor=actor, action="server.delete", resource=held, details=details)
    held.delete()
    return True


@transaction.atomic
def tool_update(*, actor: Actor, tool: ServerTool, **changes: Any) -> ServerTool:
    """Offer a tool or not (`is_enabled`), or tag it; the rest is the server's to say."""
    if "tags" in changes:
        changes["tags"] = _tags(changes["tags"])
    current, changed = row_change(row=tool, changes=changes)
    if changed:
        audit_write(actor=actor, action="tool.update", resource=current, details=changed)
    return current


def health_check(*, server: MCPServer, at: datetime) -> Checked:
    """Ask one server how it is and record the answer. Waits on the network: no transaction."""
    [checked] = health.check([server])
    health.record([checked], at=at)
    return checked


def tools_sync(*, server: MCPServer, at: datetime) -> SyncResult:
    """Make tools, resources and prompts what the server lists now.

    Waits on the network first, with no transaction open. UpstreamError when the server cannot be
    asked or lists too much, DecryptionError when its credentials cannot be read: then nothing
    changes but a note in its `health_metadata`.
    """
    # Imported late: the SDK costs half a second that no other command should pay.
    from registry.mcp_client import UpstreamError, list_all

    try:
        target = health.target_of(server)
        listing = async_to_sync(list_all)(target, limits=health.limits())
    except (UpstreamError, DecryptionError) as error:
        sync_failure_note(server_id=server.pk, error=str(error), at=at)
        raise
    return offers_store(server_id=server.pk, listing=listing, at=at)


def _check(server: MCPServer, *, allow_stdio: bool, address: bool = True) -> None:
    """All that can be said without the table: fields, address, credentials."""
    server.clean_fields(exclude=["tenant"])
    if server.registry_name and not _REGISTRY_NAME.fullmatch(server.registry_name):
        raise ValidationError(
            {"registry_name": "Write a reverse-DNS name such as io.github.user/server."}
        )
    _check_credentials(server.credentials)
    if server.transport_type == Transport.STDIO:
        _check_command(server.endpoint_url, allowed=allow_stdio)
    elif address:
        _check_address(server.endpoint_url, server.transport_type)


def _check_address(url: str, transport: str) -> None:
    """Refuse what can never be connected to.

    A name without an address is accepted: DNS is often set up after the registration, and what
    protects is the check at each connection. Here it only spares the owner a late surprise.
    """
    policy = current_policy()
    try:
        parts = check_url(url, transport=transport)
        _check_query(parts.query)
        host = parts.hostname or ""
        with transaction_left():  # a request's; DNS may take its time
            found = resolve(host, port_of(parts))
        for ip in found:
            policy.check(ip, host=host)
    except HostNotFound:
        return
    except UpstreamURLError as error:
        raise ValidationError({"endpoint_url": str(error)}) from None


def _check_query(query: str) -> None:
    """Every page and list shows a server's address, so no secret may stand in it."""
    for name, _ in parse_qsl(query, keep_blank_values=True):
        if re.sub("[-_.]", "", name.lower()) in _SECRET_NAMES:
            raise InvalidURL(
                f"A URL must not carry a secret such as '{name[:64]}', for it is shown and logged; "
                "store it as credentials, which are sent as headers and kept encrypted."
            )


def _check_command(line: str, *, allowed: bool) -> None:
    if not (allowed and settings.GATEWAY_ALLOW_STDIO):
        raise ValidationError(
            {
                "transport_type": "A stdio server is a command that runs on the gateway's machine: "
                "register it there with register_server and GATEWAY_ALLOW_STDIO=on."
            }
        )
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise ValidationError({"endpoint_url": f"The command cannot be read: {error}."}) from None
    if not words:
        raise ValidationError({"endpoint_url": "Write the command that starts the server."})


def _check_credentials(credentials: Any) -> None:
    if credentials is None or isinstance(credentials, Sealed):  # a stored one was checked before
        return
    headers = credentials.get("headers") if isinstance(credentials, dict) else None
    if not isinstance(headers, dict) or set(credentials) != {"headers"}:
        raise ValidationError({"credentials": 'Write {"headers": {"Authorization": "Bearer …"}}.'})
    seen: set[str] = set()
    for name, value in headers.items():
        if not HEADER_NAME.fullmatch(name):  # not shown: it may be the secret's beginning
            raise ValidationError({"credentials": _NO_NAME})
        if _is_own(name.lower()):
            raise ValidationError({"credentials": f"'{name}' is no header that may be set."})
        if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value):
            raise ValidationError({"credentials": f"The value of '{name}' must be visible ASCII."})
        if name.lower() in seen:  # the parts of the gateway would send one, the other or both
            raise ValidationError({"credentials": f"'{name}' is repeated; case does not count."})
        seen.add(name.lower())


def _is_own(name: str) -> bool:
    return name in _OWN_HEADERS or name.startswith(_OWN_PREFIX)


def _slug_of(name: str) -> str:
    """In plain letters: Größe gives grosse. Of a script without them nothing is left."""
    return slugify(name.casefold().translate(_WITHOUT_ACCENT))[:63].strip("-_")


def _tags(tags: Sequence[str]) -> list[str]:
    """Without blanks around, empty ones and repetitions, in the order given."""
    return list(dict.fromkeys(tag.strip() for tag in tags if tag.strip()))


def _leaves_origin(server: MCPServer, changes: Mapping[str, Any]) -> bool:
    """Whether the server would be somebody else's afterwards. Locks the row it is judged by."""
    if not {"endpoint_url", "transport_type"} & changes.keys():
        return False
    held = MCPServer.objects.select_for_update(of=("self",)).get(pk=server.pk)
    url = changes.get("endpoint_url", held.endpoint_url)
    transport = changes.get("transport_type", held.transport_type)
    return _origin(url, transport) != _origin(held.endpoint_url, held.transport_type)


def _origin(url: str, transport: str) -> tuple[str, ...]:
    """RFC 6454's scheme, host and port, with the transport; a command stands for itself."""
    try:
        parts = check_url(url, transport=transport) if transport in SCHEMES else None
    except InvalidURL:
        parts = None
    if parts is None:
        return (transport, url)
    return (transport, parts.scheme, parts.hostname or "", str(port_of(parts)))


def _told(changed: dict[str, Any], *, dropped: bool) -> dict[str, Any]:
    """What the audit log may keep: of addresses and credentials only that they changed."""
    secret = {"credentials", "endpoint_url"}  # a URL's query often carries a token
    told = {name: "changed" if name in secret else values for name, values in changed.items()}
    if dropped and "credentials" in told:
        told["credentials"] = "dropped: they belong to the former address"
    return told


@contextmanager
def _slug_clash_told(server: MCPServer) -> Iterator[None]:
    """Turns the constraint's refusal into words; nobody looks first, so no race is lost."""
    try:
        yield
    except (IntegrityError, ValidationError) as error:
        if not _is_slug_clash(error):
            raise
        where = f"In tenant '{server.tenant.slug}'" if server.tenant else "Among the shared servers"
        raise ValidationError(
            {"slug": f"{where} there is a server '{server.slug}' already; choose another slug."}
        ) from None


def _is_slug_clash(error: IntegrityError | ValidationError) -> bool:
    if isinstance(error, IntegrityError):
        return "uq_mcp_servers_tenant_slug" in str(error)
    # full_clean() saw the other row first.
    found = error.error_dict.get("__all__", []) if hasattr(error, "error_dict") else []
    return any(inner.code in {"unique", "unique_together"} for inner in found)
