from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connection
from django.utils.timezone import now

from gateway.defaults import defaults_ensure
from gateway.schema import (
    SchemaBusyError,
    owners_connection,
    partitions_count,
    schema_create,
    statistics_begin,
    walls_create,
)
from monitoring.audit import Actor
from monitoring.retention.partitions import partitions_prepare
from registry.db.direct import PoolerError
from registry.db.partitions import PartitionsError
from registry.db.roles import Raised, passes_walls, roles_script_here
from registry.db.tenancy import APP_ROLE


class Command(BaseCommand):
    help = (
        "Create the schema, the database's roles and walls, the default tenant, groups, alerts and "
        "retention. Safe to repeat."
    )
    requires_system_checks = []  # they are about the code, and load every page

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--roles-sql",
            action="store_true",
            help="Print what a DBA runs to make the roles that are missing, and do nothing.",
        )

    def handle(self, *, roles_sql: bool, verbosity: int, **_options: Any) -> None:
        try:
            if roles_sql:
                self._print_roles()
            else:
                self._create(verbosity)
        except (PoolerError, SchemaBusyError, PartitionsError) as error:
            raise CommandError(str(error)) from None

    def _create(self, verbosity: int) -> None:
        def told(name: str) -> None:
            if verbosity > 1:
                self.stdout.write(f"  {name}")

        # As the owner: the application's role may have no password yet.
        with _as_owner():
            partitions = partitions_count()
        applied = schema_create(told=told)
        if not applied:  # another process may have made some while this one waited
            with _as_owner():
                partitions = partitions_count()
        raised = walls_create()
        self._warn(raised)  # first: what follows may fail for the very reason
        with _as_owner():
            made = defaults_ensure(actor=Actor(service_name="cli"))
            partitions_prepare(at=now())
            partitions = partitions_count() - partitions
            analysed = statistics_begin()
        if verbosity:
            self.stdout.write(f"Schema: {applied} migration(s) applied.")
            self.stdout.write(f"Walls: {raised.done} change(s) to roles, grants and policies.")
            self.stdout.write(
                f"Defaults: {made.tenants} tenant(s), {made.groups} role group(s), "
                f"{made.alerts} alert(s), {made.policies} retention policies, "
                f"{made.views} materialised views added."
            )
            self.stdout.write(f"Partitions of the logs: {partitions} made.")
            self.stdout.write(f"Statistics: {analysed} table(s) analysed for the first time.")
        self._conclude(raised, verbosity)

    def _conclude(self, raised: Raised, verbosity: int) -> None:
        """Ready or not; CommandError where somebody is to be walled in who is not."""
        login = _walled_login()
        if raised.foreign:
            raise CommandError(
                f"The database is not ready: {_state(raised)}. Have a superuser run the SQL above, "
                "or name in DATABASE_MAINTENANCE_URL who owns all tables and is none of the "
                "gateway's own roles; then run init_db again."
            )
        if not raised.is_complete and login is not None:
            raise CommandError(
                f"The database is not ready for {login or 'the user'} of DATABASE_URL: "
                f"{_state(raised)}. Have a superuser run the SQL above, then init_db again. "
                "If one user is to do everything, without walls, name it in DATABASE_URL and leave "
                "DATABASE_MAINTENANCE_URL out."
            )
        self._judge_login(login)
        if not verbosity:
            return
        if raised.is_complete:
            self.stdout.write(self.style.SUCCESS("The database is ready."))
        else:
            self.stdout.write(f"The database is ready for its owner alone: {_state(raised)}.")

    def _judge_login(self, walled: str | None) -> None:
        """CommandError for a login that no wall holds; a word where one user does everything."""
        login = walled or connection.settings_dict["USER"] or _session_user()
        with _as_owner():
            reason = passes_walls(login)
        if reason is None or settings.DATABASE_IS_EMBEDDED:
            return
        if walled is not None:
            raise CommandError(
                f"The database is not ready for {login} of DATABASE_URL, who {reason}: the walls "
                f"between tenants do not hold. Name {APP_ROLE} in DATABASE_URL, which init_db has "
                f"made; in psql \\password {APP_ROLE} gives it a password."
            )
        self.stderr.write(
            f"{login} of DATABASE_URL {reason}: the walls between tenants hold only what says for "
            "which tenant it works. That will do for development; in production name the tables' "
            f"owner in DATABASE_MAINTENANCE_URL and {APP_ROLE} in DATABASE_URL."
        )

    def _print_roles(self) -> None:
        if settings.DATABASE_IS_EMBEDDED and settings.DATABASE_MAINTENANCE is None:
            raise CommandError(
                "Set DATABASE_URL, or DATABASE_MAINTENANCE_URL to the same database as its tables' "
                "owner: the embedded database has its roles made by itself."
            )
        with owners_connection():
            script = roles_script_here()
        self.stdout.write(script)
        if f'CREATE ROLE "{APP_ROLE}"' in script:
            self.stdout.write(f"-- Then give {APP_ROLE} a password, in psql: \\password {APP_ROLE}")

    def _warn(self, raised: Raised) -> None:
        if not raised.is_complete:
            state = _state(raised)
            self.stderr.write(f"{state[:1].upper()}{state[1:]}.")
        if steps := raised.refused + raised.foreign:
            self.stderr.write(
                "A superuser may add this, which makes some work faster or shows more:"
                if raised.is_complete
                else "Have a superuser run this, then init_db again:"
            )
            for step in steps:
                self.stderr.write(f"  {step.repeatable()}")


def _walled_login() -> str | None:
    """The user of DATABASE_URL where another one owns the tables; None: one does everything."""
    login = connection.settings_dict["USER"]
    owner = (settings.DATABASE_MAINTENANCE or settings.DATABASE_DIRECT or {}).get("USER", login)
    return None if owner == login else login


def _session_user() -> str:
    """As whom a URL without a user logs in."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT session_user")
        return str(cursor.fetchone()[0])


def _state(raised: Raised) -> str:
    """What is amiss, as part of a sentence."""
    foreign = f"{len(raised.foreign)} table(s) do not belong to the user who maintains them"
    what, lacks = (
        ("have gaps", "grants or policies")
        if raised.walled
        else ("were not raised", "roles or memberships")
    )
    walls = (
        f"the walls between tenants {what}: {lacks} are missing that the tables' owner may not make"
    )
    if raised.has_walls:
        return foreign
    return f"{walls}; {foreign}" if raised.foreign else walls


@contextmanager
def _as_owner() -> Iterator[None]:
    """The owner's connection, or where there is a transaction that one."""
    if connection.in_atomic_block:
        yield
        return
    with owners_connection():
        yield
