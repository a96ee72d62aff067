"""optimize_db in processes that kill themselves: a driver that tests start and talk to.

Each line of standard input is the number of a step, or -1. The driver forks; the child runs the
command as the command line does, and when that step's statement has run, before it is on record,
the child is gone as by `kill -9`. Two lines come back: the child's process id at once, and, when it
has ended, its exit status, negative for a signal.

Forking from a process that has done the imports and read the declaration once makes a kill cost a
tenth of a second, so that every step can have its own.
"""

from __future__ import annotations

import os
import signal
import sys
from unittest import mock

import django

from monitoring.optimize.plan import Step


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway.settings")
    django.setup()
    from django.db import connections

    from monitoring.optimize.run import open_session
    from monitoring.optimize.state import declared_state

    with open_session() as session:
        declared = declared_state(session.work)
    connections.close_all()
    command = "monitoring.management.commands.optimize_db"
    with mock.patch(f"{command}.declared_state", return_value=declared):
        for line in sys.stdin:
            child = os.fork()
            if child == 0:
                _run(int(line), command)
            print(child, flush=True)  # noqa: T201
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)  # noqa: T201


def _run(doom: int, command: str) -> None:
    from gateway.cli import _run as run_command
    from monitoring.optimize.output import Printer

    class Doomed(Printer):
        ran = -1

        def step_finished(self, step: Step, seconds: float) -> None:
            super().step_finished(step, seconds)
            self.ran += 1
            if self.ran == doom:
                os.kill(os.getpid(), signal.SIGKILL)

    os.dup2(2, 1)  # what the command says is not for the one who reads our answers
    with mock.patch(f"{command}.Printer", Doomed):
        status = run_command(["manage.py", "optimize_db"])
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
