"""Middleware of the control plane."""

import logging
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

from asgiref.sync import markcoroutinefunction
from django.db import OperationalError, transaction
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from structlog.contextvars import bind_contextvars, clear_contextvars

from gateway.errors import busy
from gateway.seldom import Seldom
from registry.db.ids import uuid7
from registry.db.tenancy import operator_transaction
from registry.sentences import first_line

logger = logging.getLogger(__name__)


class TransactionMiddleware:
    """One transaction a request, across tenants: who signs in is looked for in all of them.

    The API narrows it to the caller's tenant as soon as the caller is known. A refusal keeps what
    was done before it, a failed attempt for instance; an answer of 500 and above undoes all.
    Without a database there is no transaction, and the answer is 503.
    Synchronous, so that everything inside runs on the thread whose connection this is.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response
        self._seldom = Seldom()

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        with ExitStack() as stack:
            try:
                stack.enter_context(operator_transaction())
            except OperationalError as error:
                if self._seldom.is_due("database"):
                    logger.warning("pages and the API cannot be had: %s", first_line(error))
                return busy(request)
            response = self.get_response(request)
            if response.status_code >= 500:
                transaction.set_rollback(True)
        return response


class RequestIDMiddleware:
    """Gives each request its id; the audit log, the program's log and the answer carry it.

    It stands first, so that files and errors carry it too; and asynchronous like its neighbours,
    so that a file is not passed through a thread.
    """

    sync_capable = False
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Awaitable[HttpResponseBase]]) -> None:
        self.get_response = get_response
        markcoroutinefunction(self)

    async def __call__(self, request: HttpRequest) -> HttpResponseBase:
        id_ = uuid7()
        request.request_id = id_  # type: ignore[attr-defined]
        # Not unbound: Django tells of the answer's status after this. Each request starts anew.
        clear_contextvars()
        bind_contextvars(request_id=str(id_))
        response = await self.get_response(request)
        response.headers["X-Request-ID"] = str(id_)
        return response
