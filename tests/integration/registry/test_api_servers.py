from __future__ import annotations

import json

import pytest
from django.db import connection

from monitoring.models import AuditLog
from registry import services
from registry.api.serializers import ServerToolSerializer
from registry.models import MCPServer, ServerTool
from tests.api import client_of, faults
from tests.factories import MCPServerFactory, ServerToolFactory, TenantFactory
from tests.partitions import no_partitions

pytestmark = pytest.mark.django_db

SERVERS, TOOLS = "/api/v1/servers", "/api/v1/tools"
# An address that is public and needs no look-up.
NEW = {"name": "Weather", "endpoint_url": "https://93.184.216.34/mcp"}


@pytest.fixture
def client():
    return client_of(TenantFactory(), scopes=["read", "write"])


def sent(client, body, *, method="post", path=SERVERS):
    """The body as it stands, also where the test client could not encode it."""
    text = body if isinstance(body, str | bytes) else json.dumps(body)
    return getattr(client, method)(path, text, content_type="application/json")


def test_a_server_is_registered_for_the_callers_tenant(client):
    answer = client.post(SERVERS, NEW | {"tags": ["a", "b"]}, format="json")
    assert answer.status_code == 201, answer.content
    body = answer.json()
    assert (body["slug"], body["tenant"]) == ("weather", client.key.tenant.slug)
    assert body["health_status"] == "unknown"
    assert client.get(f"{SERVERS}/{body['id']}").json() == body
    [entry] = AuditLog.objects.filter(action="server.register")
    assert entry.resource_id == body["id"]
    assert str(entry.request_id) == answer["X-Request-ID"]


def test_a_log_without_a_partition_is_a_503_that_says_what_to_run(client):
    no_partitions("audit_logs")
    answer = client.post(SERVERS, NEW, format="json")
    assert (answer.status_code, answer["Retry-After"]) == (503, "60"), answer.content
    assert "run_maintenance --task partitions_create" in answer.json()["detail"]
    assert not MCPServer.objects.exists()


def test_operators_share_servers_with_all_tenants(client):
    assert client_of(None).post(SERVERS, NEW, format="json").json()["tenant"] is None
    assert client.get(SERVERS).json()["results"][0]["slug"] == "weather"


def test_a_tenant_cannot_share_a_server_nor_give_it_to_another(client):
    other = TenantFactory()
    assert client.post(SERVERS, NEW | {"tenant": other.slug}, format="json").status_code == 400
    shared = client.post(SERVERS, NEW | {"tenant": None}, format="json")
    assert shared.json()["tenant"] == client.key.tenant.slug


def test_credentials_go_in_and_never_come_out(client):
    secret = "Bearer very-secret"
    body = NEW | {"credentials": {"headers": {"Authorization": secret}}}
    answer = client.post(SERVERS, body, format="json")
    assert answer.status_code == 201, answer.content
    assert answer.json()["has_credentials"] is True
    assert "credentials" not in answer.json()
    server = MCPServer.objects.get()
    assert server.credentials == {"headers": {"Authorization": secret}}
    everywhere = client.get(SERVERS).content.decode() + str(list(AuditLog.objects.values()))
    assert "very-secret" not in everywhere


def test_what_was_measured_is_told_without_digits_that_were_not(client):
    server = MCPServerFactory(
        tenant=client.key.tenant, success_rate=0.9876543209876543, avg_response_time=12.3456789
    )
    found = client.get(f"{SERVERS}/{server.pk}").json()
    assert (found["success_rate"], found["avg_response_time"]) == (0.9877, 12.346)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        (NEW | {"name": ""}, "name"),
        (NEW | {"name": "x" * 256}, "name"),
        (NEW | {"name": "nul\0"}, "name"),
        (NEW | {"name": "half \ud800"}, "name"),
        (NEW | {"description": "nul\0"}, "description"),
        (NEW | {"tags": ["nul\0"]}, "tags"),
        (NEW | {"tags": "one"}, "tags"),
        (NEW | {"slug": "Not A Slug"}, "slug"),
        (NEW | {"slug": "two__parts"}, "slug"),
        (NEW | {"transport_type": "stdio"}, "transport_type"),
        (NEW | {"transport_type": "pigeon"}, "transport_type"),
        (NEW | {"endpoint_url": "not a url"}, "endpoint_url"),
        (NEW | {"endpoint_url": "http://127.0.0.1/mcp"}, "endpoint_url"),
        (NEW | {"endpoint_url": "file:///etc/passwd"}, "endpoint_url"),
        (NEW | {"is_enabled": "perhaps"}, "is_enabled"),
        (NEW | {"credentials": {"headers": {"a b": "c"}}}, "credentials"),
        (NEW | {"credentials": {"headers": {"a": "c\r\nd: e"}}}, "credentials"),
        (NEW | {"credentials": {"headers": {"X-Key": "a", "x-key": "b"}}}, "credentials"),
        (NEW | {"credentials": "x"}, "credentials"),
        ([NEW], "non_field_errors"),
        ("null", "non_field_errors"),
        ("{", "detail"),
        ('{"name": 1' + "0" * 5000 + "}", "detail"),
        ("[" * 100_000, "detail"),
        (b'{"name": "\xff"}', "detail"),
        ('{"name": NaN}', "detail"),
    ],
)
def test_a_body_that_does_not_fit_is_refused_by_name(client, settings, body, field):
    settings.GATEWAY_ALLOW_PRIVATE_UPSTREAMS = False
    answer = sent(client, body)
    assert answer.status_code == 400, answer.content
    assert field in answer.json(), answer.content
    assert not MCPServer.objects.exists()


