"""What the log says of a database that goes and comes, in the order of what happens."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from gateway.proxy import watch as watching
from gateway.proxy.contact import Contact
from gateway.proxy.watch import Watch

DEAF = "no connection that hears of changes, so each call asks the database: starting up"


@pytest.mark.parametrize(("knows", "calls"), [(True, "go on from memory"), (False, "are refused")])
def test_a_database_that_just_came_back_is_not_called_deaf(
    knows: bool, calls: str, monkeypatch: Any, caplog: Any
) -> None:
    contact, answers = Contact(), iter([False, False, True, True, True])
    if knows:
        contact.in_touch()
        contact.lost()

    async def announce(_text: str) -> None:
        if not next(answers):
            raise psycopg.OperationalError("refused")

    async def no_listener(**_options: Any) -> None:
        raise psycopg.OperationalError("starting up")

    async def attempts() -> list[list[str]]:
        watch, said = Watch(contact, forget=print, announce=announce, back=attempts), []
        for _ in range(5):
            await watch._one_attempt()
            said.append(list(caplog.messages))
            caplog.clear()
        return said

    monkeypatch.setattr(watching, "async_direct_connection", no_listener)
    monkeypatch.setattr(watching, "LONGEST_PAUSE", 0)
    monkeypatch.setattr(watching, "FIRST_PAUSE", 0)
    gone, still_gone, back, deaf, still_deaf = asyncio.run(attempts())
    assert gone == [f"the database is away, calls {calls}: refused"]
    assert [text.partition(" since ")[0] for text in back] == ["the database is back; it was away"]
    assert [text.partition(". Check ")[0] for text in deaf] == [DEAF]
    assert still_gone == still_deaf == []
