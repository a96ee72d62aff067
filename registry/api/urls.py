"""What registry adds to /api/v1/."""

from registry.api.base import Router
from registry.api.views import MCPServerViewSet, ServerToolViewSet

router = Router()
router.register("servers", MCPServerViewSet, basename="server")
router.register("tools", ServerToolViewSet, basename="tool")
urlpatterns = router.urls
