"""Answers that the gateway gives itself: an HTTP status and a JSON-RPC error that helps."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from security.refusals import Refusal, whole_seconds

__all__ = ["BROKEN_BODY", "Failure", "error_body"]

# JSON-RPC leaves -32000 to -32099 to implementations; MCP uses numbers from -32002 on.
GATEWAY_ERROR = -32000
BROKEN_BODY = (
    "The request's body ended before it was whole, or its chunks are malformed. Send it again."
)


@dataclass(slots=True)
class Failure(Exception):
    """Ends a call with an answer of the gateway's own. `retry_after` in seconds.

    `server_failed`: the server's breaker counts it. What the gateway itself refuses or cannot do
    says nothing about the server. `detail` is for the operators' log, never for the caller.
    """

    status: int
    reason: str
    message: str
    retry_after: float | None = None
    code: int = GATEWAY_ERROR
    headers: tuple[tuple[str, str], ...] = ()
    server_failed: bool = False
    detail: str = ""

    @classmethod
    def of(cls, refusal: Refusal) -> Failure:
        challenge = (("www-authenticate", 'Bearer realm="mcp-gateway"'),)
        return cls(
            status=refusal.status,
            reason=refusal.reason.value,
            message=refusal.message,
            retry_after=refusal.retry_after,
            headers=challenge if refusal.status == 401 else (),
        )

    def response_headers(self) -> list[tuple[str, str]]:
        found = [("content-type", "application/json"), ("cache-control", "no-store")]
        found.extend(self.headers)
        if self.retry_after is not None:
            found.append(("retry-after", str(whole_seconds(self.retry_after))))
        return found


def error_body(failure: Failure, *, message_id: Any, request_id: UUID) -> bytes:
    """The JSON-RPC error object, with the reason for programs and the message for people."""
    data: dict[str, Any] = {"reason": failure.reason, "request_id": str(request_id)}
    if failure.retry_after is not None:
        data["retry_after"] = whole_seconds(failure.retry_after)
    error = {"code": failure.code, "message": failure.message, "data": data}
    return json.dumps({"jsonrpc": "2.0", "id": message_id, "error": error}).encode()