def test_what_is_no_header_s_name_is_not_shown(client):
    answer = sent(client, NEW | {"credentials": {"headers": {"Bearer s3cret": "abc"}}})
    assert answer.status_code == 400
    assert "such as Authorization" in answer.json()["credentials"][0]
    assert b"s3cret" not in answer.content


def test_a_large_body_is_refused_before_it_is_parsed(client, settings):
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 1000
    assert sent(client, json.dumps(NEW | {"description": "x" * 1000})).status_code == 413


def test_other_content_types_are_refused(client):
    assert client.post(SERVERS, "name=x", content_type="text/plain").status_code == 415


def test_a_slug_is_taken_once_a_tenant(client):
    client.post(SERVERS, NEW, format="json")
    again = client.post(SERVERS, NEW, format="json")
    assert (again.status_code, faults(again)) == (400, {"slug"})
    elsewhere = client_of(TenantFactory())
    assert elsewhere.post(SERVERS, NEW, format="json").status_code == 201


def test_a_server_is_changed_switched_off_and_removed(client):
    server = MCPServerFactory(tenant=client.key.tenant, endpoint_url=NEW["endpoint_url"])
    path = f"{SERVERS}/{server.pk}"
    answer = client.patch(path, {"description": "new", "is_enabled": False}, format="json")
    assert (answer.json()["description"], answer.json()["is_enabled"]) == ("new", False)
    assert client.delete(path).status_code == 204
    assert client.get(path).status_code == 404
    actions = list(AuditLog.objects.order_by("id").values_list("action", flat=True))
    assert actions == ["server.update", "server.disable", "server.delete"]


def test_what_the_gateway_measures_cannot_be_written(client):
    server = MCPServerFactory(tenant=client.key.tenant)
    answer = client.patch(
        f"{SERVERS}/{server.pk}", {"health_status": "healthy", "success_rate": 1}, format="json"
    )
    assert (answer.json()["health_status"], answer.json()["success_rate"]) == ("unknown", None)


def test_a_server_cannot_change_hands(client):
    server = MCPServerFactory(tenant=client.key.tenant)
    answer = client.patch(f"{SERVERS}/{server.pk}", {"tenant": None}, format="json")
    assert (answer.status_code, faults(answer)) == (400, {"tenant"})


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"slug": "alpha"}, {"alpha"}),
        ({"search": "FIRST"}, {"alpha"}),
        ({"tag": "blue"}, {"beta"}),
        ({"health_status": ["healthy", "degraded"]}, {"alpha", "beta"}),
        ({"transport_type": "sse"}, {"beta"}),
        ({"is_enabled": "false"}, {"gamma"}),
        ({"is_enabled": "true"}, {"alpha", "beta"}),
    ],
)
def test_filters_find_what_they_say(client, query, found):
    tenant = client.key.tenant
    MCPServerFactory(tenant=tenant, slug="alpha", name="The first", health_status="healthy")
    MCPServerFactory(
        tenant=tenant, slug="beta", tags=["blue"], transport_type="sse", health_status="degraded"
    )
    MCPServerFactory(tenant=tenant, slug="gamma", is_enabled=False)
    results = client.get(SERVERS, query).json()["results"]
    assert {row["slug"] for row in results} == found


def test_a_tool_is_switched_off_and_the_rest_is_the_servers(client):
    tool = ServerToolFactory(
        server=MCPServerFactory(tenant=client.key.tenant), description="As listed"
    )
    path = f"{TOOLS}/{tool.pk}"
    answer = client.patch(path, {"is_enabled": False, "description": "mine"}, format="json")
    assert (answer.json()["is_enabled"], answer.json()["description"]) == (False, "As listed")
    assert not ServerTool.objects.get().is_enabled
    assert AuditLog.objects.get().action == "tool.update"
    assert client.delete(path).status_code == 405


def test_a_tool_is_found_by_its_server_and_name(client):
    tool = ServerToolFactory(server=MCPServerFactory(tenant=client.key.tenant), name="echo")
    ServerToolFactory(server=MCPServerFactory(tenant=client.key.tenant), name="echo")
    results = client.get(TOOLS, {"name": "echo", "server": str(tool.server_id)}).json()["results"]
    assert [row["id"] for row in results] == [str(tool.pk)]


def test_tools_of_shared_servers_are_seen(client):
    ServerToolFactory(server=MCPServerFactory(tenant=None), name="shared_tool")
    assert client.get(TOOLS).json()["results"][0]["name"] == "shared_tool"


def test_no_look_up_waits_inside_a_transaction(client, monkeypatch):
    outside = list(connection.savepoint_ids)
    open_then = []

    def resolve(_host, _port):
        open_then.append(connection.savepoint_ids != outside)
        return ["93.184.216.34"]

    monkeypatch.setattr(services, "resolve", resolve)
    made = client.post(SERVERS, NEW | {"is_enabled": False}, format="json").json()
    assert made["is_enabled"] is False
    path = f"{SERVERS}/{made['id']}"
    change = {"endpoint_url": "https://elsewhere.example.org/", "is_enabled": True}
    assert client.patch(path, change, format="json").json()["is_enabled"] is True
    assert open_then == [False, False]


def test_the_switch_of_a_tool_says_what_it_does():
    assert "cannot be called" in str(ServerToolSerializer().fields["is_enabled"].help_text)
