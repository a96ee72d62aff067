from __future__ import annotations

import pytest

from gateway.models import CircuitBreaker, ConnectionPool, RequestQueue
from monitoring.models import AuditLog
from tests.api import client_of
from tests.factories import MCPServerFactory, TenantFactory

pytestmark = pytest.mark.django_db

BREAKERS, POOLS = "/api/v1/circuit-breakers", "/api/v1/connection-pools"
QUEUES, HEALTH = "/api/v1/request-queues", "/api/v1/summaries/server-health"


@pytest.fixture
def client():
    return client_of(TenantFactory())


@pytest.fixture
def server(client):
    return MCPServerFactory(tenant=client.key.tenant)


@pytest.fixture
def breaker(server):
    return CircuitBreaker.objects.get_or_create(server=server, service_name="")[0]


def test_a_breaker_is_opened_and_closed_and_each_is_noted_once(client, breaker):
    for action, state in (("open", "open"), ("open", "open"), ("close", "closed")):
        answer = client.post(f"{BREAKERS}/{breaker.pk}/{action}")
        assert (answer.status_code, answer.json()["state"]) == (200, state)
    assert AuditLog.objects.filter(action="circuit_breaker.force").count() == 2


def test_a_reset_forgets_failures_of_a_closed_breaker_too(client, breaker):
    CircuitBreaker.objects.update(failure_count=4)
    before = CircuitBreaker.objects.get().last_state_change
    for _ in range(2):
        row = client.post(f"{BREAKERS}/{breaker.pk}/reset").json()
        assert (row["state"], row["failure_count"]) == ("closed", 0)
    assert CircuitBreaker.objects.get().last_state_change == before
    assert AuditLog.objects.filter(action="circuit_breaker.reset").count() == 1


def test_a_reset_closes_an_open_breaker(client, breaker):
    CircuitBreaker.objects.update(state="open")
    assert client.post(f"{BREAKERS}/{breaker.pk}/reset").json()["state"] == "closed"


def test_reading_breakers_needs_health_and_changing_them_write(breaker):
    tenant = breaker.server.tenant
    path = f"{BREAKERS}/{breaker.pk}"
    health = client_of(tenant, scopes=["health"])
    assert health.get(path).status_code == 200
    assert health.post(f"{path}/open").status_code == 403
    assert client_of(tenant, scopes=["write"]).post(f"{path}/open").status_code == 200


@pytest.mark.parametrize(
    ("path", "model", "name", "change"),
    [
        (POOLS, ConnectionPool, "pool_name", {"max_size": 7}),
        (QUEUES, RequestQueue, "queue_name", {"max_size": 7, "is_accepting_requests": False}),
    ],
)
def test_the_settings_are_changed_and_the_gauges_are_not(client, server, path, model, name, change):
    settings_row = model.objects.get_or_create(server=server, **{name: ""})[0]
    gauges = model.objects.create(server=server, **{name: "node-1"})
    answer = client.patch(f"{path}/{settings_row.pk}", change, format="json")
    assert change.items() <= answer.json().items()
    refused = client.patch(f"{path}/{gauges.pk}", change, format="json")
    assert refused.status_code == 400
    assert f"{name} is empty" in refused.content.decode()
    [entry] = AuditLog.objects.all()
    assert entry.details["max_size"]["to"] == 7


def test_a_gauge_cannot_be_written(client, server):
    row = ConnectionPool.objects.get_or_create(server=server, pool_name="")[0]
    client.patch(f"{POOLS}/{row.pk}", {"active_connections": 99}, format="json")
    assert ConnectionPool.objects.get(pk=row.pk).active_connections == 0


@pytest.mark.parametrize("change", [{"max_size": 0}, {"max_size": 5, "min_size": 6}])
def test_settings_that_do_not_fit_are_refused(client, server, change):
    row = ConnectionPool.objects.get_or_create(server=server, pool_name="")[0]
    assert client.patch(f"{POOLS}/{row.pk}", change, format="json").status_code == 400


def test_health_counts_what_the_tenant_sees(client, server, breaker):
    CircuitBreaker.objects.filter(pk=breaker.pk).update(state="open")
    MCPServerFactory(tenant=None, health_status="healthy")
    MCPServerFactory(health_status="unhealthy")
    rows = {row["health_status"]: row for row in client.get(HEALTH).json()["results"]}
    assert rows.keys() == {"unknown", "healthy", "all"}
    assert (rows["all"]["servers"], rows["all"]["open_breakers"]) == (2, 1)
    everything = client_of(None).get(HEALTH).json()["results"]
    assert everything[-1]["servers"] == 3
    assert everything[-1].keys() == rows["all"].keys()
