"""A real HTTP server that stands for a webhook's or a heartbeat's receiver."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Call:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """What came in, and with what the next calls are answered (200 when the list is empty)."""

    url: str = ""
    answers: list[int] = field(default_factory=list)
    hangs: threading.Event | None = None  # set it to let go of the calls that hang
    calls: list[Call] = field(default_factory=list)


@contextmanager
def receiving(*answers: int, hangs: bool = False) -> Iterator[Receiver]:
    """Listen on a port of 127.0.0.1; the block's end lets go of everything."""
    receiver = Receiver(answers=list(answers), hangs=threading.Event() if hangs else None)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(receiver))
    server.daemon_threads = True
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}/hook?token=4712"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        if receiver.hangs is not None:
            receiver.hangs.set()
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)


def _handler(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.calls.append(Call(self.command, self.path, headers, body))
            if receiver.hangs is not None:
                receiver.hangs.wait(timeout=60)
                return
            status = receiver.answers.pop(0) if receiver.answers else 200
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST  # noqa: N815  (the library's names)

        def log_message(self, *_: Any) -> None:
            """Nothing on the tests' standard error."""

    return Handler
