from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.timezone import now

from gateway.jobs import PERIODIC


class Command(BaseCommand):
    help = "Run the worker's periodic tasks now, all of them or one."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--task", metavar="NAME", help=f"One of: {', '.join(PERIODIC)}.")
        parser.add_argument("--dry-run", action="store_true", help="Say what is due, do nothing.")

    def handle(self, *, task: str | None, dry_run: bool, **_options: Any) -> None:
        if task is not None and task not in PERIODIC:
            raise CommandError(
                f"There is no task '{task}'; choose one of: {', '.join(PERIODIC)}.", returncode=2
            )
        failed = []
        for chosen in [PERIODIC[task]] if task else PERIODIC.values():
            if dry_run:
                due = f"{chosen.due(now())} {chosen.unit}" if chosen.due else "always"
                self.stdout.write(f"{chosen.name}: {due} due. {chosen.does}")
                for line in chosen.preview(now()) if chosen.preview else ():
                    self.stdout.write(f"  {line}")
                continue
            try:
                done = chosen.run(at=now())
            except Exception as error:  # noqa: BLE001  (one failing task must not hide the others)
                failed.append(chosen.name)
                self.stderr.write(f"{chosen.name}: failed: {error}")
            else:
                self.stdout.write(f"{chosen.name}: {done} {chosen.unit} done.")
        if failed:
            raise CommandError(f"{len(failed)} task(s) failed: {', '.join(failed)}.")
