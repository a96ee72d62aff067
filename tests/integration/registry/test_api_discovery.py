"""GET /api/v1/servers/discover: whom to call."""

from __future__ import annotations

import pytest

from tests.api import client_of, transaction_queries
from tests.factories import MCPServerFactory, ServerAccessControlFactory, TenantFactory
from tests.walls import logged_in_as_app

pytestmark = pytest.mark.django_db

DISCOVER = "/api/v1/servers/discover/"


@pytest.fixture
def client():
    return client_of(TenantFactory(), scopes=["read"])


def up(tenant, slug, ms, **values):
    return MCPServerFactory(
        tenant=tenant,
        slug=slug,
        avg_response_time=ms,
        **{"health_status": "healthy", **values},
    )


def slugs(client, **asked):
    answer = client.get(DISCOVER, asked)
    assert answer.status_code == 200, answer.content
    body = answer.json()
    assert (body["next"], body["previous"]) == (None, None)
    return [row["slug"] for row in body["results"]]


def test_own_and_shared_servers_come_by_latency_and_unmeasured_ones_last(client):
    own = client.key.tenant
    up(own, "new", None)
    up(None, "shared-new", None, health_status="degraded")
    up(own, "slow", 90.0, health_status="degraded")
    up(None, "shared", 20.0)
    up(own, "fast", 3.5)
    found = slugs(client)
    assert found[:3] == ["fast", "shared", "slow"]
    assert set(found[3:]) == {"new", "shared-new"}


def test_what_is_down_off_foreign_or_spoken_to_otherwise_is_left_out(client):
    own = client.key.tenant
    for status in ("unhealthy", "unknown", "maintenance"):
        up(own, status, 1.0, health_status=status)
    up(own, "off", 1.0, is_enabled=False)
    up(own, "sse", 1.0, transport_type="sse")
    up(TenantFactory(), "foreign", 1.0)
    up(own, "right", 1.0)
    assert slugs(client) == ["right"]
    assert slugs(client, transport="sse") == ["sse"]


def test_the_limit_holds_over_both_halves(client):
    for n in range(4):
        up(client.key.tenant, f"own-{n}", 10.0 * n)
        up(None, f"shared-{n}", 10.0 * n + 5)
    assert slugs(client, limit=3) == ["own-0", "shared-0", "own-1"]
    assert len(slugs(client)) == 8


def test_a_server_that_a_rule_hides_is_not_found(client):
    hidden, shared = up(client.key.tenant, "hidden", 1.0), up(None, "shared-hidden", 2.0)
    up(client.key.tenant, "shown", 3.0)
    for server in (hidden, shared):
        ServerAccessControlFactory(server=server, tenant=client.key.tenant, can_read=False)
    assert slugs(client) == ["shown"]


def test_a_key_for_some_servers_finds_those(client):
    up(client.key.tenant, "one", 1.0)
    up(client.key.tenant, "two", 2.0)
    restricted = client_of(client.key.tenant, scopes=["read"], allowed_servers=["two"])
    assert slugs(restricted) == ["two"]


def test_an_operator_finds_the_shared_ones_or_what_a_tenant_would():
    tenant = TenantFactory()
    up(tenant, "own", 1.0)
    up(None, "shared", 2.0)
    assert slugs(client_of(None)) == ["shared"]
    assert slugs(client_of(None), tenant=tenant.slug) == ["own", "shared"]


def test_rows_are_those_of_the_list(client):
    server = up(client.key.tenant, "one", 1.0, credentials={"headers": {"a": "secret"}})
    [row] = client.get(DISCOVER).json()["results"]
    assert row == client.get(f"/api/v1/servers/{server.pk}").json()
    assert row["has_credentials"] is True


@pytest.mark.parametrize(
    ("asked", "field", "word"),
    [
        ({"transport": "pigeon"}, "transport", "pigeon"),
        ({"transport": "nul\0"}, "transport", "is none of: http"),
        ({"limit": "many"}, "limit", "valid integer"),
        ({"limit": "0"}, "limit", "1"),
        ({"limit": "101"}, "limit", "100"),
        ({"tenant": "another"}, "tenant", "does not exist"),
        ({"health_status": "healthy"}, "health_status", "limit, tenant, transport"),
        ({"page_size": "5"}, "page_size", "No such parameter"),
        ({"cursor": "x"}, "cursor", "No such parameter"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(client, asked, field, word):
    answer = client.get(DISCOVER, asked)
    assert answer.status_code == 400, answer.content
    assert word in answer.json()[field][0]


def test_another_tenants_view_is_not_given(client):
    other = TenantFactory()
    assert client.get(DISCOVER, {"tenant": other.slug}).status_code == 400


def test_it_costs_the_same_queries_for_one_server_and_for_many(
    client, django_assert_max_num_queries
):
    for n in range(5):
        up(client.key.tenant if n % 2 else None, f"server-{n}", 1.0 * n)
    client.get(DISCOVER)  # notes the key's use
    with django_assert_max_num_queries(2 + transaction_queries(client.key.tenant)):
        assert len(slugs(client)) == 5


@pytest.mark.django_db(transaction=True)
def test_behind_the_walls_it_finds_the_same():
    tenant = TenantFactory()
    up(tenant, "own", 1.0)
    up(None, "shared", 2.0)
    up(TenantFactory(), "foreign", 0.5)
    client = client_of(tenant, scopes=["read"])
    with logged_in_as_app():
        assert slugs(client) == ["own", "shared"]
