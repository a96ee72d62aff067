"""Filters of keys and rules."""

from __future__ import annotations

import django_filters
from django_filters.rest_framework import FilterSet

from registry.api.filters import TenantFilter, TruthFilter
from security.models import EnhancedAPIKey, ServerAccessControl

__all__ = ["APIKeyFilter", "AccessRuleFilter"]


class APIKeyFilter(FilterSet):  # type: ignore[misc]
    tenant = TenantFilter()
    user = django_filters.UUIDFilter(field_name="user_id", help_text="A user's id.")
    prefix = django_filters.CharFilter(field_name="key_prefix")
    is_active = TruthFilter()
    is_locked = TruthFilter()

    class Meta:
        model = EnhancedAPIKey
        fields: list[str] = []


class AccessRuleFilter(FilterSet):  # type: ignore[misc]
    server = django_filters.UUIDFilter(field_name="server_id", help_text="A server's id.")
    user = django_filters.UUIDFilter(field_name="user_id", help_text="A user's id.")
    api_key = django_filters.UUIDFilter(field_name="api_key_id", help_text="A key's id.")
    tenant = TenantFilter()
    is_active = TruthFilter()

    class Meta:
        model = ServerAccessControl
        fields: list[str] = []
