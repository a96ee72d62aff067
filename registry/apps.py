from django.apps import AppConfig
from django.contrib.postgres.signals import register_type_handlers
from django.core.checks import Tags, register
from django.db.backends.signals import connection_created


class RegistryConfig(AppConfig):
    name = "registry"
    verbose_name = "Registry"

    def ready(self) -> None:
        from registry.db.checks import indexes_check

        register(indexes_check, Tags.models)
        # For hstore and citext, which nobody uses: with the first connection, be it the owner's,
        # Django would open DATABASE_URL too, whose user may not be there yet.
        connection_created.disconnect(register_type_handlers)
