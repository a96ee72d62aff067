from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandParser

from registry.db.crossing import acting_as_owner

# As the command line gives them to each alone. Only after the first there is a role to take.
RIGHTS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "init_db": nullcontext,
    "optimize_db": acting_as_owner,
    "seed_dev_data": acting_as_owner,
}


class Command(BaseCommand):
    help = "init_db, then what the flags say: performance objects, development data, or both."
    requires_system_checks = []  # they are about the code, and load every page

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--full", action="store_true", help="All of the flags below.")
        parser.add_argument("--with-performance", action="store_true", help="Then run optimize_db.")
        parser.add_argument("--seed-data", action="store_true", help="Then run seed_dev_data.")
        parser.add_argument("--verbose", action="store_true", help="Say every step.")

    def handle(
        self,
        *,
        full: bool,
        with_performance: bool,
        seed_data: bool,
        verbose: bool,
        verbosity: int,
        **_options: Any,
    ) -> None:
        steps = ["init_db"]
        if full or with_performance:
            steps.append("optimize_db")
        if full or seed_data:
            steps.append("seed_dev_data")
        for step in steps:
            self.stdout.write(self.style.MIGRATE_HEADING(step))
            with RIGHTS[step]():
                call_command(
                    step,
                    verbosity=2 if verbose else verbosity,
                    stdout=self.stdout._out,
                    stderr=self.stderr._out,
                )
