from contextlib import nullcontext
from typing import Any

from django.core.management import CommandError
from django.core.management.commands import migrate

from gateway.schema import SchemaBusyError, migrating_alone
from registry.db.direct import PoolerError


class Command(migrate.Command):
    """Django's own, one process at a time: a second one would fail over half-made tables."""

    def handle(self, *args: Any, **options: Any) -> None:
        changes = not (options["plan"] or options["check_unapplied"])
        try:
            with migrating_alone() if changes else nullcontext():
                super().handle(*args, **options)
        except (PoolerError, SchemaBusyError) as error:
            raise CommandError(str(error)) from None
