from typing import Any

from django.apps import AppConfig
from django.db.models.signals import post_migrate


class GatewayConfig(AppConfig):
    name = "gateway"
    verbose_name = "Gateway"

    def ready(self) -> None:
        post_migrate.connect(raise_walls, sender=self)


def raise_walls(*, using: str, plan: Any = None, **_options: Any) -> None:
    """Whoever migrates leaves no table without its wall; `init_db` also tells what is missing."""
    from registry.db.roles import walls_raise

    if plan is not None:  # `flush` sends this signal too, and changes no table
        walls_raise(using=using)
