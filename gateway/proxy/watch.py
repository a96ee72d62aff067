"""Listens to PostgreSQL's notices of change, and keeps asking while it is away."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime
from typing import Any
from uuid import uuid4

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from gateway.proxy.contact import Contact
from registry.db.pool import async_direct_connection
from registry.sentences import first_line

__all__ = ["CHANNEL", "Watch"]

logger = logging.getLogger(__name__)

CHANNEL = "gateway_changes"
# How often the listening connection is asked for a sign of life, and how long it has for one: a
# server that vanished without a word would otherwise be believed to have nothing to tell.
BEAT_SECONDS = 2.0
# Between attempts to connect: doubled each time, from the first to the second figure.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 3.0

ERRORS = (psycopg.Error, OSError, TimeoutError)


class Deaf(psycopg.OperationalError):
    """The connection stands, but no notice comes through."""


class Watch:
    """`run` never ends. `forget` takes each notice, `back` runs whenever notices come again.

    `announce` sends a notice by the way that calls take and raises when the database does not
    answer. It proves that the listening connection hears what happens, which one through a
    transaction pooler does not. Where only that connection cannot be had, calls go on, each with
    its own questions.
    """

    def __init__(
        self,
        contact: Contact,
        *,
        forget: Callable[[str], None],
        announce: Callable[[str], Awaitable[None]],
        back: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self._contact = contact
        self._forget = forget
        self._announce, self._back = announce, back
        self._pause = FIRST_PAUSE
        self._is_told_deaf = False

    async def run(self) -> None:
        try:
            while True:
                await self._one_attempt()
        finally:
            self._contact.lost()  # nobody listens any more

    async def _one_attempt(self) -> None:
        """Stay in touch for as long as it lasts; then see what is left."""
        why: object = None
        try:
            await self._stay_in_touch()
        except ERRORS as error:
            why = error
        except Exception as error:
            logger.exception("listening failed")
            why = error
        if self._contact.era is not None:
            logger.warning("the gateway lost its listening connection: %s", _words(why))
            self._contact.lost()
            await asyncio.sleep(FIRST_PAUSE)  # most often it can simply be made again
            return
        await self._look_elsewhere(why)
        await asyncio.sleep(self._pause)
        self._pause = min(LONGEST_PAUSE, self._pause * 2)

    async def _stay_in_touch(self) -> None:
        connection = await async_direct_connection(application_name="mcp-gateway changes")
        back: asyncio.Task[None] | None = None
        try:
            await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(CHANNEL)))
            await self._check_hearing(connection)
            since = self._contact.lost_at if self._contact.is_away else None
            self._contact.in_touch()
            self._pause, self._is_told_deaf = FIRST_PAUSE, False
            _tell_back(since)
            # Beside: notices are not to wait for it.
            back = asyncio.create_task(self._back(), name="watch: back")
            while True:
                async for notice in connection.notifies(timeout=BEAT_SECONDS):
                    self._forget(notice.payload)
                await self._beat(connection)
        finally:
            if back is not None:
                back.cancel()
            await connection.close()

    async def _check_hearing(self, connection: AsyncConnection[TupleRow]) -> None:
        """Deaf when a notice that is sent now does not arrive."""
        mark, until = _mark(), time.monotonic() + BEAT_SECONDS
        await self._announce(mark)
        while (left := until - time.monotonic()) > 0:
            # Never left early: what came in the same packet would be lost with the generator.
            texts = [n.payload async for n in connection.notifies(timeout=left, stop_after=1)]
            for text in texts:
                self._forget(text)
            if mark in texts:
                return
        raise Deaf("notices do not arrive on it, as through a transaction pooler")

    async def _beat(self, connection: AsyncConnection[TupleRow]) -> None:
        """Ask for a sign of life. TimeoutError when none comes in time."""
        beat = asyncio.create_task(connection.execute("SELECT 1"), name="watch: beat")
        done, _ = await asyncio.wait({beat}, timeout=BEAT_SECONDS)
        if not done:
            await connection.close()  # first: cancelling would ask the silent server again
            beat.add_done_callback(_retrieve)
            beat.cancel()
            raise TimeoutError("the listening connection gives no sign of life")
        beat.result()
        self._contact.reachable()

    async def _look_elsewhere(self, why: object) -> None:
        """Notices do not come: does the database answer at all?

        The first time that it does it may have come back since listening was tried.
        """
        was_away, was_reachable = self._contact.is_away, self._contact.is_reachable
        since = self._contact.lost_at
        try:
            await self._announce(_mark())
        except ERRORS as error:
            self._contact.away()
            if not was_away:
                self._tell_away(error)
            return
        self._contact.reachable()
        if was_away:
            _tell_back(since)
        elif was_reachable and not self._is_told_deaf:
            self._is_told_deaf = True
            logger.warning(
                "no connection that hears of changes, so each call asks the database: %s. "
                "Check DATABASE_DIRECT_URL and the server's max_connections",
                _words(why),
            )

    def _tell_away(self, error: Exception) -> None:
        calls = "go on from memory" if self._contact.may_use_memory else "are refused"
        logger.warning("the database is away, calls %s: %s", calls, first_line(error))


def _tell_back(since: datetime | None) -> None:
    if since is not None:
        logger.warning("the database is back; it was away since %s", since.isoformat())


def _words(why: object) -> str:
    return first_line(why) if isinstance(why, Exception) else "it ended"


def _mark() -> str:
    """The text of a notice that names no row of anybody's."""
    return f"{CHANNEL}.mark={uuid4()}"


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Of a task that nobody awaits any more: asyncio would print what became of it."""
    if not task.cancelled():
        task.exception()
