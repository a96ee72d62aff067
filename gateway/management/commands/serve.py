from __future__ import annotations

import argparse
from contextlib import suppress
from typing import Any

from django.conf import settings
from django.core.management import BaseCommand, CommandError, CommandParser
from django.db import OperationalError

from gateway.listening import check_address
from gateway.schema import SchemaMissingError, schema_check
from gateway.server import serve
from monitoring.logwriter.writer import spool_check
from registry.db.crossing import CrossingError, crossing_check


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def add_server_arguments(parser: CommandParser) -> None:
    parser.add_argument(
        "--host", default="127.0.0.1", help="Default: 127.0.0.1, this machine only."
    )
    parser.add_argument("--port", type=int, default=8000, help="Default: 8000; 0 takes a free one.")
    parser.add_argument("--workers", type=positive, default=1, help="Server processes. Default: 1.")


class Command(BaseCommand):
    help = "Serve the gateway: MCP, REST API and admin. SIGTERM and Ctrl-C stop it gracefully."
    requires_system_checks = []  # the workers load the application; this process only watches

    def add_arguments(self, parser: CommandParser) -> None:
        add_server_arguments(parser)

    def handle(self, *, host: str, port: int, workers: int, **_options: Any) -> None:
        if not (settings.DEBUG or settings.SECRETS_ARE_OWN):
            raise CommandError(
                "Set SECRET_KEY and ENCRYPTION_KEYS: in production the gateway does not run on "
                "secrets that it made itself."
            )
        port = check_address(host, port)
        spool_check()  # here, not in each of the workers
        try:
            with suppress(OperationalError):  # away: calls are answered with 503 until it is back
                crossing_check()
                schema_check()
        except (CrossingError, SchemaMissingError) as error:
            raise CommandError(str(error)) from None
        serve(host=host, port=port, workers=workers)
