"""Which admin site this project runs. Apart from the site, whose imports need the models."""

from django.contrib.admin.apps import AdminConfig

__all__ = ["GatewayAdminConfig"]


class GatewayAdminConfig(AdminConfig):
    default_site = "gateway.admin_site.GatewayAdminSite"
