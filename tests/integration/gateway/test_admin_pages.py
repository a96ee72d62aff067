"""Every page of the admin opens, shows no secret, asks no outside host and counts its queries."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from django.contrib import admin
from django.contrib.auth.models import Group
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils.timezone import now
from procrastinate.contrib.django.models import ProcrastinateJob

from gateway.admin_site import sidebar
from gateway.defaults import defaults_ensure
from gateway.models import BreakerState, CircuitBreaker, ConnectionPool, RequestQueue
from monitoring.models import AuditLog, AuditLogEntry, MaterializedView, RequestLogEntry
from registry.audit import Actor
from registry.models import (
    MCPServer,
    ServerMetric,
    ServerMetricEntry,
    ServerPrompt,
    ServerResource,
)
from registry.periodic import task_defer
from security.models import Role, User
from tests.api import transaction_queries
from tests.factories import (
    AlertEventFactory,
    APIKeyFactory,
    AuditLogFactory,
    DataRetentionPolicyFactory,
    EnhancedAPIKeyFactory,
    MCPServerFactory,
    PerformanceAlertFactory,
    RequestLogFactory,
    ScheduledTaskFactory,
    ServerAccessControlFactory,
    ServerToolFactory,
    SessionFactory,
    SystemConfigFactory,
    TenantFactory,
    UserFactory,
)

pytestmark = pytest.mark.django_db

admin.autodiscover()
ADMINS = sorted(admin.site._registry.items(), key=lambda pair: pair[0]._meta.label)
EACH = pytest.mark.parametrize(
    ("model", "model_admin"), ADMINS, ids=[model._meta.label for model, _ in ADMINS]
)
LOGS = {"monitoring.AuditLogEntry", "monitoring.RequestLogEntry", "registry.ServerMetricEntry"}
UPSTREAM_SECRET = "upstream-secret-4711"
SETTING_SECRET = "setting-secret-4712"
WEBHOOK_SECRET = "webhook-secret-4716"


def url(model, page, *args) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{page}", args=args)


@pytest.fixture
def rows():
    """One row of every table, with secrets where there can be any."""
    tenant = TenantFactory(slug="acme")
    server = MCPServerFactory(
        tenant=tenant, credentials={"headers": {"Authorization": f"Bearer {UPSTREAM_SECRET}"}}
    )
    user = UserFactory(tenant=tenant, password="pbkdf2_sha256$1$salt-4713$hash-4714")
    key = EnhancedAPIKeyFactory(tenant=tenant, user=user)
    plain = APIKeyFactory(tenant=tenant, user=user, key_hash="ab" * 32)
    session = SessionFactory(user=user, session_token="cd" * 32, session_data="data-4715")
    ServerToolFactory(server=server, total_calls=10, success_count=9)
    ServerResource.objects.create(server=server, uri_template="file:///{path}", name="files")
    ServerPrompt.objects.create(server=server, name="summarise")
    ServerMetric.objects.create(server=server, response_time_ms=12.0)
    SystemConfigFactory(key="token", value=SETTING_SECRET, is_sensitive=True)
    ServerAccessControlFactory(server=server, tenant=tenant, allowed_days=[0, 4])
    ids = {"tenant_id": tenant.id, "user_id": user.id, "api_key_id": key.id}
    RequestLogFactory(target_server_id=server.id, **ids)
    AuditLogFactory(resource_type="mcp_servers", resource_id=str(server.id), **ids)
    alert = PerformanceAlertFactory(
        server=server, is_triggered=True, channel_secrets={"https://a.example": WEBHOOK_SECRET}
    )
    AlertEventFactory(alert=alert)
    DataRetentionPolicyFactory()
    ScheduledTaskFactory()
    MaterializedView.objects.create(name="mv", query="SELECT 1")
    ConnectionPool.objects.create(server=server, pool_name="worker-1")
    RequestQueue.objects.create(server=server, queue_name="worker-1")
    Group.objects.get_or_create(name=Role.READONLY.value)
    return {"key": key, "plain": plain, "session": session, "server": server, "user": user}


def secrets_of(rows) -> list[str]:
    key = rows["key"]
    return [
        UPSTREAM_SECRET,
        SETTING_SECRET,
        WEBHOOK_SECRET,
        "hash-4714",
        "data-4715",
        "ab" * 32,
        "cd" * 32,
        key.text,
        key.text.rpartition("_")[2],
        bytes(key.key_hash).hex(),
        bytes(key.salt).hex(),
        repr(bytes(key.key_hash)),
        repr(bytes(key.salt)),
    ]


def checked(response, rows) -> str:
    """The page's text, once it is known to be good."""
    assert response.status_code == 200
    text = response.content.decode()
    leaked = [secret for secret in secrets_of(rows) if secret in text]
    assert not leaked
    # Links to outside are text to click on, never something that the browser loads.
    loaded = re.findall(r"<(?:script|img|link|iframe)[^>]*(?:src|href)=[\"']?([^\"' >]+)", text)
    assert [address for address in loaded if re.match(r"(?:https?:)?//", address)] == []
    return text


