"""The whole ASGI application on a real socket, over the test database."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx2
import psycopg
import pytest
import uvicorn
from django.db import connections

from monitoring.models import RequestLog
from registry.models import MCPServer, Tenant
from security.models import EnhancedAPIKey
from tests.factories import EnhancedAPIKeyFactory, MCPServerFactory, TenantFactory
from tests.peers import Peer, running_peer

CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "add"}}


def wait_until(condition: Callable[[], Any], *, seconds: float = 5.0) -> Any:
    """The condition's first true value; the test fails when none comes in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    return pytest.fail(f"not within {seconds} s")


@pytest.fixture
def gateway_url(
    transactional_db: None, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The address of a running gateway that may call this machine."""
    settings.GATEWAY_ALLOW_PRIVATE_UPSTREAMS = True
    monkeypatch.setattr("gateway.proxy.plane.GAUGE_SECONDS", 0.1)
    with running_gateway() as url:
        yield url


class Told:
    """What notices one data plane has taken, so that a test can wait for those of its changes."""

    def __init__(self, plane: Any) -> None:
        self.plane = plane
        self.seen: deque[str] = deque(maxlen=1000)
        forget = plane.forget

        def noted(label: str) -> None:
            forget(label)
            self.seen.append(label)

        plane.forget = noted

    def all_of_them(self) -> None:
        """Return once every change that was committed before has been told."""
        wait_until(lambda: self.plane.contact.era is not None)
        mark = f"tenants.id={uuid4()}"  # PostgreSQL keeps the order of commits
        with psycopg.connect(**connections["default"].get_connection_params()) as own:
            own.execute("SELECT pg_notify('gateway_changes', %s)", [mark])
        wait_until(lambda: mark in self.seen)


# By the gateway's address.
told: dict[str, Told] = {}


@dataclass
class running_gateway:  # noqa: N801  (reads as the context manager that it is)
    """One gateway process's worth of data plane, in a thread."""

    plane: Any = None

    def __enter__(self) -> str:
        from gateway import asgi
        from gateway.proxy.plane import DataPlane

        plane = self.plane or DataPlane()
        notices = Told(plane)

        async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":
                await asgi.lifespan(plane, receive, send)
            else:
                await plane(scope, receive, send)

        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(application, log_level="warning", lifespan="on", ws="none")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(
            target=self.server.run, kwargs={"sockets": [listener]}, daemon=True
        )
        self.thread.start()
        wait_until(lambda: self.server.started)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        told[self.url] = notices
        return self.url

    def __exit__(self, *_: object) -> None:
        del told[self.url]
        self.server.should_exit = True
        self.thread.join(15)
        assert not self.thread.is_alive(), "the gateway did not stop"


@pytest.fixture
def peer() -> Iterator[Peer]:
    with running_peer() as running:
        yield running


@dataclass
class Scene:
    """A tenant with one server and one key, and a client that knows them."""

    url: str
    tenant: Tenant
    server: MCPServer
    key: EnhancedAPIKey
    peer: Peer

    def call(
        self,
        message: Any = None,
        *,
        slug: str | None = None,
        key: str | None = None,
        headers: dict[str, str] | None = None,
        method: str = "POST",
        timeout: float = 10,
    ) -> httpx2.Response:
        """The gateway's answer, once it was told of all that the test has changed."""
        told[self.url].all_of_them()
        return self.send(message, slug, key, headers, method, timeout)

    def send(
        self,
        message: Any = None,
        slug: str | None = None,
        key: str | None = None,
        headers: dict[str, str] | None = None,
        method: str = "POST",
        timeout: float = 10,
    ) -> httpx2.Response:
        """The same at once, whatever the gateway was told so far."""
        text = self.key.text if key is None else key
        sent = {"content-type": "application/json"} | (headers or {})
        if text:
            sent.setdefault("authorization", f"Bearer {text}")
        body = message if isinstance(message, bytes) else json.dumps(message or CALL).encode()
        return httpx2.request(
            method,
            f"{self.url}/mcp/{slug or self.server.slug}",
            content=body if method == "POST" else None,
            headers=sent,
            timeout=timeout,
            trust_env=False,
        )

    def row(self, response: httpx2.Response) -> RequestLog:
        """The log row of an answer, which must be there within a second."""
        id_ = response.headers["x-request-id"]
        found = RequestLog.objects.filter(request_id=id_)
        return wait_until(found.first, seconds=1.0)


@pytest.fixture
def scene(gateway_url: str, peer: Peer) -> Scene:
    tenant = TenantFactory()
    server = MCPServerFactory(tenant=tenant, endpoint_url=peer.url)
    key = EnhancedAPIKeyFactory(tenant=tenant)
    return Scene(gateway_url, tenant, server, key, peer)
