"""What servers offer: their tools, resources and prompts as they last listed them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from django.db import models, transaction
from django.db.models import F, Func, JSONField, Value

from registry.models import MCPServer, ServerPrompt, ServerResource, ServerTool

if TYPE_CHECKING:
    from registry.mcp_client import Listing

__all__ = ["SyncResult", "offers_store", "sync_failure_note"]

Row = TypeVar("Row", bound=models.Model)


@dataclass(frozen=True, slots=True)
class SyncResult:
    """How many the server lists now, and how many of the tools came, changed or went."""

    tools: int = 0
    resources: int = 0
    prompts: int = 0
    added: int = 0
    changed: int = 0
    vanished: int = 0
    skipped: int = 0  # entries without a name that fits


@transaction.atomic
def offers_store(*, server_id: UUID, listing: Listing, at: datetime) -> SyncResult:
    """Write what differs and nothing else; an empty result when the server is gone.

    Syncs of one server take turns on its row, so that two of them make no duplicates and the
    second sees what the first wrote.
    """
    # NO KEY UPDATE: calls that only refer to the server do not wait.
    servers = MCPServer.objects.select_for_update(no_key=True).filter(pk=server_id)
    if servers.first() is None:
        return SyncResult()
    tools = _by_key(_tools(server_id, listing.tools), "name")
    resources = _by_key(_resources(server_id, listing.resources), "uri_template")
    prompts = _by_key(_prompts(server_id, listing.prompts), "name")
    added, changed, vanished = _store_tools(server_id, tools, at=at)
    _replace(server_id, resources, key="uri_template", at=at)
    _replace(server_id, prompts, key="name", at=at)
    listed = len(listing.tools) + len(listing.resources) + len(listing.prompts)
    result = SyncResult(
        tools=len(tools),
        resources=len(resources),
        prompts=len(prompts),
        added=added,
        changed=changed,
        vanished=vanished,
        skipped=listed - len(tools) - len(resources) - len(prompts),
    )
    _note(server_id, {"synced_at": at.isoformat()}, drop="sync_error", at=at)
    return result


def sync_failure_note(*, server_id: UUID, error: str, at: datetime) -> None:
    """Say in the row why its tools are not newer."""
    _note(server_id, {"sync_error": error}, drop="sync_error", at=at)


def _store_tools(
    server_id: UUID, listed: dict[str, ServerTool], *, at: datetime
) -> tuple[int, int, int]:
    """Add and change by hash; a tool that is gone is switched off, so that its counters stay.

    An empty hash marks a tool that the server no longer lists. Only such a one is switched on
    again when it comes back: what an operator switched off stays off.
    """
    known = {
        tool.name: tool.schema_hash
        for tool in ServerTool.objects.filter(server_id=server_id).only("name", "schema_hash")
    }
    fresh = [tool for name, tool in listed.items() if name not in known]
    changed = [t for n, t in listed.items() if n in known and known[n] != t.schema_hash]
    returned = [tool.name for tool in changed if known[tool.name] == ""]
    fields = ["title", "description", "input_schema", "output_schema", "annotations"]
    _upsert(ServerTool, [*fresh, *changed], key="name", fields=[*fields, "schema_hash"], at=at)
    mine = ServerTool.objects.filter(server_id=server_id)
    mine.filter(name__in=returned).update(is_enabled=True, updated_at=at)
    gone = mine.filter(is_enabled=True).exclude(name__in=list(listed))
    vanished = gone.update(is_enabled=False, schema_hash="", updated_at=at)
    return len(fresh), len(changed), vanished


def _replace(
    server_id: UUID,
    listed: dict[str, ServerResource] | dict[str, ServerPrompt],
    *,
    key: str,
    at: datetime,
) -> None:
    """Make the rows of one server what it lists; what is gone has nothing worth keeping."""
    model: type[ServerResource | ServerPrompt]
    model, fields = (
        (ServerResource, ["name", "description", "mime_type"])
        if key == "uri_template"
        else (ServerPrompt, ["description", "arguments"])
    )
    rows = model._default_manager.filter(server_id=server_id)
    rows.exclude(**{f"{key}__in": list(listed)}).delete()
    known = {getattr(row, key): row for row in rows}
    differing = [
        row
        for name, row in listed.items()
        if name not in known
        or any(getattr(known[name], field) != getattr(row, field) for field in fields)
    ]
    _upsert(model, differing, key=key, fields=fields, at=at)


def _upsert(
    model: type[Row], rows: Sequence[Any], *, key: str, fields: list[str], at: datetime
) -> None:
    for row in rows:
        row.updated_at = at
    model._default_manager.bulk_create(
        rows,
        batch_size=500,
        update_conflicts=True,
        unique_fields=["server", key],
        update_fields=[*fields, "updated_at"],
    )


def _tools(server_id: UUID, entries: Iterable[dict[str, Any]]) -> Iterable[ServerTool]:
    for entry in entries:
        yield ServerTool(
            server_id=server_id,
            name=entry["name"],
            title=(entry.get("title") or "")[:255],
            description=entry.get("description") or "",
            input_schema=entry.get("inputSchema") or {},
            output_schema=entry.get("outputSchema"),
            annotations=entry.get("annotations") or {},
            schema_hash=_hash(entry),
        )


def _resources(server_id: UUID, entries: Iterable[dict[str, Any]]) -> Iterable[ServerResource]:
    for entry in entries:
        yield ServerResource(
            server_id=server_id,
            uri_template=entry.get("uri") or entry.get("uriTemplate") or "",
            name=(entry.get("title") or entry.get("name") or "")[:255],
            description=entry.get("description") or "",
            mime_type=(entry.get("mimeType") or "")[:255],
        )


def _prompts(server_id: UUID, entries: Iterable[dict[str, Any]]) -> Iterable[ServerPrompt]:
    for entry in entries:
        yield ServerPrompt(
            server_id=server_id,
            name=entry["name"],
            description=entry.get("description") or "",
            arguments=entry.get("arguments") or [],
        )


def _by_key(rows: Iterable[Row], key: str) -> dict[str, Row]:
    """By name, in one order for all writers; the first of a name counts, misfits are left out."""
    longest = 2048 if key == "uri_template" else 255
    found: dict[str, Row] = {}
    for row in rows:
        name = getattr(row, key)
        if 0 < len(name) <= longest:
            found.setdefault(name, row)
    return dict(sorted(found.items()))


def _hash(entry: dict[str, Any]) -> str:
    """SHA-256 of a definition whatever the order of its keys, in hex."""
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()


def _note(server_id: UUID, notes: dict[str, str], *, drop: str, at: datetime) -> None:
    """Merge into `health_metadata` in the database: checks write it at the same time."""
    kept = Func(F("health_metadata"), Value(drop), template="(%(expressions)s)", arg_joiner=" - ")
    merged = Func(
        kept,
        Value(notes, JSONField()),
        template="(%(expressions)s)",
        arg_joiner=" || ",
        output_field=JSONField(),
    )
    MCPServer.objects.filter(pk=server_id).update(health_metadata=merged, updated_at=at)
