from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.timezone import now

from gateway.jobs import PERIODIC, this_process
from monitoring.schedule import TaskBusy, task_run_now, tasks_sync
from registry.figures import counted
from registry.periodic import PeriodicTask


class Command(BaseCommand):
    help = "Run the worker's periodic tasks now, all of them or one."
    requires_system_checks = []  # they are about the code, and load every page

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--task", metavar="NAME", help=f"One of: {', '.join(PERIODIC)}.")
        parser.add_argument("--dry-run", action="store_true", help="Say what is due, do nothing.")

    def handle(self, *, task: str | None, dry_run: bool, **_options: Any) -> None:
        if task is not None and task not in PERIODIC:
            raise CommandError(
                f"There is no task '{task}'; choose one of: {', '.join(PERIODIC)}.", returncode=2
            )
        chosen = [PERIODIC[task]] if task else list(PERIODIC.values())
        if dry_run:
            self._tell(chosen)
            return
        tasks_sync(PERIODIC.values(), at=now())
        failed = [each.name for each in chosen if not self._run(each, is_only=task is not None)]
        if failed:
            raise CommandError(f"{counted(len(failed), 'tasks')} failed: {', '.join(failed)}.")

    def _tell(self, tasks: list[PeriodicTask]) -> None:
        for task in tasks:
            due = counted(task.due(now()), task.unit) if task.due else "always"
            self.stdout.write(f"{task.name}: {due} due. {task.does}")
            for line in task.preview(now()) if task.preview else ():
                self.stdout.write(f"  {line}")

    def _run(self, task: PeriodicTask, *, is_only: bool) -> bool:
        """False: it failed. What somebody else runs just now needs no second run, unless asked."""
        try:
            done = task_run_now(task, at=now(), by=f"run_maintenance on {this_process()}")
        except TaskBusy as busy:
            if is_only:
                raise CommandError(str(busy)) from None
            self.stderr.write(f"Left out: {busy}")
        except Exception as error:  # noqa: BLE001  (one failing task must not hide the others)
            self.stderr.write(f"{task.name}: failed: {error}")
            return False
        else:
            self.stdout.write(f"{task.name}: {counted(done, task.unit)} done.")
        return True
