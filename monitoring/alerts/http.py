"""Calls that the watcher makes to the outside: webhooks and the heartbeat. Short, bounded, once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial

from asgiref.sync import async_to_sync

from registry.upstream import AddressPolicy, guarded_socket

__all__ = ["CALL_SECONDS", "CallFailed", "call"]

CALL_SECONDS = 5.0  # for all of it: name, connection, TLS, answer


class CallFailed(Exception):
    """The other side did not take it; the message says why, without the URL's path and query."""


def call(
    url: str,
    *,
    method: str = "POST",
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    policy: AddressPolicy | None = None,
) -> None:
    """One request; CallFailed unless the answer is 2xx within CALL_SECONDS.

    Follows no redirect and reads no body. With a policy only its addresses are connected to.
    """
    async_to_sync(_call)(url, method, body, headers or {}, policy)


async def _call(
    url: str,
    method: str,
    body: bytes,
    headers: Mapping[str, str],
    policy: AddressPolicy | None,
) -> None:
    import aiohttp  # which reads all of the system's certificates: no command should wait for it

    guard = None if policy is None else partial(guarded_socket, policy=policy)
    connector = aiohttp.TCPConnector(socket_factory=guard, force_close=True)
    try:
        async with (
            asyncio.timeout(CALL_SECONDS),
            aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
            ) as session,
            session.request(
                method, url, data=body or None, headers=headers, allow_redirects=False
            ) as answer,
        ):
            status = answer.status
    except TimeoutError:
        raise CallFailed(f"no answer within {CALL_SECONDS:g} s") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise CallFailed(_why(error)) from None
    if not 200 <= status < 300:
        raise CallFailed(f"it answered {status} where 2xx is expected")


def _why(error: Exception) -> str:
    import aiohttp

    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, PermissionError):
        return (cause.strerror or "it may not be connected to").rstrip(".")
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "it closed the connection without an answer"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its name has no address"
    if isinstance(error, aiohttp.ClientConnectorError | OSError):
        return "no connection could be made"
    return "its answer is not valid HTTP"
