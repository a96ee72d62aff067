"""Which admin site this project runs. Apart from the site, whose imports need the models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.contrib import admin
from django.contrib.admin.apps import SimpleAdminConfig
from django.contrib.admin.checks import check_admin_app, check_dependencies
from django.core import checks

__all__ = ["GatewayAdminConfig"]


class GatewayAdminConfig(SimpleAdminConfig):
    """Looks for the pages where they are shown (urls.py) or checked, not at every start.

    They are a quarter of what there is to import, and neither the worker nor a command has any.
    """

    default_site = "gateway.admin_site.GatewayAdminSite"

    def ready(self) -> None:
        checks.register(check_dependencies, checks.Tags.admin)
        checks.register(_pages_check, checks.Tags.admin)


def _pages_check(app_configs: Sequence[Any] | None, **options: Any) -> list[checks.CheckMessage]:
    """Django's own check; of pages that nobody looked for it would say nothing."""
    admin.autodiscover()
    return check_admin_app(app_configs, **options)
