"""Whether an address can be listened on: found out before anything slow begins."""

from __future__ import annotations

import errno
import socket

from django.core.management import CommandError

__all__ = ["check_address", "url_of"]

REASONS = {
    errno.EADDRINUSE: "the port is taken: stop what uses it, or choose another with --port",
    errno.EACCES: "this user may not use that port: choose one from 1024 up with --port",
    errno.EADDRNOTAVAIL: "this machine does not have that address: choose another with --host",
}


def check_address(host: str, port: int) -> int:
    """Return the port, or for 0 a free one; CommandError says in one sentence why it cannot be."""
    if not 0 <= port <= 65535:
        raise CommandError(f"--port {port} is no port: choose one from 0 to 65535.", returncode=2)
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
            trial.listen(1)
            return int(trial.getsockname()[1])
    except socket.gaierror:
        raise CommandError(f"--host {host} is not a name or address of this machine.") from None
    except OSError as error:
        reason = REASONS.get(error.errno or 0, str(error.strerror).lower())
        raise CommandError(f"Cannot listen on {host}:{port}: {reason}.") from None


def url_of(host: str, port: int) -> str:
    """The address to print: one that a browser on this machine can open."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  (compared, not bound)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"
