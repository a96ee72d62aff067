"""Everything that is not the data plane."""

from django.contrib import admin
from django.templatetags.static import static
from django.urls import include, path
from django.utils.functional import lazy
from django.views.generic import RedirectView
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerView

admin.autodiscover()

handler400 = "gateway.errors.bad_request"
handler404 = "gateway.errors.not_found"
handler500 = "gateway.errors.server_error"

urlpatterns = [
    path("", RedirectView.as_view(url="/admin/")),
    # What browsers ask for by themselves; the address of a static file may yet be unknown here.
    path("favicon.ico", RedirectView.as_view(url=lazy(static, str)("gateway/icon.svg"))),
    path("admin/", admin.site.urls),
    path("api/v1/", include("gateway.api.urls")),
    path("api/schema/", SpectacularAPIView.as_view(), name="schema"),
    path("api/docs/", SpectacularSwaggerView.as_view(url_name="schema"), name="docs"),
]