@EACH
def test_a_superuser_opens_every_page(model, model_admin, admin_client, rows):
    checked(admin_client.get(url(model, "changelist")), rows)
    adding = admin_client.get(url(model, "add"))
    if adding.status_code != 403:
        checked(adding, rows)
    row = model._default_manager.first()
    if row is None:
        assert model._meta.label == "procrastinate.ProcrastinateJob"
        return
    checked(admin_client.get(url(model, "change", row.pk)), rows)
    checked(admin_client.get(url(model, "history", row.pk)), rows)


def test_no_page_names_the_library_behind_the_job_queue(admin_client):
    task_defer("view_refresh", view_id="1")
    job = ProcrastinateJob.objects.get()
    for page in (
        reverse("admin:app_list", args=["procrastinate"]),
        url(ProcrastinateJob, "changelist"),
        url(ProcrastinateJob, "change", job.pk),
    ):
        shown = re.sub(
            r"<(script|style).*?</\1>|<[^>]*>", " ", admin_client.get(page).text, flags=re.DOTALL
        )
        assert "Job queue" in shown, page
        assert "procrastinate" not in shown.lower(), page


def test_a_page_is_named_as_the_menu_names_it(admin_client, admin_user, rf):
    request = rf.get("/admin/")
    request.user = admin_user
    items = [item for group in sidebar(request) for item in group["items"]]
    assert len(items) > 20
    for item in items:
        text = admin_client.get(item["link"]).content.decode()
        [title] = re.findall(r"<title>\s*(.*?) \| MCP Registry Gateway\s*</title>", text)
        [heading] = re.findall(r"<h1[^>]*>(.*?)</h1>", text, re.DOTALL)
        assert title == item["title"]
        assert re.search(rf">\s*{title}\s*<", f">{heading}<"), title


def test_every_table_has_a_page():
    tables = {model._meta.db_table for model, _ in ADMINS}
    assert set(PROMISED_TABLES.split()) <= tables


PROMISED_TABLES = """
tenants mcp_servers server_tools server_resources server_prompts server_metrics system_configs
users sessions api_keys enhanced_api_keys server_access_control audit_logs request_logs
performance_alerts data_retention_policies materialized_views circuit_breakers connection_pools
request_queues
"""


@pytest.mark.parametrize("model", [AuditLogEntry, RequestLogEntry, ServerMetricEntry])
def test_logs_refuse_every_change_even_a_superusers(model, admin_client, rows):
    row = model._default_manager.first()
    before = model._default_manager.values().get(pk=row.pk)
    assert admin_client.post(url(model, "add"), {}).status_code == 403
    assert admin_client.post(url(model, "change", row.pk), {"path": "x"}).status_code == 403
    assert admin_client.post(url(model, "delete", row.pk), {"post": "yes"}).status_code == 403
    admin_client.post(
        url(model, "changelist"), {"action": "delete_selected", "_selected_action": [row.pk]}
    )
    assert model._default_manager.values().get(pk=row.pk) == before


# ---------------------------------------------------------------- queries


