"""Keys and rules as JSON. No hash, no salt; a key's text is in one answer only."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import QuerySet
from django.utils.timezone import now
from rest_framework import serializers

from registry.api.base import TenantField, VisibleServerField
from registry.api.callers import caller_of
from registry.api.fields import LocalTimeField, NamesARow
from registry.api.serializers import refuse_changes
from registry.models import MCPServer, Tenant
from security.models import APIKeyScope, EnhancedAPIKey, ServerAccessControl, User

__all__ = ["APIKeySerializer", "AccessRuleSerializer", "CreatedAPIKeySerializer"]


class OwnField(NamesARow, serializers.PrimaryKeyRelatedField[Any]):
    """The id of a row of the caller's tenant; others do not exist for them."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(pk_field=serializers.UUIDField(), **kwargs)

    def get_queryset(self) -> QuerySet[Any]:
        rows: QuerySet[Any] = super().get_queryset()  # type: ignore[assignment]
        caller = caller_of(self.context["request"])
        return rows if caller.is_operator else rows.filter(tenant_id=caller.own_tenant_id)


class APIKeySerializer(serializers.ModelSerializer[EnhancedAPIKey]):
    prefix = serializers.CharField(source="key_prefix", read_only=True)
    tenant = TenantField(
        required=False,
        allow_null=True,
        help_text="A tenant's slug; null: an operator's key, which sees every tenant. Operators "
        "name it, everybody else's keys are of their own tenant.",
    )
    user = OwnField(queryset=User.objects.all(), required=False, allow_null=True)
    scopes = serializers.ListField(
        child=serializers.ChoiceField(choices=APIKeyScope.choices),
        required=False,
        allow_empty=False,
        help_text="Default: proxy and read.",
    )

    class Meta:
        model = EnhancedAPIKey
        fields = [
            "id", "name", "description", "prefix", "tenant", "user", "scopes", "allowed_servers",
            "allowed_methods", "ip_whitelist", "rate_limit_per_hour", "rate_limit_per_day",
            "is_active", "expires_at", "last_used", "total_requests", "total_errors",
            "failed_attempts", "last_failed_attempt", "is_locked", "locked_until", "created_at",
            "updated_at",
        ]  # fmt: skip
        read_only_fields = [
            "is_active", "last_used", "total_requests", "total_errors", "failed_attempts",
            "last_failed_attempt", "is_locked", "locked_until", "created_at", "updated_at",
        ]  # fmt: skip

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        refuse_changes(self, "tenant", "user")
        if self.instance is None and caller_of(self.context["request"]).is_operator:
            self._check_owner(attrs)
        self._check_servers(attrs)
        self._check_end(attrs.get("expires_at"))
        return attrs

    def _check_servers(self, attrs: dict[str, Any]) -> None:
        """A slug that names no server lets the key nowhere; one that was there before may stay."""
        before = self.instance.allowed_servers if self.instance else ()
        named = set(attrs.get("allowed_servers", ())) - set(before)
        if not named:
            return
        tenant = self.instance.tenant_id if self.instance else self._owner_id(attrs)
        known = MCPServer.objects.visible_to(tenant).filter(slug__in=named)
        if unknown := named - set(known.values_list("slug", flat=True)):
            told = ", ".join(sorted(unknown))
            raise serializers.ValidationError(
                {"allowed_servers": [f"The key's tenant sees no server of this slug: {told}."]}
            )

    def _owner_id(self, attrs: dict[str, Any]) -> UUID | None:
        caller = caller_of(self.context["request"])
        if not caller.is_operator:
            return caller.own_tenant_id
        tenant: Tenant | None = attrs["tenant"]
        return None if tenant is None else tenant.pk

    def _check_end(self, expires_at: datetime | None) -> None:
        is_new = self.instance is None or expires_at != self.instance.expires_at
        if is_new and expires_at is not None and expires_at <= now():
            raise serializers.ValidationError(
                {"expires_at": ["This time is past. To end a key now, revoke it."]}
            )

    def _check_owner(self, attrs: dict[str, Any]) -> None:
        if "tenant" not in attrs:
            raise serializers.ValidationError(
                {"tenant": ["Name a tenant, or null for an operator's key."]}
            )
        user = attrs.get("user")
        if user is not None and user.tenant != attrs["tenant"]:
            raise serializers.ValidationError({"user": ["This user belongs to another tenant."]})


class CreatedAPIKeySerializer(APIKeySerializer):
    """The only answer that shows the key."""

    key = serializers.CharField(
        read_only=True, source="text", help_text="Shown once: nobody can read it again."
    )

    class Meta(APIKeySerializer.Meta):
        fields = ["key", *APIKeySerializer.Meta.fields]


class AccessRuleSerializer(serializers.ModelSerializer[ServerAccessControl]):
    """One of `user`, `tenant` and `api_key` is the subject."""

    server = VisibleServerField()
    user = OwnField(queryset=User.objects.all(), required=False, allow_null=True)
    tenant = TenantField(required=False, allow_null=True, help_text="A tenant's slug.")
    api_key = OwnField(queryset=EnhancedAPIKey.objects.all(), required=False, allow_null=True)
    access_start_time = LocalTimeField(required=False, allow_null=True, help_text="In `timezone`.")
    access_end_time = LocalTimeField(required=False, allow_null=True, help_text="In `timezone`.")

    class Meta:
        model = ServerAccessControl
        fields = [
            "id", "server", "user", "tenant", "api_key", "can_read", "can_write", "can_admin",
            "can_proxy", "allowed_methods", "denied_methods", "access_start_time",
            "access_end_time", "allowed_days", "allowed_hours", "timezone", "is_active",
            "last_access", "access_count", "created_at", "updated_at",
        ]  # fmt: skip
        read_only_fields = ["last_access", "access_count", "created_at", "updated_at"]
        validators: list[Any] = []  # the model's constraints say it better

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        refuse_changes(self, "server", "user", "tenant", "api_key")
        return attrs
