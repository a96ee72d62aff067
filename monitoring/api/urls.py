"""What monitoring adds to /api/v1/."""

from django.urls import re_path

from monitoring.api import views
from registry.api.base import Router

router = Router()
router.register("alerts", views.PerformanceAlertViewSet, basename="alert")
router.register("alert-events", views.AlertEventViewSet, basename="alert-event")
router.register("retention-policies", views.RetentionPolicyViewSet, basename="retention-policy")
router.register("materialized-views", views.MaterializedViewViewSet, basename="materialized-view")
router.register("tasks", views.ScheduledTaskViewSet, basename="task")
router.register("audit-logs", views.AuditLogViewSet, basename="audit-log")
router.register("request-logs", views.RequestLogViewSet, basename="request-log")

_TABLES = {
    "summaries/request-performance": views.RequestPerformanceView,
    "summaries/request-series": views.RequestSeriesView,
    "summaries/tenant-usage": views.TenantUsageView,
    "database/size": views.DatabaseSizeView,
    "database/indexes": views.DatabaseIndexesView,
    "database/performance": views.DatabasePerformanceView,
    "database/statements": views.DatabaseStatementsView,
}
urlpatterns = [
    *router.urls,
    re_path(
        "^alerts/prometheus/?$",
        views.AlertRulesViewSet.as_view({"get": "prometheus"}),
        name="alerts-prometheus",
    ),
    *(re_path(f"^{path}/?$", view.as_view(), name=path) for path, view in _TABLES.items()),
]