def make_row(label: str) -> None:
    """A row of a model's page, with a server, a tenant and a user of its own."""
    server = MCPServerFactory()
    user = UserFactory(tenant=server.tenant)
    ids = {"tenant_id": server.tenant_id, "user_id": user.id}
    makers = {
        "registry.ServerTool": lambda: ServerToolFactory(server=server),
        "registry.ServerMetricEntry": lambda: ServerMetric.objects.create(server=server),
        "security.EnhancedAPIKey": lambda: EnhancedAPIKeyFactory(tenant=server.tenant, user=user),
        "security.ServerAccessControl": lambda: ServerAccessControlFactory(
            server=server, user=user
        ),
        "security.Session": lambda: SessionFactory(user=user),
        "monitoring.RequestLogEntry": lambda: RequestLogFactory(target_server_id=server.id, **ids),
        "monitoring.AuditLogEntry": lambda: AuditLogFactory(**ids),
        "monitoring.PerformanceAlert": lambda: PerformanceAlertFactory(
            server=server, acknowledged_by=user
        ),
        "monitoring.AlertEvent": lambda: AlertEventFactory(alert__server=server),
    }
    if label in makers:
        makers[label]()


@pytest.mark.parametrize(
    "label",
    [
        "registry.Tenant",
        "registry.MCPServer",
        "registry.ServerTool",
        "registry.ServerMetricEntry",
        "security.User",
        "security.Session",
        "security.EnhancedAPIKey",
        "security.ServerAccessControl",
        "gateway.CircuitBreaker",
        "gateway.ConnectionPool",
        "gateway.RequestQueue",
        "monitoring.RequestLogEntry",
        "monitoring.AuditLogEntry",
        "monitoring.PerformanceAlert",
        "monitoring.AlertEvent",
    ],
)
def test_a_full_page_of_a_list_takes_few_queries(label, admin_client):
    model = next(model for model, _ in ADMINS if model._meta.label == label)
    for _ in range(51):
        make_row(label)
    with CaptureQueriesContext(connection) as captured:
        response = admin_client.get(url(model, "changelist"))
    assert response.status_code == 200
    assert len(response.context["cl"].result_list) == 50
    assert len(captured) <= 12
    if label in LOGS:
        counts = [query["sql"] for query in captured if "COUNT(" in query["sql"].upper()]
        assert counts == []


def test_the_first_page_takes_a_few_queries_of_its_own(admin_client, rows):
    CircuitBreaker.objects.update(state=BreakerState.OPEN)
    with CaptureQueriesContext(connection) as captured:
        response = admin_client.get(reverse("admin:index"))
    text = checked(response, rows)
    logins = re.compile(r'FROM "(sessions|users|auth_\w+|django_\w+)"')
    own = [query for query in captured if not logins.search(query["sql"])]
    assert len(own) <= 11 + transaction_queries(None)
    assert len(captured) < 20
    cards = {card.title: card for card in response.context["cards"]}
    assert cards["Open breakers"].value == "1"
    assert cards["Open breakers"].is_alarm
    [calls] = [card for title, card in cards.items() if title.startswith("Calls since")]
    assert calls.value == "1"
    assert cards["Firing alerts"].value == "1"
    for room in ("Registry", "Security", "Traffic", "Monitoring", "MCP Registry Gateway"):
        assert room in text


# ---------------------------------------------------------------- who may enter


@pytest.fixture
def roles():
    defaults_ensure(actor=Actor(service_name="test"))


def signed_in(role: Role, **fields) -> Client:
    user = UserFactory(role=role, **{"tenant": None, "is_staff": True, **fields})
    user.groups.set(Group.objects.filter(name=role.value))
    client = Client()
    client.force_login(user)
    return client


@pytest.mark.parametrize("fields", [{"is_staff": False}, {"is_active": False}, {"tenant": "own"}])
def test_only_active_staff_without_a_tenant_may_enter(fields, roles):
    if "tenant" in fields:
        fields = {"tenant": TenantFactory()}
    client = signed_in(Role.ADMIN, **fields)
    response = client.get(reverse("admin:registry_mcpserver_changelist"))
    assert response.status_code == 302
    assert response.url.startswith(reverse("admin:login"))


