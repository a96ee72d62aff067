"""What registry adds to /api/v1/."""

from django.urls import re_path

from registry.api.base import Router
from registry.api.views import MCPServerViewSet, ServerDiscoveryView, ServerToolViewSet

router = Router()
router.register("servers", MCPServerViewSet, basename="server")
router.register("tools", ServerToolViewSet, basename="tool")
urlpatterns = [
    re_path("^servers/discover/?$", ServerDiscoveryView.as_view(), name="server-discover"),
    *router.urls,
]
