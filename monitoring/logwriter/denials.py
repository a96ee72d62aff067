"""Refused calls and logins in the audit log: every one counted, a flood of them no flood of rows.

A caller's first denial for a reason is a row at once. What it repeats is one row a minute with
a count, and so on until a minute passes without. That row's first version, with the count 1, is
journalled at the first repetition, so that a kill loses at most the running minute's count;
its last version, with the same id, replaces it when the minute is over. A minute lasts until the
writer closes it, which waits while its audit rows cannot leave memory.

Callers beyond `MAX_SLOTS` in a minute share one row: addresses are cheap, memory is not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from monitoring.logwriter.rows import AuditRow

__all__ = ["Denial", "Denials"]

WINDOW_SECONDS = 60.0
MAX_SLOTS = 1000
ACTION = "call.deny"
LOGIN = "session.deny"


@dataclass(frozen=True, slots=True, kw_only=True)
class Denial:
    """One refused call or login: what is known of who asked for what, and why not."""

    reason: str
    message: str
    action: str = ACTION
    method: str = ""
    tool: str = ""
    server: str = ""
    server_id: UUID | None = None
    tenant_id: UUID | None = None
    user_id: UUID | None = None
    api_key_id: UUID | None = None
    key_prefix: str = ""
    request_id: UUID | None = None
    ip_address: str | None = None
    user_agent: str = ""
    username: str = ""  # of a login, as it was typed

    def row(self, at: datetime) -> AuditRow:
        asked = {
            "method": self.method,
            "tool": self.tool,
            "server": self.server,
            "key_prefix": self.key_prefix,
        }
        details = {
            "reason": self.reason,
            **({"username": self.username} if self.action == LOGIN else asked),
            "count": 1,
            "first": at.isoformat(),
            "last": at.isoformat(),
        }
        return AuditRow(
            timestamp=at,
            tenant_id=self.tenant_id,
            user_id=self.user_id,
            api_key_id=self.api_key_id,
            action=self.action,
            service_name="admin" if self.action == LOGIN else "proxy",
            resource_type="mcp_servers" if self.server_id else "",
            resource_id=str(self.server_id or ""),
            details=details,
            request_id=self.request_id,
            ip_address=self.ip_address,
            user_agent=self.user_agent,
            success=False,
            error_message=self.message,
        )


Key = tuple[object, str]
VARIOUS = "various"
MOST_NAMES = 20  # of those that one address tries in a minute


class Denials:
    """Counts denials by caller (its key, else its address) and reason.

    `put` takes a row that is complete, `hold` the first version of one that will grow.
    """

    def __init__(
        self, *, put: Callable[[AuditRow], None], hold: Callable[[AuditRow], None]
    ) -> None:
        self._put, self._hold = put, hold
        self._slots: dict[Key, AuditRow | None] = {}  # None: nothing repeated yet

    def note(self, denial: Denial, *, at: datetime) -> None:
        """Count one denial."""
        key: Key = (denial.api_key_id or denial.ip_address, f"{denial.action} {denial.reason}")
        if key not in self._slots and len(self._slots) >= MAX_SLOTS:
            key, denial = (None, f"{denial.action} {VARIOUS}"), _anybody(denial)
        if key not in self._slots:
            self._slots[key] = None
            self._put(denial.row(at))
        elif (row := self._slots[key]) is None:
            row = self._slots[key] = denial.row(at)
            self._hold(row)
        else:
            row.details["count"] += 1
            row.details["last"] = at.isoformat()
            _note_name(row, denial.username)

    def close_window(self) -> list[AuditRow]:
        """The last versions of the held rows; who repeated nothing starts anew."""
        finished = {key: row for key, row in self._slots.items() if row is not None}
        self._slots = dict.fromkeys(finished)
        return list(finished.values())


def _note_name(row: AuditRow, username: str) -> None:
    """Who tries several names hides none of them behind the first."""
    first = row.details.get("username", "")
    names = row.details.get("usernames", [first])
    if username not in names and len(names) < MOST_NAMES:
        row.details["usernames"] = [*names, username]


def _anybody(denial: Denial) -> Denial:
    """The row that the callers beyond the bound share names none of them."""
    where = "" if denial.action == LOGIN else "; the request log has all"
    return Denial(
        action=denial.action,
        reason=VARIOUS,
        message=f"More callers were refused than are listed one by one{where}.",
        request_id=denial.request_id,
    )
