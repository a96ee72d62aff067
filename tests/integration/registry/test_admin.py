"""Servers and settings in the admin: secrets go in and never come out, errors are words."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import Group
from django.db import IntegrityError, connection, transaction
from django.test import Client
from django.urls import reverse

from gateway.defaults import defaults_ensure
from monitoring.models import AuditLog
from registry import services
from registry.admin_base import OperatorAdmin, byte_size, duration, percentage
from registry.audit import Actor
from registry.models import MCPServer, SystemConfig, Tenant
from security.models import Role
from tests.factories import (
    MCPServerFactory,
    ServerToolFactory,
    SystemConfigFactory,
    TenantFactory,
    UserFactory,
)
from tests.partitions import no_partitions

pytestmark = pytest.mark.django_db

ADD = reverse("admin:registry_mcpserver_add")
INLINES = {
    f"{name}-{part}": "0"
    for name in ("tools", "resources", "prompts")
    for part in ("TOTAL_FORMS", "INITIAL_FORMS")
}
FORM = {
    "name": "Search",
    "slug": "search",
    "endpoint_url": "https://search.mcp.invalid/mcp",
    "transport_type": "http",
    "is_enabled": "on",
    "tags": "docs, search",
    **INLINES,
}


def change_page(row) -> str:
    return reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_change", args=[row.pk])


def errors_of(response) -> str:
    assert response.status_code == 200
    return " ".join(str(error) for errors in response.context["errors"] for error in errors)


# ---------------------------------------------------------------- servers


def test_a_server_is_registered_with_credentials_that_never_come_back(admin_client):
    tenant = TenantFactory()
    headers = "Authorization: Bearer s3cret-4711\nX-Team: blue"
    form = {**FORM, "tenant": tenant.pk, "new_credentials": headers}
    assert admin_client.post(ADD, form).status_code == 302
    server = MCPServer.objects.get()
    assert server.tenant == tenant
    assert server.tags == ["docs", "search"]
    assert server.credentials == {
        "headers": {"Authorization": "Bearer s3cret-4711", "X-Team": "blue"}
    }
    page = admin_client.get(change_page(server)).content.decode()
    assert "Set, hidden" in page
    assert "s3cret-4711" not in page
    assert "s3cret-4711" not in str(list(AuditLog.objects.values()))
    entry = AuditLog.objects.get(action__startswith="server.")
    assert (entry.action, entry.tenant_id) == ("server.register", tenant.pk)


def test_stored_credentials_are_kept_replaced_and_forgotten(admin_client):
    old = {"headers": {"Authorization": "Bearer old"}}
    server = MCPServerFactory(
        tenant=None, credentials=old, slug="search", endpoint_url=FORM["endpoint_url"]
    )
    page = change_page(server)

    def saved(**changes: str):
        assert admin_client.post(page, {**FORM, **changes}).status_code == 302
        return MCPServer.objects.get().credentials

    assert saved(name="Renamed") == old
    assert saved(new_credentials="X-Key: new") == {"headers": {"X-Key": "new"}}
    assert saved(forget_credentials="on") is None


def test_credentials_typed_into_a_refused_form_are_not_sent_back(admin_client):
    form = {**FORM, "slug": "Not a slug", "new_credentials": "Authorization: Bearer s3cret-4711"}
    response = admin_client.post(ADD, form)
    assert "lower-case letters" in errors_of(response)
    assert "s3cret-4711" not in response.content.decode()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"slug": "taken"}, "already"),
        ({"slug": "a__b"}, "single '_'"),
        ({"endpoint_url": "ftp://example.org/"}, "does not fit transport"),
        ({"endpoint_url": "http://127.0.0.1:8000/mcp"}, "127.0.0.1"),
        ({"transport_type": "stdio", "endpoint_url": "python server.py"}, "register_server"),
        ({"new_credentials": "no header"}, "Line 1 is no header"),
        ({"new_credentials": "Bearer s3cret:abc"}, "Line 1 is no header"),
        ({"new_credentials": "X-Key: a\nx-key: b"}, "Line 2 repeats X-Key"),
        ({"new_credentials": "Host: elsewhere"}, "Host"),
        ({"registry_name": "no reverse name"}, "reverse-DNS name"),
        ({"name": ""}, "required"),
    ],
)
def test_a_server_that_does_not_fit_is_refused_in_words(admin_client, settings, change, words):
    settings.GATEWAY_ALLOW_PRIVATE_UPSTREAMS = False
    MCPServerFactory(tenant=None, slug="taken")
    response = admin_client.post(ADD, {**FORM, **change})
    assert words in errors_of(response)
    assert MCPServer.objects.count() == 1
    for name, typed in change.items():  # nothing has to be typed again but a secret
        if name not in {"new_credentials", "name"}:
            assert response.context["adminform"].form[name].value() == typed


def test_the_command_of_a_stdio_server_is_not_editable(admin_client, settings):
    settings.GATEWAY_ALLOW_STDIO = True
    server = MCPServerFactory(transport_type="stdio", endpoint_url="python server.py")
    form = {**FORM, "tenant": server.tenant_id, "endpoint_url": "rm -rf /", "name": "Renamed"}
    assert admin_client.post(change_page(server), form).status_code == 302
    server.refresh_from_db()
    assert (server.name, server.endpoint_url) == ("Renamed", "python server.py")


def test_servers_are_switched_by_action_and_audited(admin_client):
    server = MCPServerFactory()
    page = reverse("admin:registry_mcpserver_changelist")

    def act(action: str) -> str:
        form = {"action": action, "_selected_action": [server.pk]}
        return admin_client.post(page, form, follow=True).content.decode()

    assert "1 server(s) disabled" in act("disable")
    assert "disabled already" in act("disable")
    assert "1 server(s) now under maintenance" in act("maintenance_begin")
    server.refresh_from_db()
    assert (server.is_enabled, server.health_status) == (False, "maintenance")
    actions = AuditLog.objects.order_by("id").values_list("action", flat=True)
    assert list(actions) == ["server.disable", "server.maintenance"]


def test_a_tool_is_switched_off_but_not_rewritten(admin_client):
    tool = ServerToolFactory(name="add", description="Adds")
    form = {"name": "forged", "description": "forged", "tags": "math"}
    assert admin_client.post(change_page(tool), form).status_code == 302
    tool.refresh_from_db()
    assert (tool.name, tool.description, tool.is_enabled) == ("add", "Adds", False)
    assert tool.tags == ["math"]
    assert AuditLog.objects.get().action == "tool.update"


# ---------------------------------------------------------------- tenants


def test_a_tenants_changes_are_audited_with_old_and_new(admin_client):
    tenant = TenantFactory(slug="acme", name="Acme")
    form = {"name": "Acme Ltd", "slug": "acme", "status": "suspended", "settings": "{}"}
    assert admin_client.post(change_page(tenant), form).status_code == 302
    entry = AuditLog.objects.get()
    assert entry.action == "tenant.update"
    assert entry.details["changes"]["status"] == ["active", "suspended"]
    assert admin_client.post(change_page(tenant), form).status_code == 302
    assert AuditLog.objects.count() == 1  # nothing changed, nothing to tell

    admin_client.post(
        reverse("admin:registry_tenant_changelist"),
        {"action": "delete_selected", "_selected_action": [tenant.pk], "post": "yes"},
    )
    assert not Tenant.objects.filter(pk=tenant.pk).exists()
    assert AuditLog.objects.filter(action="tenant.delete", resource_id=str(tenant.pk)).exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"slug": "taken"}, "already exists"),
        ({"settings": "{no json"}, "valid JSON"),
        ({"settings": '["default_access"]'}, "JSON object"),
        ({"settings": "[]"}, "no object"),
        ({"settings": '{"default_access": "denied"}'}, "leave it out to allow"),
        ({"settings": '{"runs_gateway": "yes"}'}, "true or false"),
        ({"status": "gone"}, "not one of the available choices"),
    ],
)
def test_a_tenant_that_does_not_fit_is_refused_in_words(admin_client, change, words):
    TenantFactory(slug="taken")
    form = {"name": "Acme", "slug": "acme", "status": "active", "settings": "{}", **change}
    assert words in errors_of(admin_client.post(reverse("admin:registry_tenant_add"), form))


def test_what_postgresql_cannot_store_is_no_server_error(admin_client):
    form = {"name": "Acme", "slug": "acme", "status": "active", "settings": '{"a": "\\u0000"}'}
    response = admin_client.post(reverse("admin:registry_tenant_add"), form, follow=True)
    assert response.status_code == 200
    assert "Leave out NUL characters" in response.content.decode()
    assert not Tenant.objects.filter(slug="acme").exists()


@pytest.mark.parametrize("settings", [[], "x", {"default_access": "denied"}])
def test_the_table_refuses_settings_that_nobody_could_obey(settings):
    tenant = TenantFactory()
    with pytest.raises(IntegrityError, match="ck_tenants_settings"), transaction.atomic():
        Tenant.objects.filter(pk=tenant.pk).update(settings=settings)
    for fine in ({}, {"default_access": "allow"}, {"default_access": "deny", "note": 1}):
        assert Tenant.objects.filter(pk=tenant.pk).update(settings=fine) == 1


@pytest.fixture
def meanwhile(monkeypatch):
    """Changes a row after the form was read and before it is saved."""

    def change(row, **values):
        save_model = OperatorAdmin.save_model

        def late(admin, request, obj, form, change):
            type(row).objects.filter(pk=row.pk).update(**values)
            save_model(admin, request, obj, form, change)

        monkeypatch.setattr(OperatorAdmin, "save_model", late)

    return change


def test_a_tenant_suspended_meanwhile_stays_so(admin_client, meanwhile):
    tenant = TenantFactory(slug="acme")
    meanwhile(tenant, status="suspended")
    form = {"name": "Renamed", "slug": "acme", "status": "active", "settings": ""}
    assert admin_client.post(change_page(tenant), form).status_code == 302
    before, _ = tenant.updated_at, tenant.refresh_from_db()
    assert (tenant.name, tenant.status) == ("Renamed", "suspended")
    assert tenant.updated_at > before


def test_a_setting_counts_every_change(admin_client, meanwhile):
    config = SystemConfigFactory(key="limit")
    meanwhile(config, version=7)
    form = {"key": "limit", "value": "2", "is_runtime_configurable": "on"}
    assert admin_client.post(change_page(config), form).status_code == 302
    config.refresh_from_db()
    assert (config.value, config.version) == (2, 8)


def test_a_row_deleted_meanwhile_does_not_come_back(admin_client, monkeypatch):
    tenant = TenantFactory(slug="acme")
    save_model = OperatorAdmin.save_model

    def late(admin, request, obj, form, change):
        Tenant.objects.filter(pk=tenant.pk).delete()
        save_model(admin, request, obj, form, change)

    monkeypatch.setattr(OperatorAdmin, "save_model", late)
    form = {"name": "Renamed", "slug": "acme", "status": "active", "settings": "{}"}
    assert "Somebody deleted this" in errors_of(admin_client.post(change_page(tenant), form))


def test_an_address_is_looked_up_before_the_transaction(admin_client, monkeypatch):
    outside = list(connection.savepoint_ids)
    asked = []

    def resolve(host, _port):
        asked.append((host, connection.savepoint_ids != outside))
        return ["93.184.216.34"]

    monkeypatch.setattr(services, "resolve", resolve)
    form = {**FORM, "endpoint_url": "https://one.example.org/mcp"}
    assert admin_client.post(ADD, form).status_code == 302
    page = change_page(MCPServer.objects.get())
    assert admin_client.post(page, {**form, "name": "Renamed"}).status_code == 302
    form["endpoint_url"] = "https://two.example.org/mcp"
    assert admin_client.post(page, form).status_code == 302
    assert asked == [("one.example.org", False), ("two.example.org", False)]


# ---------------------------------------------------------------- settings in the database

SECRET = "s3cret-4711"


def test_a_sensitive_setting_is_replaced_but_never_shown(admin_client):
    config = SystemConfigFactory(key="token", value=SECRET, is_sensitive=True)
    page = change_page(config)
    form = {"key": "token", "is_sensitive": "on", "is_runtime_configurable": "on"}
    assert admin_client.post(page, {**form, "description": "For the mail."}).status_code == 302
    config.refresh_from_db()
    assert (config.value, config.version) == (SECRET, 2)
    assert admin_client.post(page, {**form, "value": '"other-4712"'}).status_code == 302
    config.refresh_from_db()
    assert (config.value, config.version) == ("other-4712", 3)
    logged = str(list(AuditLog.objects.values()))
    assert SECRET not in logged
    assert "other-4712" not in logged
    listed = admin_client.get(reverse("admin:registry_systemconfig_changelist")).content.decode()
    assert "other-4712" not in listed + admin_client.get(page).content.decode()


def test_a_sensitive_setting_becomes_readable_with_a_new_value_only(admin_client):
    config = SystemConfigFactory(value=SECRET, is_sensitive=True)
    form = {"key": config.key, "is_runtime_configurable": "on"}
    response = admin_client.post(change_page(config), form)
    assert "needs a new value" in errors_of(response)
    assert SECRET not in response.content.decode()
    config.refresh_from_db()
    assert config.is_sensitive


def test_who_may_only_look_sees_no_sensitive_value(client):
    defaults_ensure(actor=Actor(service_name="test"))
    reader = UserFactory(role=Role.READONLY, is_staff=True, tenant=None)
    reader.groups.set(Group.objects.filter(name="readonly"))
    client = Client()
    client.force_login(reader)
    hidden = SystemConfigFactory(value=SECRET, is_sensitive=True)
    plain = SystemConfigFactory(value="in the open")
    assert SECRET not in client.get(change_page(hidden)).content.decode()
    assert "in the open" in client.get(change_page(plain)).content.decode()


def test_a_log_without_a_partition_is_told_and_nothing_is_saved(admin_client):
    config = SystemConfigFactory(value="old")
    no_partitions("audit_logs")
    form = {"key": config.key, "value": '"new"', "is_runtime_configurable": "on"}
    page = admin_client.post(change_page(config), form, follow=True).content.decode()
    assert "run_maintenance --task partitions_create" in page
    config.refresh_from_db()
    assert config.value == "old"


def test_a_fixed_setting_keeps_its_value_and_its_secrecy(admin_client):
    config = SystemConfigFactory(value=SECRET, is_sensitive=True, is_runtime_configurable=False)
    form = {"key": config.key, "value": '"x"', "is_runtime_configurable": "on"}
    assert admin_client.post(change_page(config), form).status_code == 302
    config.refresh_from_db()
    assert (config.value, config.is_sensitive) == (SECRET, True)
    assert SECRET not in admin_client.get(change_page(config)).content.decode()


def test_a_key_is_unique_among_the_global_settings(admin_client):
    SystemConfigFactory(key="limit")
    form = {"key": "limit", "value": "1", "is_runtime_configurable": "on"}
    response = admin_client.post(reverse("admin:registry_systemconfig_add"), form)
    assert "already exists" in errors_of(response)
    assert SystemConfig.objects.count() == 1


# ---------------------------------------------------------------- figures in words


@pytest.mark.parametrize(
    ("milliseconds", "words"),
    [
        (None, "–"),
        (0.4321, "0.432 ms"),
        (84.2, "84.2 ms"),
        (721.4, "721 ms"),
        (1500, "1.5 s"),
        (60_000, "60 s"),
        (300_000, "5 min"),
        (86_400_000, "24 h"),
        (7 * 86_400_000, "7 days"),
    ],
)
def test_durations_have_units(milliseconds, words):
    assert duration(milliseconds) == words


def test_shares_and_sizes_have_units():
    assert percentage(0.987) == "98.7 %"
    assert percentage(None) == "–"
    assert byte_size(2048) == "2.0\xa0KB"
