"""What security adds to /api/v1/."""

from registry.api.base import Router
from security.api import schema  # noqa: F401  (registers itself with the OpenAPI generator)
from security.api.views import AccessRuleViewSet, APIKeyViewSet

router = Router()
router.register("api-keys", APIKeyViewSet, basename="api-key")
router.register("access-controls", AccessRuleViewSet, basename="access-control")
urlpatterns = router.urls
