"""The rows that are logged, and their lines in the text format of COPY.

One line a row, `id` and time first: what PostgreSQL is sent, what the spool keeps and what is
halved to find a bad row are the same bytes. Source: PostgreSQL's page on COPY, "Text Format".
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from registry.db.ids import uuid7

__all__ = [
    "AUDIT_LOGS",
    "REQUEST_LOGS",
    "SERVER_METRICS",
    "TABLES",
    "AuditRow",
    "Batch",
    "MetricRow",
    "RequestRow",
    "Row",
    "Table",
    "fields_of",
    "storable",
]


@dataclass(frozen=True, slots=True)
class Table:
    """A table of log rows: its columns in the order of a line, with PostgreSQL's type names."""

    name: str
    columns: dict[str, str]

    def __hash__(self) -> int:
        return hash(self.name)


REQUEST_LOGS = Table(
    "request_logs",
    {
        "id": "uuid",
        "request_time": "timestamptz",
        "request_id": "uuid",
        "tenant_id": "uuid",
        "user_id": "uuid",
        "api_key_id": "uuid",
        "ip_address": "inet",
        "method": "text",
        "path": "text",
        "rpc_method": "text",
        "tool_name": "text",
        "target_server_id": "uuid",
        "status_code": "int2",
        "duration_ms": "float8",
        "upstream_ms": "float8",
        "queue_ms": "float8",
        "request_size_bytes": "int8",
        "response_size_bytes": "int8",
        "error_type": "text",
        "error_message": "text",
        "protocol_version": "text",
        "request_metadata": "jsonb",
    },
)
AUDIT_LOGS = Table(
    "audit_logs",
    {
        "id": "uuid",
        "timestamp": "timestamptz",
        "tenant_id": "uuid",
        "user_id": "uuid",
        "api_key_id": "uuid",
        "service_name": "text",
        "action": "text",
        "resource_type": "text",
        "resource_id": "text",
        "details": "jsonb",
        "request_id": "uuid",
        "ip_address": "inet",
        "user_agent": "text",
        "success": "bool",
        "error_message": "text",
    },
)
SERVER_METRICS = Table(
    "server_metrics",
    {
        "id": "uuid",
        "timestamp": "timestamptz",
        "server_id": "uuid",
        "response_time_ms": "float8",
        "requests_per_second": "float8",
        "error_rate": "float8",
        "active_connections": "int4",
        "connection_pool_size": "int4",
        "custom_metrics": "jsonb",
    },
)
TABLES = {table.name: table for table in (REQUEST_LOGS, AUDIT_LOGS, SERVER_METRICS)}


@dataclass(slots=True, kw_only=True)
class RequestRow:
    """One row of `request_logs`, field by column; durations in milliseconds."""

    id: UUID = field(default_factory=uuid7)
    request_time: datetime
    request_id: UUID
    tenant_id: UUID | None = None
    user_id: UUID | None = None
    api_key_id: UUID | None = None
    ip_address: str | None = None
    method: str
    path: str
    rpc_method: str = ""
    tool_name: str = ""
    target_server_id: UUID | None = None
    status_code: int = 0
    duration_ms: float = 0.0
    upstream_ms: float | None = None
    queue_ms: float | None = None
    request_size_bytes: int = 0
    response_size_bytes: int = 0
    error_type: str = ""
    error_message: str = ""
    protocol_version: str = ""
    request_metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def table(self) -> Table:
        return REQUEST_LOGS

    def line(self) -> bytes:
        """The row's line: texts cut to their columns, without NUL characters."""
        ip, upstream, queue = self.ip_address, self.upstream_ms, self.queue_ms
        return (
            f"{self.id.int:032x}\t{self.request_time.isoformat()}\t{self.request_id.int:032x}"
            f"\t{_uuid(self.tenant_id)}\t{_uuid(self.user_id)}\t{_uuid(self.api_key_id)}"
            f"\t{NULL if ip is None else _text(ip, 64)}\t{_text(self.method, 16)}"
            f"\t{_text(self.path, 512)}\t{_text(self.rpc_method, 255)}"
            f"\t{_text(self.tool_name, 255)}\t{_uuid(self.target_server_id)}"
            f"\t{self.status_code}\t{self.duration_ms}"
            f"\t{NULL if upstream is None else upstream}\t{NULL if queue is None else queue}"
            f"\t{self.request_size_bytes}\t{self.response_size_bytes}"
            f"\t{_text(self.error_type, 63)}\t{_text(self.error_message, 2000)}"
            f"\t{_text(self.protocol_version, 32)}\t{_json(self.request_metadata)}\n"
        ).encode()


