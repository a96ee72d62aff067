"""The server process: granian, one or more workers, each with the application of its own."""

from __future__ import annotations

import os
from typing import Any

from django.conf import settings
from granian import Granian
from granian.constants import Interfaces
from granian.log import LogLevels

from gateway.lifeline import die_with, leave_within

__all__ = ["serve"]

# Two deaths within it count as a crash loop, and the server gives up.
RESPAWN_SECONDS = 0.5
STOP_SECONDS = 12  # for requests in flight, a stream for instance; then a worker is killed
# Once all is said and done, for threads that wait for a database that says nothing.
THREADS_SECONDS = 1.0


def serve(*, host: str, port: int, workers: int) -> None:
    """Serve until SIGTERM or SIGINT. Opens no database connection here: the workers fork."""
    Granian(
        "gateway.asgi:application",
        address=host,
        port=port,
        workers=workers,
        interface=Interfaces.ASGI,
        respawn_failed_workers=True,
        respawn_interval=RESPAWN_SECONDS,
        workers_kill_timeout=STOP_SECONDS,
        # Django's threads do the work of the control plane; websockets are not spoken here.
        websockets=False,
        log_level=LogLevels.info,
        log_dictconfig=settings.LOGGING,
    ).serve(target_loader=_load, wrap_loader=False)


def _load() -> Any:
    """In the worker: end with the server's process, then load the application."""
    die_with(os.getppid())
    from gateway.asgi import application

    async def leaving(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await application(scope, receive, send)
        if scope["type"] == "lifespan":
            leave_within(THREADS_SECONDS)

    return leaving
