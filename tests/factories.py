"""Test objects. A factory makes what a service would have made, in one row."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import factory
from django.utils.timezone import now
from factory.django import DjangoModelFactory

from monitoring.models import (
    AlertEvent,
    AuditLogEntry,
    DataRetentionPolicy,
    PerformanceAlert,
    RequestLogEntry,
    ScheduledTask,
)
from registry.models import MCPServer, ServerTool, SystemConfig, Tenant
from security.keys import generate_key, hash_secret, new_salt
from security.models import APIKey, EnhancedAPIKey, ServerAccessControl, Session, User


class TenantFactory(DjangoModelFactory[Tenant]):
    class Meta:
        model = Tenant

    name = factory.Sequence(lambda n: f"Tenant {n}")
    slug = factory.Sequence(lambda n: f"tenant-{n}")


class UserFactory(DjangoModelFactory[User]):
    class Meta:
        model = User
        skip_postgeneration_save = True

    username = factory.Sequence(lambda n: f"user{n}")
    email = factory.LazyAttribute(lambda user: f"{user.username}@example.org")
    tenant = factory.SubFactory(TenantFactory)


class MCPServerFactory(DjangoModelFactory[MCPServer]):
    class Meta:
        model = MCPServer

    tenant = factory.SubFactory(TenantFactory)
    name = factory.Sequence(lambda n: f"Server {n}")
    slug = factory.Sequence(lambda n: f"server-{n}")
    endpoint_url = factory.LazyAttribute(lambda s: f"https://{s.slug}.example.org/mcp")


class ServerToolFactory(DjangoModelFactory[ServerTool]):
    class Meta:
        model = ServerTool

    server = factory.SubFactory(MCPServerFactory)
    name = factory.Sequence(lambda n: f"tool_{n}")


class SystemConfigFactory(DjangoModelFactory[SystemConfig]):
    class Meta:
        model = SystemConfig

    key = factory.Sequence(lambda n: f"setting.{n}")
    value = 1


class EnhancedAPIKeyFactory(DjangoModelFactory[EnhancedAPIKey]):
    """The key's text is on the instance as `text`."""

    class Meta:
        model = EnhancedAPIKey

    name = factory.Sequence(lambda n: f"key {n}")
    tenant = factory.SubFactory(TenantFactory)
    scopes = ["proxy"]

    @classmethod
    def _create(cls, model_class: type[EnhancedAPIKey], *args: Any, **kwargs: Any) -> Any:
        key, salt = generate_key(), new_salt()
        kwargs.setdefault("key_prefix", key.prefix)
        hashed = hash_secret(salt=salt, secret=key.secret)
        row = super()._create(model_class, *args, salt=salt, key_hash=hashed, **kwargs)
        row.text = key.text  # type: ignore[attr-defined]
        return row


class APIKeyFactory(DjangoModelFactory[APIKey]):
    class Meta:
        model = APIKey

    name = factory.Sequence(lambda n: f"plain key {n}")
    tenant = factory.SubFactory(TenantFactory)
    scopes = ["proxy"]
    key_prefix = factory.Sequence(lambda n: f"plain{n}")
    key_hash = factory.Sequence(lambda n: f"{n:064x}")


class ServerAccessControlFactory(DjangoModelFactory[ServerAccessControl]):
    """Name one of user, tenant and api_key."""

    class Meta:
        model = ServerAccessControl

    server = factory.SubFactory(MCPServerFactory)


class SessionFactory(DjangoModelFactory[Session]):
    class Meta:
        model = Session

    user = factory.SubFactory(UserFactory)
    session_token = factory.Sequence(lambda n: f"{n:064x}")
    expires_at = factory.LazyFunction(lambda: now() + timedelta(days=1))


class RequestLogFactory(DjangoModelFactory[RequestLogEntry]):
    """The model whose key is the id alone, as the pages under test see it."""

    class Meta:
        model = RequestLogEntry

    method = "POST"
    path = "/mcp/sample"
    rpc_method = "tools/call"
    status_code = 200
    duration_ms = 12.5


class AuditLogFactory(DjangoModelFactory[AuditLogEntry]):
    """As for RequestLogFactory."""

    class Meta:
        model = AuditLogEntry

    service_name = "api"
    action = "server.register"


class PerformanceAlertFactory(DjangoModelFactory[PerformanceAlert]):
    class Meta:
        model = PerformanceAlert

    name = factory.Sequence(lambda n: f"alert {n}")
    metric_name = "open_breakers"
    threshold_value = 0.0


class AlertEventFactory(DjangoModelFactory[AlertEvent]):
    class Meta:
        model = AlertEvent

    alert = factory.SubFactory(PerformanceAlertFactory)
    kind = "triggered"
    value = 1.0
    message = "it fires"


class DataRetentionPolicyFactory(DjangoModelFactory[DataRetentionPolicy]):
    class Meta:
        model = DataRetentionPolicy

    name = factory.Sequence(lambda n: f"policy {n}")
    table_name = "request_logs"
    date_column = "request_time"
    retention_days = 90


class ScheduledTaskFactory(DjangoModelFactory[ScheduledTask]):
    class Meta:
        model = ScheduledTask

    name = factory.Sequence(lambda n: f"task_{n}")
    schedule = "* * * * *"
    next_run = factory.LazyFunction(now)
