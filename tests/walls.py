"""Two tenants with a row in every walled table, and the application's own login."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from django.contrib.auth.models import Group, Permission
from django.db import connection, connections
from django.utils.timezone import now

from gateway.models import CircuitBreaker, ConnectionPool, RequestQueue
from monitoring.models import RequestRollup, RequestUsage, RequestUser
from registry.db.ids import uuid7
from registry.db.pool import _parameters
from registry.db.tenancy import APP_ROLE
from registry.models import (
    MCPServer,
    ServerMetric,
    ServerPrompt,
    ServerResource,
    Tenant,
)
from tests.factories import (
    AlertEventFactory,
    APIKeyFactory,
    AuditLogFactory,
    EnhancedAPIKeyFactory,
    MCPServerFactory,
    PerformanceAlertFactory,
    RequestLogFactory,
    ServerAccessControlFactory,
    ServerToolFactory,
    SessionFactory,
    SystemConfigFactory,
    TenantFactory,
    UserFactory,
)

__all__ = ["logged_in_as_app", "make_tenant", "raw_connection", "walled_tables"]

WALLED = """
SELECT relname FROM pg_class
 WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p')
   AND relrowsecurity AND NOT relispartition
 ORDER BY relname
"""


def walled_tables() -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute(WALLED)
        return [row[0] for row in cursor.fetchall()]


def make_tenant() -> tuple[Tenant, MCPServer]:
    """A tenant with one server and at least one row in every table that has a wall."""
    tenant = TenantFactory()
    server = MCPServerFactory(tenant=tenant)
    user = UserFactory(tenant=tenant)
    user.groups.add(Group.objects.get_or_create(name="wall")[0])
    user.user_permissions.add(Permission.objects.first())
    ServerToolFactory(server=server)
    ServerResource.objects.create(server=server, uri_template="file:///x", name="x")
    ServerPrompt.objects.create(server=server, name="x")
    ServerMetric.objects.create(server=server)
    SystemConfigFactory(tenant=tenant)
    SessionFactory(user=user)
    APIKeyFactory(tenant=tenant, user=user)
    key = EnhancedAPIKeyFactory(tenant=tenant, user=user)
    for subject in ({"user": user}, {"api_key": key}):
        ServerAccessControlFactory(server=server, **subject)
    AuditLogFactory(tenant_id=tenant.pk)
    RequestLogFactory(tenant_id=tenant.pk, user_id=user.pk, target_server_id=server.pk)
    _rollups(tenant)
    AlertEventFactory(alert=PerformanceAlertFactory(server=server))
    for model in (CircuitBreaker, ConnectionPool, RequestQueue):
        model.objects.get_or_create(server=server)
    return tenant, server


def _rollups(tenant: Tenant) -> None:
    sums = {"requests": 1, "errors": 0, "sum_ms": 1.0, "max_ms": 1.0, "bytes_in": 1, "bytes_out": 1}
    hour = now().replace(minute=0, second=0, microsecond=0)
    seen = {"tenant_id": tenant.pk, "bucket": hour, "first_seen": hour, "last_seen": hour}
    RequestRollup.objects.create(
        tenant_id=tenant.pk, bucket=hour, minutes=60, bins=[0], counts=[1], **sums
    )
    RequestUsage.objects.create(server_id=uuid7(), tool_name="x", **seen, **sums)
    RequestUser.objects.create(user_id=uuid7(), **seen)


@contextmanager
def raw_connection(*, user: str = APP_ROLE) -> Iterator[psycopg.Connection[Any]]:
    """A session of psycopg's own, logged in as the application's role unless told."""
    with psycopg.connect(
        **{**_parameters(connections["default"].settings_dict), "user": user}, autocommit=True
    ) as own:
        yield own


@contextmanager
def logged_in_as_app() -> Iterator[None]:
    """Inside, this thread's ORM and every new thread's log in as the application does."""
    default = connections["default"]
    assert not default.in_atomic_block, "mark the test django_db(transaction=True)"
    before = default.settings_dict["USER"]
    default.close()
    default.settings_dict["USER"] = APP_ROLE
    try:
        yield
    finally:
        default.close()
        default.settings_dict["USER"] = before
