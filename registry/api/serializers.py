"""Servers and tools as JSON."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from registry.api.base import TenantField
from registry.api.fields import RoundedField
from registry.models import MCPServer, ServerTool, Transport, slug_validator

__all__ = [
    "CredentialsSerializer",
    "DiscoverySerializer",
    "MCPServerSerializer",
    "ServerToolSerializer",
    "refuse_changes",
]


def refuse_changes(serializer: serializers.BaseSerializer[Any], *names: str) -> None:
    """400 when a PATCH names fields that are fixed at creation."""
    if serializer.instance is None:
        return
    fixed = [name for name in names if name in getattr(serializer, "initial_data", {})]
    if fixed:
        raise serializers.ValidationError(
            {name: ["Fixed at creation: make a new one instead."] for name in fixed}
        )


class CredentialsSerializer(serializers.Serializer[Any]):
    """Headers that the gateway sends to the server in place of the caller's own credentials."""

    headers = serializers.DictField(
        child=serializers.CharField(max_length=8192),
        help_text="Header names and values, such as Authorization.",
    )


class MCPServerSerializer(serializers.ModelSerializer[MCPServer]):
    tenant = TenantField(
        required=False,
        allow_null=True,
        help_text="Its tenant's slug; null: shared by all, which only operators may register.",
    )
    slug = serializers.CharField(
        max_length=63,
        validators=[slug_validator],
        required=False,
        help_text="Made of the name when left out.",
    )
    transport_type = serializers.ChoiceField(
        choices=Transport.choices, default=Transport.HTTP, help_text="`stdio` is refused here."
    )
    credentials = CredentialsSerializer(
        write_only=True, required=False, allow_null=True, help_text="Never shown again."
    )
    has_credentials = serializers.BooleanField(read_only=True)
    avg_response_time = RoundedField(places=3, allow_null=True, help_text="Milliseconds.")
    success_rate = RoundedField(places=4, allow_null=True, help_text="Of health checks, 0 to 1.")
    capabilities = serializers.JSONField(read_only=True)
    health_metadata = serializers.JSONField(read_only=True)

    class Meta:
        model = MCPServer
        fields = [
            "id", "tenant", "name", "slug", "description", "version", "endpoint_url",
            "transport_type", "capabilities", "tags", "protocol_versions", "health_status",
            "last_health_check", "health_metadata", "avg_response_time", "success_rate",
            "active_connections", "is_enabled", "registry_name", "credentials",
            "has_credentials", "created_at", "updated_at",
        ]  # fmt: skip
        read_only_fields = [
            "version", "protocol_versions", "health_status", "last_health_check",
            "avg_response_time", "success_rate", "active_connections", "created_at", "updated_at",
        ]  # fmt: skip
        extra_kwargs = {
            "endpoint_url": {
                "help_text": "Another scheme, host, port or transport drops the stored "
                "credentials unless new ones come along; moving a server that has credentials "
                "needs `can_admin`."
            },
        }
        validators: list[Any] = []  # the service checks what is unique; it knows the tenant

    def validate_transport_type(self, transport: str) -> str:
        if transport == Transport.STDIO:
            raise serializers.ValidationError(
                "A stdio server runs a command on the gateway's machine, so it is registered "
                "there: with the command register_server."
            )
        return transport

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        refuse_changes(self, "tenant")
        return attrs


_TRANSPORTS = ", ".join(Transport.values)


class DiscoverySerializer(serializers.Serializer[Any]):
    """What the query string of a discovery says."""

    transport = serializers.ChoiceField(
        choices=Transport.choices,
        default=Transport.HTTP,
        error_messages={"invalid_choice": f"“{{input}}” is none of: {_TRANSPORTS}."},
    )
    limit = serializers.IntegerField(min_value=1, max_value=100, default=20)
    tenant = TenantField(
        default=None, help_text="A tenant's slug; of use to operators: what that tenant may call."
    )


class ServerToolSerializer(serializers.ModelSerializer[ServerTool]):
    server_slug = serializers.CharField(source="server.slug", read_only=True)
    input_schema = serializers.JSONField(read_only=True)
    output_schema = serializers.JSONField(read_only=True, allow_null=True)
    annotations = serializers.JSONField(read_only=True)

    class Meta:
        model = ServerTool
        fields = [
            "id", "server", "server_slug", "name", "title", "description", "input_schema",
            "output_schema", "annotations", "tags", "total_calls", "success_count",
            "error_count", "avg_execution_time", "last_used_at", "is_enabled", "schema_hash",
            "created_at", "updated_at",
        ]  # fmt: skip
        # What a server lists is its own; here one only decides whether the tool is offered.
        read_only_fields = [name for name in fields if name not in {"is_enabled", "tags"}]
        extra_kwargs = {
            "is_enabled": {
                "help_text": "A switched-off tool cannot be called through the gateway."
            },
        }
