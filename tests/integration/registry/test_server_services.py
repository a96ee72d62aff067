"""Registering and changing servers."""

import pytest
from cryptography.fernet import Fernet
from django.core.exceptions import ValidationError
from django.db import connection
from procrastinate.contrib.django.models import ProcrastinateJob

from monitoring.models import AuditLog
from registry import services
from registry.audit import Actor
from registry.models import MCPServer
from registry.services import (
    server_delete,
    server_register,
    server_set_enabled,
    server_set_maintenance,
    server_update,
)
from registry.upstream import HostNotFound
from tests.factories import MCPServerFactory, ServerToolFactory, TenantFactory

pytestmark = pytest.mark.django_db
ACTOR = Actor(service_name="test")
URL = "https://mcp.example.org/mcp"


@pytest.fixture(autouse=True)
def addresses(monkeypatch):
    """What names resolve to, so that no test asks a real DNS."""
    known = {"mcp.example.org": ["93.184.216.34"]}

    def resolve(host, port):
        if host not in known:
            raise HostNotFound(f"The host '{host}' has no address; check its spelling.")
        return known[host]

    monkeypatch.setattr(services, "resolve", resolve)
    return known


def register(**changes):
    fields = {"actor": ACTOR, "tenant": None, "name": "Code Search", "url": URL} | changes
    return server_register(**fields)


def test_registering_derives_the_slug_leaves_an_entry_and_queues_the_first_contact():
    tenant = TenantFactory()
    server = register(tenant=tenant, tags=["a", " a ", ""])

    assert (server.slug, server.tags) == ("code-search", ["a"])
    entry = AuditLog.objects.get(action="server.register")
    assert (entry.resource_id, entry.tenant_id) == (str(server.pk), tenant.pk)
    job = ProcrastinateJob.objects.get(task_name="server_first_contact")
    assert job.args == {"server_id": str(server.pk)}


def test_a_slug_is_unique_per_tenant_and_among_the_shared():
    tenant = TenantFactory(slug="red")
    register(tenant=tenant)
    register(tenant=TenantFactory())
    register()
    with pytest.raises(ValidationError, match="In tenant 'red' there is a server 'code-search'"):
        register(tenant=tenant)
    with pytest.raises(ValidationError, match="Among the shared servers there is"):
        register()
    assert MCPServer.objects.count() == 3


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "漢字"}, "slug"),
        ({"slug": "two__underscores"}, "slug"),
        ({"url": "ftp://mcp.example.org"}, "endpoint_url"),
        ({"url": "https://127.0.0.1/mcp"}, "endpoint_url"),
        ({"url": "https://mcp.example.org/mcp?team=1&API-Key=x"}, "endpoint_url"),
        ({"transport": "pigeon"}, "transport_type"),
        ({"transport": "stdio", "url": "cat"}, "transport_type"),
        ({"registry_name": "no slash"}, "registry_name"),
        ({"tags": ["x" * 64]}, "tags"),
        ({"credentials": {"token": "x"}}, "credentials"),
        ({"credentials": {"headers": {"Host": "x"}}}, "credentials"),
        ({"credentials": {"headers": {"X": "a\r\nb"}}}, "credentials"),
        ({"credentials": {"headers": {"Accept": "text/html"}}}, "credentials"),
        ({"credentials": {"headers": {"Accept-Encoding": "gzip"}}}, "credentials"),
        ({"credentials": {"headers": {"MCP-Protocol-Version": "1"}}}, "credentials"),
        ({"credentials": {"headers": {"Mcp-Param-Region": "eu"}}}, "credentials"),
        ({"credentials": {"headers": {"X-Request-ID": "1"}}}, "credentials"),
    ],
)
def test_bad_input_names_its_field_and_leaves_nothing(changes, field, monkeypatch):
    monkeypatch.setattr(services, "resolve", lambda host, _port: [host])
    with pytest.raises(ValidationError) as caught:
        register(**changes)
    assert field in caught.value.message_dict
    assert not MCPServer.objects.exists()
    assert not AuditLog.objects.exists()


def test_a_name_with_a_private_address_is_refused_unless_allowed(addresses, settings):
    addresses["mcp.example.org"] = ["93.184.216.34", "10.0.0.7"]
    with pytest.raises(ValidationError, match="GATEWAY_ALLOW_PRIVATE_UPSTREAMS"):
        register()
    settings.GATEWAY_ALLOW_PRIVATE_UPSTREAMS = True
    assert register().pk


def test_a_name_without_an_address_is_accepted_and_unknown():
    assert register(url="https://not-yet.example.org/mcp").health_status == "unknown"


