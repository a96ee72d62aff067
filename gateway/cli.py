"""The command line: Django's, with dashes for underscores and one clear sentence for errors."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import AbstractContextManager, nullcontext, suppress

from gateway.lifeline import die_with_named_parent

# What runs without a database; everything else gets the embedded one started if need be.
# `up` starts its own, because it also says so.
WITHOUT_DATABASE = {"up", "help", "version", "check", "collectstatic", "spectacular"}


def main() -> None:
    """Run one management command; exit 0 done, 1 failed, 2 wrong usage."""
    die_with_named_parent()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway.settings")
    arguments = list(sys.argv)
    if len(arguments) > 1 and not arguments[1].startswith("-"):
        arguments[1] = arguments[1].replace("-", "_")
    sys.exit(_run(arguments))


def _run(arguments: list[str]) -> int:
    import django
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line
    from django.db import OperationalError, ProgrammingError

    from registry.db.embedded import EmbeddedError

    try:
        django.setup()
        if _is_unknown(arguments):
            with suppress(SystemExit):  # Django says which names are near, but leaves with 1
                execute_from_command_line(arguments)
            return 2
        with _database_for(arguments):
            execute_from_command_line(arguments)
    except (ImproperlyConfigured, EmbeddedError) as error:
        return _fail(str(error))
    except OperationalError as error:
        return _fail(f"The database cannot be used: {_first_line(error)}.")
    except ProgrammingError as error:
        return _fail(f"{_first_line(error)}. Is the schema up to date? Run init_db and try again.")
    except KeyboardInterrupt:
        return 130
    return 0


def _is_unknown(arguments: list[str]) -> bool:
    from django.core.management import get_commands

    named = arguments[1] if len(arguments) > 1 else "help"
    return not named.startswith("-") and named not in {"help", "version", *get_commands()}


def _database_for(arguments: list[str]) -> AbstractContextManager[object]:
    """The embedded database for as long as the command runs, where it is ours to start."""
    from django.conf import settings

    from registry.db.embedded import local_cluster

    command = arguments[1] if len(arguments) > 1 else "help"
    wants_help = command.startswith("-") or {"-h", "--help"} & set(arguments)
    if wants_help or command in WITHOUT_DATABASE or not settings.DATABASE_IS_EMBEDDED:
        return nullcontext()
    # As Ctrl-C: the database is left, and stopped if nobody else uses it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return local_cluster(settings.LOCAL_DIR).running()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _fail(sentence: str) -> int:
    sys.stderr.write(f"Error: {sentence}\n")
    return 1
