"""A wire to PostgreSQL that can be cut or frozen: one gateway loses its database, no one else."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connections


class Relay:
    """Passes bytes to the tests' database on a port of its own while it is `whole`."""

    def __init__(self) -> None:
        self.port = 0
        self._whole = True
        self._flows = asyncio.Event()
        self._flows.set()
        own = connections["default"].connection.info
        self._host, self._port_there = own.host, own.port
        self._loop = asyncio.new_event_loop()
        self._open: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """PostgreSQL is gone: what is connected breaks, and nothing new is let in."""
        self._change(whole=False)

    def freeze(self) -> None:
        """PostgreSQL says nothing any more, as after SIGSTOP: connections are made and stay."""
        self._change(whole=True, flows=False)

    def mend(self) -> None:
        self._change(whole=True)

    def _change(self, *, whole: bool, flows: bool = True) -> None:
        done = threading.Event()

        def change() -> None:
            self._whole = whole
            (self._flows.set if flows else self._flows.clear)()
            if not whole:
                for writer in self._open:
                    writer.transport.abort()
            done.set()

        self._loop.call_soon_threadsafe(change)
        assert done.wait(5)

    async def serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        server = await asyncio.start_server(self._passed, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await stop.wait()
        self._flows.set()
        server.close()
        for writer in self._open:
            writer.transport.abort()
        passing = asyncio.all_tasks() - {asyncio.current_task()}
        for task in passing:
            task.cancel()
        if passing:
            await asyncio.wait(passing, timeout=1)

    async def _passed(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._whole:
            writer.transport.abort()
            return
        if self._host.startswith("/"):
            socket = f"{self._host}/.s.PGSQL.{self._port_there}"
            ours, theirs = await asyncio.open_unix_connection(socket)
        else:
            ours, theirs = await asyncio.open_connection(self._host, self._port_there)
        self._open |= {writer, theirs}
        try:
            await asyncio.gather(self._copy(reader, theirs), self._copy(ours, writer))
        finally:
            self._open -= {writer, theirs}

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
        writer.close()


@contextmanager
def relayed(monkeypatch: Any) -> Iterator[Relay]:
    """Connections made from now on go through the relay; those that are open do not."""
    connections["default"].ensure_connection()
    relay = Relay()
    ready, stop = threading.Event(), asyncio.Event()
    run = relay.serve(ready, stop)
    thread = threading.Thread(target=relay._loop.run_until_complete, args=(run,), daemon=True)
    thread.start()
    assert ready.wait(5)
    settings = connections["default"].settings_dict
    with monkeypatch.context() as patch:
        patch.setitem(settings, "HOST", "127.0.0.1")
        patch.setitem(settings, "PORT", relay.port)
        try:
            yield relay
        finally:
            relay._loop.call_soon_threadsafe(stop.set)
            thread.join(5)