def test_stdio_needs_the_argument_and_the_setting(settings):
    stdio = {"transport": "stdio", "url": "cat -u"}
    with pytest.raises(ValidationError, match="GATEWAY_ALLOW_STDIO"):
        register(**stdio, allow_stdio=True)
    settings.GATEWAY_ALLOW_STDIO = True
    with pytest.raises(ValidationError, match="register_server"):
        register(**stdio)
    assert register(**stdio, allow_stdio=True).endpoint_url == "cat -u"
    with pytest.raises(ValidationError, match="cannot be read"):
        register(transport="stdio", url="cat 'x", slug="x", allow_stdio=True)


def test_a_new_address_forgets_the_old_health_and_tells_no_secret():
    server = register(credentials={"headers": {"Authorization": "Bearer hush"}})
    MCPServer.objects.update(health_status="healthy", avg_response_time=12.0)
    changed = server_update(
        actor=ACTOR,
        server=server,
        endpoint_url="https://mcp.example.org/v2?team=hush",
        credentials={"headers": {"Authorization": "Bearer hush2"}},
    )
    assert (changed.health_status, changed.avg_response_time) == ("unknown", None)
    assert changed.credentials == {"headers": {"Authorization": "Bearer hush2"}}
    assert "hush" not in str(AuditLog.objects.get(action="server.update").details)


def test_an_update_without_a_difference_leaves_no_entry():
    server = register()
    server_update(actor=ACTOR, server=server, name="Code Search")
    assert not AuditLog.objects.filter(action="server.update").exists()


def test_an_update_refuses_what_may_not_change_and_clashes():
    server, _ = register(), register(slug="other")
    with pytest.raises(ValidationError, match="health_status"):
        server_update(actor=ACTOR, server=server, health_status="healthy")
    with pytest.raises(ValidationError, match="there is a server 'other' already"):
        server_update(actor=ACTOR, server=server, slug="other")
    with pytest.raises(ValidationError, match="register_server"):
        server_update(actor=ACTOR, server=server, transport_type="stdio")


def test_enabling_and_maintenance_change_once():
    server = MCPServerFactory(health_status="healthy")
    assert server_set_enabled(actor=ACTOR, server=server, enabled=False)
    assert not server_set_enabled(actor=ACTOR, server=server, enabled=False)
    assert server_set_maintenance(actor=ACTOR, server=server, on=True)
    assert not server_set_maintenance(actor=ACTOR, server=server, on=True)
    assert server_set_maintenance(actor=ACTOR, server=server, on=False)
    server.refresh_from_db()
    assert (server.is_enabled, server.health_status) == (False, "unknown")
    assert AuditLog.objects.filter(action="server.maintenance").count() == 2


def test_deleting_takes_the_tools_along_and_happens_once():
    server = ServerToolFactory().server
    assert server_delete(actor=ACTOR, server=server)
    assert not server_delete(actor=ACTOR, server=MCPServer(pk=server.pk))
    assert AuditLog.objects.filter(action="server.delete").count() == 1


CREDENTIALS = {"headers": {"Authorization": "Bearer hush"}}
OTHERS = {"headers": {"Authorization": "Bearer other"}}


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ({"endpoint_url": "https://elsewhere.example.org/mcp"}, None),
        ({"endpoint_url": "http://mcp.example.org/mcp"}, None),
        ({"endpoint_url": "https://mcp.example.org:8443/mcp"}, None),
        ({"transport_type": "sse"}, None),
        ({"endpoint_url": "https://elsewhere.example.org/mcp", "credentials": OTHERS}, OTHERS),
        ({"endpoint_url": "https://MCP.example.org:443/v2"}, CREDENTIALS),
        ({"name": "Renamed"}, CREDENTIALS),
    ],
)
def test_credentials_stay_with_the_origin_they_were_given_for(changes, left):
    server = register(credentials=CREDENTIALS)
    assert server_update(actor=ACTOR, server=server, **changes).credentials == left
    told = AuditLog.objects.get(action="server.update").details.get("credentials", "")
    assert told.startswith("dropped") == (left is None)


def test_a_server_whose_key_is_lost_is_renamed_and_gets_new_credentials(settings):
    server = register(credentials=CREDENTIALS)
    settings.ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    server.refresh_from_db()
    renamed = server_update(actor=ACTOR, server=server, name="Renamed")
    assert renamed.name == "Renamed"
    assert renamed.credentials != CREDENTIALS
    assert server_update(actor=ACTOR, server=server, credentials=OTHERS).credentials == OTHERS


def test_names_are_looked_up_before_the_transaction(monkeypatch):
    outside = list(connection.savepoint_ids)
    open_then = []

    def resolve(_host, _port):
        open_then.append(connection.savepoint_ids != outside)
        return ["93.184.216.34"]

    monkeypatch.setattr(services, "resolve", resolve)
    server = register(is_enabled=False)
    assert not MCPServer.objects.get().is_enabled
    url = "https://elsewhere.example.org/"
    changed = server_update(actor=ACTOR, server=server, endpoint_url=url, is_enabled=True)
    assert changed.is_enabled
    assert open_then == [False, False]