@dataclass(slots=True, kw_only=True)
class AuditRow:
    """One row of `audit_logs`, field by column."""

    id: UUID = field(default_factory=uuid7)
    timestamp: datetime
    tenant_id: UUID | None = None
    user_id: UUID | None = None
    api_key_id: UUID | None = None
    service_name: str = "proxy"
    action: str
    resource_type: str = ""
    resource_id: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    request_id: UUID | None = None
    ip_address: str | None = None
    user_agent: str = ""
    success: bool = True
    error_message: str = ""

    @property
    def table(self) -> Table:
        return AUDIT_LOGS

    def line(self) -> bytes:
        ip = self.ip_address
        return (
            f"{self.id.int:032x}\t{self.timestamp.isoformat()}\t{_uuid(self.tenant_id)}"
            f"\t{_uuid(self.user_id)}\t{_uuid(self.api_key_id)}\t{_text(self.service_name, 63)}"
            f"\t{_text(self.action, 63)}\t{_text(self.resource_type, 63)}"
            f"\t{_text(self.resource_id, 255)}\t{_json(self.details)}\t{_uuid(self.request_id)}"
            f"\t{NULL if ip is None else _text(ip, 64)}\t{_text(self.user_agent, 512)}"
            f"\t{'t' if self.success else 'f'}\t{_text(self.error_message, 2000)}\n"
        ).encode()


@dataclass(slots=True, kw_only=True)
class MetricRow:
    """One row of `server_metrics`, field by column; times in milliseconds, rates from 0 to 1."""

    id: UUID = field(default_factory=uuid7)
    timestamp: datetime
    server_id: UUID
    response_time_ms: float | None = None
    requests_per_second: float | None = None
    error_rate: float | None = None
    active_connections: int | None = None
    connection_pool_size: int | None = None
    custom_metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def table(self) -> Table:
        return SERVER_METRICS

    def line(self) -> bytes:
        numbers = (
            self.response_time_ms,
            self.requests_per_second,
            self.error_rate,
            self.active_connections,
            self.connection_pool_size,
        )
        figures = "\t".join(NULL if number is None else str(number) for number in numbers)
        return (
            f"{self.id.int:032x}\t{self.timestamp.isoformat()}\t{_uuid(self.server_id)}"
            f"\t{figures}\t{_json(self.custom_metrics)}\n"
        ).encode()


Row = RequestRow | AuditRow | MetricRow


@dataclass(slots=True)
class Batch:
    """Rows of one table, as lines; `columns` names the fields of each line."""

    table: Table
    columns: tuple[str, ...]
    lines: list[bytes]

    @classmethod
    def of(cls, table: Table, lines: list[bytes]) -> Batch:
        return cls(table, tuple(table.columns), lines)

    def with_lines(self, lines: list[bytes]) -> Batch:
        return Batch(self.table, self.columns, lines)

    def halves(self) -> list[Batch]:
        """The later half first: a stack takes the earlier one next."""
        middle = len(self.lines) // 2
        return [self.with_lines(self.lines[middle:]), self.with_lines(self.lines[:middle])]

    @property
    def day(self) -> str:
        """The day of its first row, as an ISO 8601 date."""
        return self.lines[0].split(b"\t", 2)[1][:10].decode()

    def days(self) -> list[Batch]:
        """One batch for each day (UTC) of the rows' times."""
        found: dict[bytes, list[bytes]] = {}
        for line in self.lines:
            found.setdefault(line.split(b"\t", 2)[1][:10], []).append(line)
        return [self.with_lines(lines) for lines in found.values()]


NULL = "\\N"
# What a line cannot hold as it is: escaped by COPY's rules, or not storable at all.
_SPECIAL = re.compile("[\\\\\n\r\t\0\ud800-\udfff]")
_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"})
_ESCAPED = re.compile(r"\\(.)")
_MEANING = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}


def storable(text: str) -> str:
    """A text as PostgreSQL can store it: no NUL, no lone surrogate."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def fields_of(line: bytes) -> list[str | None]:
    """A line's fields as text, None for NULL: what COPY would read."""
    return [_field(text) for text in line.decode().removesuffix("\n").split("\t")]


def _field(text: str) -> str | None:
    if text == NULL:
        return None
    return _ESCAPED.sub(lambda found: _MEANING[found[1]], text) if "\\" in text else text


def _uuid(value: UUID | None) -> str:
    return NULL if value is None else f"{value.int:032x}"  # half the cost of str(value)


def _text(text: str, width: int) -> str:
    if _SPECIAL.search(text) is None:
        return text[:width]
    return storable(text)[:width].translate(_ESCAPES)


def _json(value: dict[str, Any]) -> str:
    if not value:
        return "{}"
    return json.dumps(_storable_tree(value), ensure_ascii=False).translate(_ESCAPES)


def _storable_tree(value: Any) -> Any:
    """The same for the texts inside: an escaped NUL is no JSON that PostgreSQL stores."""
    if isinstance(value, dict):
        return {storable(key): _storable_tree(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_storable_tree(item) for item in value]
    return storable(value) if isinstance(value, str) else value
