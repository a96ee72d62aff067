"""The program's own log on standard error: one line an event, as text or as JSON."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import structlog

from gateway.seldom import lost_connection, once_a_minute, told_before, wrong_host

__all__ = ["logging_config"]


def logging_config(*, level: str, style: str) -> dict[str, Any]:
    """Django's LOGGING: every logger's records through structlog; `style` is "text" or "json"."""
    shared = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "line": {
                "()": structlog.stdlib.ProcessorFormatter,
                "foreign_pre_chain": shared,
                "processors": [
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    *_rendering(style),
                ],
            },
        },
        "filters": {
            filter_.__name__: {"()": partial(_given, filter_)}
            for filter_ in (lost_connection, once_a_minute, told_before, wrong_host)
        },
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"handlers": ["stderr"], "level": level},
        "loggers": {
            # Django's own handlers would say each server error twice.
            "django": {"handlers": [], "propagate": True},
            "django.server": {"handlers": [], "propagate": True},
            "_granian": {"handlers": ["stderr"], "propagate": False},
            "django.request": {"filters": ["told_before"]},
            "django.security.DisallowedHost": {"filters": ["wrong_host"]},
            # It tells each job at INFO, which is every few seconds.
            "procrastinate": {"level": "WARNING"},
            "procrastinate.worker.worker": {"filters": ["lost_connection"]},
            # It tells each attempt to connect; who asked for the connection tells it once.
            "psycopg.pool": {"level": "ERROR"},
            # Each attempt to send spans, and each batch that is given up.
            "opentelemetry.exporter.otlp.proto.http.trace_exporter": {"filters": ["once_a_minute"]},
            "opentelemetry.sdk._shared_internal": {"filters": ["once_a_minute"]},
        },
    }


Filter = Callable[[logging.LogRecord], bool]


def _given(filter_: Filter) -> Filter:
    """Django's LOGGING wants factories."""
    return filter_


def _rendering(style: str) -> list[Any]:
    if style == "json":
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    return [
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            pad_event_to=0,
            # Not the default one, which shows local variables, and so keys.
            exception_formatter=structlog.dev.plain_traceback,
        )
    ]
