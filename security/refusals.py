"""Why a call is refused: a reason that programs read, a sentence that people act on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Reason", "Refusal", "whole_seconds"]


class Reason(StrEnum):
    """The `reason` values of refusals that access control decides; see the README's table."""

    MISSING_CREDENTIALS = "missing_credentials"
    INVALID_CREDENTIALS = "invalid_credentials"
    KEY_LOCKED = "key_locked"
    KEY_EXPIRED = "key_expired"
    IP_NOT_ALLOWED = "ip_not_allowed"
    SCOPE_MISSING = "scope_missing"
    SERVER_NOT_ALLOWED = "server_not_allowed"
    METHOD_DENIED = "method_denied"
    OUTSIDE_ALLOWED_TIME = "outside_allowed_time"
    SERVER_NOT_FOUND = "server_not_found"
    RATE_LIMITED = "rate_limited"


_STATUS = {
    Reason.MISSING_CREDENTIALS: 401,
    Reason.INVALID_CREDENTIALS: 401,
    Reason.KEY_LOCKED: 401,
    Reason.KEY_EXPIRED: 401,
    Reason.SERVER_NOT_FOUND: 404,
    Reason.RATE_LIMITED: 429,
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """One refusal. `retry_after` is in seconds; None means that waiting will not help."""

    reason: Reason
    message: str
    retry_after: float | None = None

    @property
    def status(self) -> int:
        """The HTTP status that goes with the reason."""
        return _STATUS.get(self.reason, 403)

    @property
    def retry_after_header(self) -> str | None:
        """The value of Retry-After."""
        return None if self.retry_after is None else str(whole_seconds(self.retry_after))


def whole_seconds(wait: float) -> int:
    """Of a time to wait: never too little, and at least one, as clients read 0 as 'at once'."""
    return max(1, math.ceil(wait))
