"""The command line: Django's, with dashes for underscores and one clear sentence for errors."""

from __future__ import annotations

import gc
import os
import signal
import sys
from argparse import ArgumentParser
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import NoReturn

import gateway
from gateway.lifeline import die_with_named_parent
from registry.sentences import first_line

# What runs without a database; everything else gets the embedded one started if need be.
# `up` starts its own, because it also says so.
WITHOUT_DATABASE = {"up", "help", "version", "check", "collectstatic", "spectacular"}
# Not the embedded one, that is: what init_db --roles-sql prints is for somebody's own server.
NEED_NO_DATABASE = {"-h", "--help", "--roles-sql"}


# As the tables' owner: what is about the schema, or about whatever somebody wants;
# and one that also removes rows from a log that is append-only for everybody else.
AS_OWNER = {"migrate", "optimize_db", "flush", "sqlflush", "inspectdb", "dbshell", "seed_dev_data"}
# The walls are for those who log in as the application's role, as these do on the embedded one.
AS_APPLICATION = {"serve", "worker"}
# They say themselves as whom they work, or ask the database nothing.
OWN_WAY = {*AS_APPLICATION, "init_db", "setup_enhanced", "makemigrations"}
OWNER_WANTED = (
    "Set DATABASE_MAINTENANCE_URL to the same database as the user who owns its tables, then run "
    "init_db."
)


def main() -> None:
    """Run one management command; exit 0 done, 1 failed, 2 wrong usage."""
    die_with_named_parent()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway.settings")
    arguments = list(sys.argv)
    if len(arguments) > 1 and not arguments[1].startswith("-"):
        arguments[1] = arguments[1].replace("-", "_")
    if AS_APPLICATION & set(arguments[1:2]):
        os.environ.setdefault("GATEWAY_EMBEDDED_LOGIN", "mcp_gateway_app")
    try:
        sys.exit(_run(arguments))
    except BrokenPipeError:  # whoever reads had enough, such as head; Python would tell on leaving
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    finally:
        gc.freeze()  # else Python searches all of Django for garbage as it leaves: a second or two


def _run(arguments: list[str]) -> int:
    import django
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line
    from django.core.management.base import CommandParser
    from django.db import OperationalError, ProgrammingError
    from django.db.migrations.exceptions import MigrationSchemaMissing

    from registry.db.crossing import CrossingError
    from registry.db.embedded import EmbeddedError

    if arguments[1:] in (["--version"], ["version"]):  # Django would tell its own
        sys.stdout.write(f"{gateway.__version__}\n")
        return 0
    try:
        django.setup()
        CommandParser.error = _wrong_usage  # type: ignore[method-assign, assignment]
        if _is_unknown(arguments):
            with suppress(SystemExit):  # Django says which names are near, but leaves with 1
                execute_from_command_line(arguments)
            return 2
        with _database_for(arguments), _rights_for(arguments):
            execute_from_command_line(arguments)
    except (ImproperlyConfigured, EmbeddedError, CrossingError) as error:
        return _fail(str(error))
    except OperationalError as error:
        return _fail(f"The database cannot be used: {first_line(error)}.")
    except MigrationSchemaMissing as error:
        return _fail(f"{first_line(error.__context__ or error)}. {OWNER_WANTED}")
    except ProgrammingError as error:
        return _fail(f"{first_line(error)}. {_advice(error)}")
    except KeyboardInterrupt:
        return 130
    return 0


def _wrong_usage(parser: ArgumentParser, message: str) -> NoReturn:
    """One sentence in place of a page of usage; Django's own commands say it so, too."""
    parser.exit(2, f"Error: {message}. {parser.prog} --help says what it takes.\n")


def _advice(error: Exception) -> str:
    from django.conf import settings
    from psycopg.errors import InsufficientPrivilege

    if not isinstance(error.__cause__, InsufficientPrivilege):
        return "Is the schema up to date? Run init_db and try again."
    if settings.DATABASE_MAINTENANCE is None:
        return OWNER_WANTED
    return "Does the user of DATABASE_MAINTENANCE_URL own the tables? Then run init_db."


def _is_unknown(arguments: list[str]) -> bool:
    from django.core.management import get_commands

    named = arguments[1] if len(arguments) > 1 else "help"
    return not named.startswith("-") and named not in {"help", "version", *get_commands()}


def _rights_for(arguments: list[str]) -> AbstractContextManager[object]:
    """As whom the command's ORM works: most of them act for every tenant."""
    import django

    from registry.db.crossing import acting_as_owner, crossing_tenants

    if _needs_no_database(arguments) or arguments[1] in OWN_WAY:
        return nullcontext()
    django.setup()  # which comes before the first query
    return acting_as_owner() if arguments[1] in AS_OWNER else crossing_tenants()


def _needs_no_database(arguments: list[str]) -> bool:
    command = arguments[1] if len(arguments) > 1 else "help"
    told_otherwise = command.startswith("-") or NEED_NO_DATABASE & set(arguments)
    return bool(told_otherwise) or command in WITHOUT_DATABASE


def _database_for(arguments: list[str]) -> AbstractContextManager[object]:
    """The embedded database for as long as the command runs, where it is ours to start."""
    from django.conf import settings

    from registry.db.embedded import local_cluster

    if _needs_no_database(arguments) or not settings.DATABASE_IS_EMBEDDED:
        return nullcontext()
    # As Ctrl-C: the database is left, and stopped if nobody else uses it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return local_cluster(settings.LOCAL_DIR).running()


def _fail(sentence: str) -> int:
    sys.stderr.write(f"Error: {sentence}\n")
    return 1
