from django.apps import AppConfig
from django.core.checks import Tags, register


class RegistryConfig(AppConfig):
    name = "registry"
    verbose_name = "Registry"

    def ready(self) -> None:
        from registry.db.checks import indexes_check

        register(indexes_check, Tags.models)
