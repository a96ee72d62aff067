"""/api/v1/: what every room adds to it."""

from django.urls import include, re_path

from gateway.api import views
from registry.api.base import Router

router = Router()
router.register("circuit-breakers", views.CircuitBreakerViewSet, basename="circuit-breaker")
router.register("connection-pools", views.ConnectionPoolViewSet, basename="connection-pool")
router.register("request-queues", views.RequestQueueViewSet, basename="request-queue")

urlpatterns = [
    re_path("", include("registry.api.urls")),
    re_path("", include("monitoring.api.urls")),
    re_path("", include("security.api.urls")),
    *router.urls,
    re_path("^summaries/server-health/?$", views.ServerHealthView.as_view(), name="server-health"),
    re_path("", views.no_such_path),
]
