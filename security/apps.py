from django.apps import AppConfig


class SecurityConfig(AppConfig):
    name = "security"
    verbose_name = "Security"

    def ready(self) -> None:
        # Registers itself with the OpenAPI generator.
        from security.api import schema  # noqa: F401
        from security.logins import logins_connect

        logins_connect()
