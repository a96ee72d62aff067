from __future__ import annotations

import pytest

from monitoring.models import AuditLog
from security.models import ServerAccessControl
from tests.api import client_of
from tests.factories import (
    EnhancedAPIKeyFactory,
    MCPServerFactory,
    ServerAccessControlFactory,
    ServerToolFactory,
    TenantFactory,
    UserFactory,
)

pytestmark = pytest.mark.django_db

SERVERS, TOOLS, RULES = "/api/v1/servers", "/api/v1/tools", "/api/v1/access-controls"


@pytest.fixture
def tenant():
    return TenantFactory()


@pytest.fixture
def server(tenant):
    return MCPServerFactory(tenant=tenant)


def sees(client, server) -> bool:
    listed = server.slug in {row["slug"] for row in client.get(SERVERS).json()["results"]}
    found = client.get(f"{SERVERS}/{server.pk}").status_code == 200
    assert listed is found
    return found


def may_change(client, server) -> bool:
    status = client.patch(f"{SERVERS}/{server.pk}", {"description": "x"}, format="json").status_code
    assert status in {200, 403, 404}
    return status == 200


@pytest.mark.parametrize(
    ("key", "user", "owner", "seen"),
    [
        (None, None, None, True),
        (None, None, False, False),
        (None, False, True, False),
        (True, False, False, True),
        (False, True, True, False),
        (None, True, False, True),
    ],
)
def test_the_most_specific_rule_decides_who_sees_a_server(tenant, server, key, user, owner, seen):
    person = UserFactory(tenant=tenant)
    client = client_of(tenant, scopes=["read", "write"], user=person)
    subjects = {"api_key": (client.key, key), "user": (person, user), "tenant": (tenant, owner)}
    for name, (subject, can_read) in subjects.items():
        if can_read is not None:
            ServerAccessControlFactory(server=server, can_read=can_read, **{name: subject})
    assert sees(client, server) is seen
    tool = ServerToolFactory(server=server)
    assert (client.get(f"{TOOLS}/{tool.pk}").status_code == 200) is seen


def test_a_rule_that_is_off_decides_nothing(tenant, server):
    client = client_of(tenant, scopes=["read"])
    ServerAccessControlFactory(server=server, api_key=client.key, can_read=False, is_active=False)
    assert sees(client, server)


def test_writing_needs_the_rules_can_write(tenant, server):
    client = client_of(tenant, scopes=["read", "write"])
    assert may_change(client, server)
    rule = ServerAccessControlFactory(server=server, api_key=client.key)
    assert not may_change(client, server)
    ServerAccessControl.objects.filter(pk=rule.pk).update(can_write=True)
    assert may_change(client, server)


def test_credentials_need_the_rules_can_admin(tenant, server):
    client = client_of(tenant, scopes=["read", "write"])
    rule = ServerAccessControlFactory(server=server, api_key=client.key, can_write=True)
    change = {"credentials": {"headers": {"Authorization": "Bearer x"}}}
    path = f"{SERVERS}/{server.pk}"
    assert client.patch(path, change, format="json").status_code == 403
    ServerAccessControl.objects.filter(pk=rule.pk).update(can_admin=True)
    assert client.patch(path, change, format="json").json()["has_credentials"] is True


def test_a_server_with_credentials_is_moved_by_who_may_set_them(tenant):
    server = MCPServerFactory(tenant=tenant, endpoint_url="https://93.184.216.34/mcp")
    client = client_of(tenant, scopes=["read", "write"])
    rule = ServerAccessControlFactory(server=server, api_key=client.key, can_write=True)

    def patched(**change):
        return client.patch(f"{SERVERS}/{server.pk}", change, format="json").status_code

    assert patched(endpoint_url="https://93.184.216.35/mcp") == 200  # nothing to steal yet
    server.refresh_from_db()
    server.credentials = {"headers": {"Authorization": "Bearer x"}}
    server.save()
    assert patched(endpoint_url="https://93.184.216.36/mcp") == 403
    assert patched(transport_type="sse") == 403
    assert patched(endpoint_url=server.endpoint_url, transport_type="http", name="New") == 200
    ServerAccessControl.objects.filter(pk=rule.pk).update(can_admin=True)
    assert patched(endpoint_url="https://93.184.216.36/mcp") == 200
    server.refresh_from_db()
    assert server.credentials is None


def test_shared_servers_are_read_by_all_and_changed_by_operators(tenant):
    shared = MCPServerFactory(tenant=None)
    client = client_of(tenant)
    assert sees(client, shared)
    assert not may_change(client, shared)
    assert may_change(client_of(None), shared)


