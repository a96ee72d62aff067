"""The ASGI application: /mcp, probes and metrics to the data plane, everything else to Django."""

from __future__ import annotations

import os
from typing import Any

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway.settings")
django_application = get_asgi_application()

from gateway.control import ControlPlane  # noqa: E402  (needs the apps loaded)
from gateway.proxy.exchange import Receive, Send  # noqa: E402
from gateway.proxy.plane import DataPlane  # noqa: E402

plane = DataPlane()
control = ControlPlane(django_application, plane.contact)  # type: ignore[arg-type]  # plain dicts


async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """ASGI 3. Django handles no lifespan, so the data plane's start and stop are told here."""
    if scope["type"] == "lifespan":
        await lifespan(plane, receive, send)
    elif scope["type"] == "http" and _is_data_plane(scope["path"]):
        await plane(scope, receive, send)
    elif scope["type"] == "http":
        await control(scope, receive, send)
    else:
        await send({"type": "websocket.close", "code": 1008})


def _is_data_plane(path: str) -> bool:
    return path in {"/mcp", "/metrics"} or path.startswith(("/mcp/", "/health/"))


async def lifespan(plane: DataPlane, receive: Receive, send: Send) -> None:
    """Start and stop a data plane with the server that carries it."""
    while True:
        event = await receive()
        if event["type"] == "lifespan.startup":
            try:
                await plane.start()
            except Exception as error:
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                raise
            await send({"type": "lifespan.startup.complete"})
        else:
            await plane.stop()
            await send({"type": "lifespan.shutdown.complete"})
            return
