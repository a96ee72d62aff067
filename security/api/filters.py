"""Filters of keys and rules."""

from __future__ import annotations

from django_filters.rest_framework import FilterSet

from registry.api.filters import ExactFilter, IdFilter, TenantFilter, TruthFilter
from security.models import EnhancedAPIKey, ServerAccessControl

__all__ = ["APIKeyFilter", "AccessRuleFilter"]


class APIKeyFilter(FilterSet):  # type: ignore[misc]
    tenant = TenantFilter()
    user = IdFilter("user_id", of="a user's")
    prefix = ExactFilter("key_prefix")
    is_active = TruthFilter()
    is_locked = TruthFilter()

    class Meta:
        model = EnhancedAPIKey
        fields: list[str] = []


class AccessRuleFilter(FilterSet):  # type: ignore[misc]
    server = IdFilter("server_id", of="a server's")
    user = IdFilter("user_id", of="a user's")
    api_key = IdFilter("api_key_id", of="an API key's")
    tenant = TenantFilter()
    is_active = TruthFilter()

    class Meta:
        model = ServerAccessControl
        fields: list[str] = []
