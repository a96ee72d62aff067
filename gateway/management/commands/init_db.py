from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils.timezone import now

from gateway.defaults import defaults_ensure
from gateway.schema import SchemaBusyError, schema_create
from monitoring.audit import Actor
from monitoring.retention import partitions_prepare
from registry.db.direct import PoolerError
from registry.db.partitions import PartitionsError


class Command(BaseCommand):
    help = "Create the schema, the default tenant, roles, alerts and retention. Safe to repeat."

    def handle(self, *, verbosity: int, **_options: Any) -> None:
        def told(name: str) -> None:
            if verbosity > 1:
                self.stdout.write(f"  {name}")

        try:
            applied = schema_create(told=told)
            made = defaults_ensure(actor=Actor(service_name="cli"))
            partitions = partitions_prepare(at=now())
        except (PoolerError, SchemaBusyError, PartitionsError) as error:
            raise CommandError(str(error)) from None
        if verbosity:
            self.stdout.write(f"Schema: {applied} migration(s) applied.")
            self.stdout.write(
                f"Defaults: {made.tenants} tenant(s), {made.groups} role group(s), "
                f"{made.alerts} alert(s), {made.policies} retention policies added."
            )
            self.stdout.write(f"Partitions of the logs: {partitions} made.")
            self.stdout.write(self.style.SUCCESS("The database is ready."))
