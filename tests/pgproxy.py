"""A way to PostgreSQL that can be cut, held up, or lose an answer at the worst moment."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from registry.db.pool import Pool, async_pool


class PgProxy:
    """Passes bytes between clients and PostgreSQL; every method takes effect at once."""

    def __init__(self, where: dict[str, Any]) -> None:
        self._where = where
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._up = threading.Event()
        self._up.set()
        self._flows = threading.Event()
        self._flows.set()
        self._losing = b""
        self.lost = 0
        threading.Thread(target=self._accept, daemon=True).start()

    # ------------------------------------------------------------ what tests do to it

    def cut(self) -> None:
        """Drop all connections, and new ones until `mend`."""
        self._up.clear()
        self._drop(list(self._pairs))

    def mend(self) -> None:
        self._up.set()
        self._flows.set()

    def hold_up(self) -> None:
        """Pass nothing on until `mend`."""
        self._flows.clear()

    def lose_answer_to(self, statement: bytes) -> None:
        """Pass the next such statement on, wait for its answer, and drop the connection."""
        self._losing = statement

    def close(self) -> None:
        self._listener.close()
        self.cut()
        self._flows.set()

    # ------------------------------------------------------------ passing

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if not self._up.is_set():
                client.close()
                continue
            pair = (client, self._connect())
            self._pairs.add(pair)
            losing = threading.Event()
            for work in (self._from_client, self._from_server):
                threading.Thread(target=work, args=(pair, losing), daemon=True).start()

    def _connect(self) -> socket.socket:
        host, port = str(self._where["host"]), int(self._where.get("port") or 5432)
        if host.startswith("/"):
            server = socket.socket(socket.AF_UNIX)
            server.connect(f"{host}/.s.PGSQL.{port}")
            return server
        return socket.create_connection((host, port))

    def _from_client(self, pair: tuple[socket.socket, socket.socket], losing: Any) -> None:
        with contextlib.suppress(OSError):
            while data := pair[0].recv(65536):
                self._flows.wait()
                if self._losing and self._losing in data:
                    self._losing = b""
                    losing.set()
                pair[1].sendall(data)
        self._drop([pair])

    def _from_server(self, pair: tuple[socket.socket, socket.socket], losing: Any) -> None:
        with contextlib.suppress(OSError):
            while data := pair[1].recv(65536):
                self._flows.wait()
                if losing.is_set():
                    self.lost += 1
                    break
                pair[0].sendall(data)
        self._drop([pair])

    def _drop(self, pairs: list[tuple[socket.socket, socket.socket]]) -> None:
        for pair in pairs:
            self._pairs.discard(pair)
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()


@contextmanager
def pg_proxy() -> Iterator[PgProxy]:
    """A proxy before the test database."""
    proxy = PgProxy(dict(async_pool(max_size=1, timeout=1).kwargs))
    try:
        yield proxy
    finally:
        proxy.close()


def pool_through(proxy: PgProxy, **changes: Any) -> Pool:
    """A closed pool of connections through the proxy; no TLS, so that it sees statements."""
    pool = async_pool(max_size=4, timeout=1)
    own = {"host": "127.0.0.1", "port": proxy.port, "sslmode": "disable"}
    pool.kwargs = dict(pool.kwargs) | own | changes
    return pool
