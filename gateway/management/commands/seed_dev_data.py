from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.timezone import now

from gateway.console import progress
from gateway.defaults import defaults_ensure
from gateway.seed import Seeded, foreign_rows, seed, seed_remove
from monitoring.audit import Actor
from registry.figures import counted


class Command(BaseCommand):
    help = "Add development data: users, keys, servers and a history of calls. Safe to repeat."
    requires_system_checks = []  # they are about the code, and load every page

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--servers", type=int, default=12, metavar="N", help="Default: 12.")
        parser.add_argument(
            "--requests", type=int, default=20_000, metavar="N", help="Default: 20000."
        )
        parser.add_argument("--days", type=int, default=7, metavar="N", help="Default: 7.")
        parser.add_argument(
            "--reset", action="store_true", help="First remove what earlier seeding made."
        )

    def handle(
        self,
        *,
        servers: int,
        requests: int,
        days: int,
        reset: bool,
        verbosity: int,
        **_options: Any,
    ) -> None:
        _in_range("--servers", servers, 1, 5000)
        _in_range("--requests", requests, 0, 50_000_000)
        _in_range("--days", days, 1, 3650)
        defaults_ensure(actor=Actor(service_name="seed"))
        if reset:
            self.stdout.write(f"Removed {counted(seed_remove(), 'seeded rows')}.")
        self._warn()
        with progress(self.stdout, "Calls", total=requests) as told:
            done = seed(servers=servers, requests=requests, days=days, at=now(), told=told)
        self._tell(done)
        if verbosity:  # not where the output is kept, such as in a log file
            self._tell_secrets(done)

    def _warn(self) -> None:
        if found := foreign_rows():
            self.stderr.write(
                f"Note: this database also holds {' and '.join(found)} that seeding did not make; "
                "they stay as they are, and --reset removes seeded rows only."
            )

    def _tell(self, done: Seeded) -> None:
        before = counted(done.requests_before, "seeded calls")
        if added := _added(done):
            self.stdout.write(f"Added {added}.")
            if done.requests_before:
                self.stdout.write(f"There already: {before}; --reset makes new ones.")
        else:
            history = f", with {before}" if done.requests_before else ""
            self.stdout.write(f"Everything is there already{history}; --reset makes it anew.")
        self.stdout.write(self.style.SUCCESS("Development data is in place."))

    def _tell_secrets(self, done: Seeded) -> None:
        if done.admin_password:
            self.stdout.write(f"Admin login, shown once: admin / {done.admin_password}")
        for name, text in done.keys.items():
            self.stdout.write(f"API key, shown once: {name}: {text}")


def _added(done: Seeded) -> str:
    """'12 servers, 3 API keys and 1 call'; empty when all of it was there."""
    made = {"servers": done.servers, "API keys": len(done.keys), "calls": done.requests}
    parts = ["the user admin"] if done.admin_password else []
    parts += [counted(count, many) for many, count in made.items() if count]
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def _in_range(flag: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise CommandError(f"{flag} takes {least:,} to {most:,}.", returncode=2)