def test_a_denying_tenant_shows_what_a_rule_grants_and_lets_its_admins_write_rules():
    tenant = TenantFactory(settings={"default_access": "deny"})
    granted, other = MCPServerFactory(tenant=tenant), MCPServerFactory(tenant=tenant)
    shared = MCPServerFactory(tenant=None)
    reader = client_of(tenant, scopes=["read"])
    ServerAccessControlFactory(server=granted, api_key=reader.key)
    assert [sees(reader, server) for server in (granted, other, shared)] == [True, False, False]
    admin = client_of(tenant)
    rule = {"server": str(other.pk), "api_key": str(reader.key.pk)}
    assert admin.post(RULES, rule, format="json").status_code == 201
    assert sees(reader, other)


def test_a_key_for_some_servers_sees_those(tenant, server):
    MCPServerFactory(tenant=tenant)
    client = client_of(tenant, scopes=["read"], allowed_servers=[server.slug])
    assert [row["slug"] for row in client.get(SERVERS).json()["results"]] == [server.slug]


def test_a_rule_is_made_changed_and_removed_and_each_is_noted(tenant, server):
    admin, agent = client_of(tenant), EnhancedAPIKeyFactory(tenant=tenant)
    made = admin.post(
        RULES,
        {"server": str(server.pk), "api_key": str(agent.pk), "denied_methods": ["tools/call:rm_*"]},
        format="json",
    )
    assert made.status_code == 201, made.content
    path = f"{RULES}/{made.json()['id']}"
    changed = admin.patch(path, {"allowed_hours": [8, 9]}, format="json")
    assert changed.json()["allowed_hours"] == [8, 9]
    assert admin.delete(path).status_code == 204
    assert sorted(AuditLog.objects.values_list("action", flat=True)) == [
        "access_rule.create", "access_rule.delete", "access_rule.update",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "subjects", [{}, {"tenant": "own", "api_key": "own"}], ids=["nobody", "two"]
)
def test_a_rule_has_exactly_one_subject(tenant, server, subjects):
    admin = client_of(tenant)
    known = {"tenant": tenant.slug, "api_key": str(admin.key.pk)}
    body = {"server": str(server.pk)} | {name: known[name] for name in subjects}
    answer = admin.post(RULES, body, format="json")
    assert answer.status_code == 400
    assert "exactly one" in answer.content.decode()


def test_a_second_active_rule_for_a_subject_is_refused(tenant, server):
    admin = client_of(tenant)
    ServerAccessControlFactory(server=server, tenant=tenant, can_admin=True)
    body = {"server": str(server.pk), "tenant": tenant.slug}
    answer = admin.post(RULES, body, format="json")
    assert answer.status_code == 400
    assert "already" in answer.content.decode()


def test_other_tenants_servers_and_subjects_cannot_be_named(tenant, server):
    admin = client_of(tenant)
    for body in (
        {"server": str(MCPServerFactory().pk), "tenant": tenant.slug},
        {"server": str(server.pk), "tenant": TenantFactory().slug},
        {"server": str(server.pk), "api_key": str(EnhancedAPIKeyFactory().pk)},
        {"server": str(server.pk), "user": str(UserFactory().pk)},
        {"server": "nonsense", "tenant": tenant.slug},
    ):
        assert admin.post(RULES, body, format="json").status_code == 400


def test_no_rule_lets_its_subject_widen_it(tenant):
    shared = MCPServerFactory(tenant=None)
    admin = client_of(tenant)
    rule = ServerAccessControlFactory(server=shared, tenant=tenant, can_read=True)
    path = f"{RULES}/{rule.pk}"
    assert admin.patch(path, {"can_write": True}, format="json").status_code == 403
    assert admin.delete(path).status_code == 403
    body = {"server": str(shared.pk), "api_key": str(admin.key.pk), "can_admin": True}
    assert admin.post(RULES, body, format="json").status_code == 403


def test_an_admin_cannot_take_the_own_way_back(tenant, server):
    admin = client_of(tenant)
    everybody = {"server": str(server.pk), "tenant": tenant.slug}
    own = {"server": str(server.pk), "api_key": str(admin.key.pk)}

    def made(body, **flags):
        return admin.post(RULES, body | flags, format="json")

    for refused in (made(everybody), made(own), made(own, can_admin=True, can_read=False)):
        assert refused.status_code == 409
        assert "first to your own key" in refused.json()["detail"]
    assert not ServerAccessControl.objects.exists()
    assert not AuditLog.objects.exists()

    kept = f"{RULES}/{made(own, can_admin=True).json()['id']}"
    assert made(everybody).status_code == 201  # the key's own rule decides
    for change in ({"can_admin": False}, {"can_read": False}, {"is_active": False}):
        assert admin.patch(kept, change, format="json").status_code == 409
    assert admin.delete(kept).status_code == 409
    assert admin.patch(kept, {"can_proxy": False}, format="json").status_code == 200
    assert ServerAccessControl.objects.get(api_key=admin.key).can_admin
