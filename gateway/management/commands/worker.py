from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from gateway.schema import SchemaMissingError
from gateway.worker import run_worker
from registry.db.crossing import CrossingError
from registry.db.partitions import PartitionsError


class Command(BaseCommand):
    help = "Do the background work until SIGTERM or Ctrl-C. Any number of workers may run."
    requires_system_checks = []  # they are about the code, and load every page

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--concurrency", type=int, default=4, metavar="N", help="Jobs at a time. Default: 4."
        )

    def handle(self, *, concurrency: int, **_options: Any) -> None:
        if concurrency < 1:
            raise CommandError("--concurrency must be at least 1.", returncode=2)
        if not (settings.SECRETS_ARE_OWN or settings.DEBUG):
            raise CommandError(
                "Set SECRET_KEY and ENCRYPTION_KEYS: in production every process must share them. "
                "(DEBUG=on uses those that were made for development.)"
            )
        try:
            run_worker(concurrency=concurrency, told=self.stdout.write)
        except (CrossingError, PartitionsError, SchemaMissingError) as error:
            raise CommandError(str(error)) from None
