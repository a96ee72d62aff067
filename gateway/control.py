"""Django behind a bound: so many requests at once, and none that waits for a silent database."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from gateway.proxy.contact import Contact
from gateway.proxy.failures import BROKEN_BODY
from registry.api.errors import Busy
from registry.db.ids import uuid7

__all__ = ["ControlPlane"]

logger = logging.getLogger(__name__)

Send = Callable[[dict[str, Any]], Awaitable[None]]
Application = Callable[[dict[str, Any], Any, Send], Awaitable[None]]

# It opens a connection a request: more at once wait, so that it cannot take all of PostgreSQL's,
# which the data plane needs.
PLACES = 16
# A request that has run for so long while PostgreSQL is away is answered for. Longer than what a
# new connection waits, so that only threads in the middle of a statement are given up.
GIVE_UP_SECONDS = 8.0
LOOK_SECONDS = 0.5


class ControlPlane:
    """An ASGI application for HTTP requests, all but those of the data plane.

    A thread that waits for a server whose processes are frozen cannot be woken: no time-out of the
    network sees that. It is left alone with its place, and the caller is told.
    """

    def __init__(self, application: Application, contact: Contact) -> None:
        self._application, self._contact = application, contact
        self._places = asyncio.Semaphore(PLACES)
        self._left: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Send) -> None:
        answer = _Answer(send)
        work = asyncio.create_task(self._in_place(scope, receive, answer))
        try:
            if await self._ends(work):
                work.result()
                return
        except asyncio.CancelledError:
            work.cancel()
            raise
        self._left.add(work)
        work.add_done_callback(self._left.discard)
        logger.error("a request is given up, its thread waits for PostgreSQL: %s", scope["path"])
        await answer.give_up(scope["path"])

    async def _in_place(self, scope: dict[str, Any], receive: Any, answer: _Answer) -> None:
        async with self._places:
            if answer.is_given_up:
                return
            await self._application(scope, receive, answer.send)
        if not answer.has_begun:
            # Django leaves without a word where the server says that the caller has gone, which
            # it also says of a body that cannot be read.
            await answer.end(scope["path"], 400, BROKEN_BODY)

    async def _ends(self, work: asyncio.Task[None]) -> bool:
        """True when the work is done, False when it is not going to be."""
        began = time.monotonic()
        while not work.done():
            await asyncio.wait({work}, timeout=LOOK_SECONDS)
            if self._contact.is_away and time.monotonic() - began > GIVE_UP_SECONDS:
                return work.done()
        return True


class _Answer:
    """What is sent, until it is given up: what comes later has nobody to go to."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_begun = self.is_given_up = False

    async def send(self, message: dict[str, Any]) -> None:
        if not self.is_given_up:
            self.has_begun = True
            await self._send(message)

    async def give_up(self, path: str) -> None:
        """503, unless the answer has begun: then it ends where it is."""
        retry = (b"retry-after", str(Busy.wait).encode())
        await self.end(path, Busy.status_code, Busy.default_detail, retry)

    async def end(self, path: str, status: int, text: str, *headers: tuple[bytes, bytes]) -> None:
        """Answer in the API's shape or in plain text, if nothing was sent yet; no more is sent."""
        was_given_up, self.is_given_up = self.is_given_up, True
        if self.has_begun or was_given_up:
            return
        id_, is_api = str(uuid7()), path.startswith("/api/")
        logger.info("answered with %d: %s", status, path, extra={"request_id": id_})
        body = json.dumps({"detail": text, "request_id": id_}) if is_api else text
        own = [
            (b"content-type", b"application/json" if is_api else b"text/plain; charset=utf-8"),
            (b"x-request-id", id_.encode()),
            *headers,
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": own})
        await self._send({"type": "http.response.body", "body": body.encode()})
