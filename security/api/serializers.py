"""Keys and rules as JSON. No hash, no salt; a key's text is in one answer only."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from rest_framework import serializers

from registry.api.base import TenantField, VisibleServerField
from registry.api.callers import caller_of
from registry.api.fields import LocalTimeField, NamesARow
from registry.api.serializers import refuse_changes
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
        child=serializers.ChoiceField(choices=APIKeyScope.choices), required=False
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
        return attrs

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