def test_the_readonly_role_sees_everything_and_changes_nothing(roles, rows):
    client = signed_in(Role.READONLY)
    for model, _ in ADMINS:
        if model._meta.app_label in {"auth", "procrastinate"}:
            continue
        row = model._default_manager.first()
        checked(client.get(url(model, "changelist")), rows)
        checked(client.get(url(model, "change", row.pk)), rows)
        assert client.get(url(model, "add")).status_code == 403
        assert client.post(url(model, "change", row.pk), {"name": "x"}).status_code == 403
        assert client.post(url(model, "delete", row.pk), {"post": "yes"}).status_code == 403
    assert not User.objects.filter(username="x").exists()


def test_a_role_reaches_its_pages_only(roles, rows):
    client = signed_in(Role.SERVICE)
    assert client.get(reverse("admin:registry_mcpserver_changelist")).status_code == 200
    assert client.get(reverse("admin:security_enhancedapikey_changelist")).status_code == 403
    overview = client.get(reverse("admin:index"))
    assert "cards" not in overview.context
    assert "API keys" not in overview.content.decode()


# ---------------------------------------------------------------- traffic


def act(client, model, action, *rows):
    return client.post(
        url(model, "changelist"),
        {"action": action, "_selected_action": [row.pk for row in rows]},
        follow=True,
    )


def test_breakers_are_opened_and_closed_by_hand(admin_client):
    breaker = MCPServerFactory().breakers.get()
    act(admin_client, CircuitBreaker, "open", breaker)
    breaker.refresh_from_db()
    assert breaker.state == BreakerState.OPEN
    text = act(admin_client, CircuitBreaker, "open", breaker).content.decode()
    assert "open already" in text
    act(admin_client, CircuitBreaker, "close", breaker)
    breaker.refresh_from_db()
    assert breaker.state == BreakerState.CLOSED
    entries = AuditLog.objects.filter(action="circuit_breaker.force")
    assert entries.count() == 2
    assert {entry.service_name for entry in entries} == {"admin"}


def test_a_breakers_thresholds_are_edited_and_audited(admin_client):
    breaker = MCPServerFactory().breakers.get()
    page = url(CircuitBreaker, "change", breaker.pk)
    form = {"failure_threshold": 9, "success_threshold": 2, "timeout_ms": 60000}
    assert admin_client.post(page, form).status_code == 302
    entry = AuditLog.objects.get(action="circuitbreaker.update")
    assert entry.details["changes"] == {"failure_threshold": [5, 9]}
    assert entry.request_id is not None
    assert entry.ip_address == "127.0.0.1"
    refused = admin_client.post(page, form | {"failure_threshold": 0})
    assert refused.status_code == 200
    assert "greater than or equal to 1" in refused.content.decode()


def test_gauges_are_no_settings(admin_client):
    server = MCPServerFactory()
    settings_row = server.pools.get(pool_name="")
    gauge = ConnectionPool.objects.create(server=server, pool_name="worker-1")
    form = {"min_size": 0, "max_size": 7, "timeout_ms": 1000, "idle_timeout_ms": 1000}
    assert admin_client.post(url(ConnectionPool, "change", gauge.pk), form).status_code == 403
    page = url(ConnectionPool, "change", settings_row.pk)
    assert admin_client.post(page, form).status_code == 302
    settings_row.refresh_from_db()
    assert settings_row.max_size == 7
    refused = admin_client.post(page, form | {"min_size": 8})
    assert refused.status_code == 200
    assert refused.context["errors"]


def test_a_server_is_deleted_with_what_belongs_to_it(admin_client):
    server = MCPServerFactory()
    response = admin_client.post(url(MCPServer, "delete", server.pk), {"post": "yes"})
    assert response.status_code == 302
    assert not MCPServer.objects.filter(pk=server.pk).exists()
    assert AuditLog.objects.filter(action="server.delete", resource_id=str(server.pk)).exists()


def test_old_rows_of_a_log_are_out_of_the_first_view(admin_client):
    two_days_ago = now() - timedelta(days=2)
    RequestLogFactory(path="/mcp/recent")
    RequestLogFactory(path="/mcp/old", request_time=two_days_ago)
    page = reverse("admin:monitoring_requestlogentry_changelist")

    def paths(query: str) -> set[str]:
        return {row.path for row in admin_client.get(page + query).context["cl"].result_list}

    assert paths("") == {"/mcp/recent"}
    assert paths("?window=168") == {"/mcp/recent", "/mcp/old"}
