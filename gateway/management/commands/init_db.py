from typing import Any

from django.core.management.base import BaseCommand, CommandError

from gateway.defaults import defaults_ensure
from gateway.schema import SchemaBusyError, schema_create
from monitoring.audit import Actor
from registry.db.direct import PoolerError


class Command(BaseCommand):
    help = "Create the schema, the default tenant, roles, alerts and retention. Safe to repeat."

    def handle(self, *, verbosity: int, **_options: Any) -> None:
        def told(name: str) -> None:
            if verbosity > 1:
                self.stdout.write(f"  {name}")

        try:
            applied = schema_create(told=told)
        except (PoolerError, SchemaBusyError) as error:
            raise CommandError(str(error)) from None
        made = defaults_ensure(actor=Actor(service_name="cli"))
        if verbosity:
            self.stdout.write(f"Schema: {applied} migration(s) applied.")
            self.stdout.write(
                f"Defaults: {made.tenants} tenant(s), {made.groups} role group(s), "
                f"{made.alerts} alert(s), {made.policies} retention policies added."
            )
            self.stdout.write(self.style.SUCCESS("The database is ready."))
