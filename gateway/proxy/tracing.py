"""Whether calls leave spans: when the environment names a collector and the extra is installed.

Nothing of the SDK is imported otherwise, and a call then costs a look at `plane.tracing`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.proxy.spans import Tracing

__all__ = ["tracing_from_environment"]

logger = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


def tracing_from_environment(environ: Mapping[str, str] = os.environ) -> Tracing | None:
    """What sends spans to the collector of OpenTelemetry's own variables; None: nobody asked.

    What is asked for and cannot be had is told, and calls go on without spans.
    """
    if not any(environ.get(name) for name in ENDPOINTS) or _is_off(environ):
        return None
    protocol = next((environ[name] for name in PROTOCOLS if environ.get(name)), "http/protobuf")
    if protocol != "http/protobuf":
        logger.warning(
            "no spans are sent: %s is %s; write http/protobuf", " or ".join(PROTOCOLS), protocol
        )
        return None
    try:
        from gateway.proxy.spans import otlp_tracing
    except ImportError as error:
        logger.warning("no spans are sent: install the extra `otel` (%s)", error)
        return None
    try:
        return otlp_tracing()
    except Exception as error:  # noqa: BLE001  (the SDK refuses some values of its variables)
        logger.warning("no spans are sent: check the OTEL_* variables (%s)", error)
        return None


def _is_off(environ: Mapping[str, str]) -> bool:
    is_disabled = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return is_disabled or environ.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() == "none"
