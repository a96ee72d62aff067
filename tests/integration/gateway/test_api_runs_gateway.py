"""The tenant that runs the gateway sees the gateway's figures, and nobody else's rows."""

from __future__ import annotations

import pytest

from tests.factories import (
    EnhancedAPIKeyFactory,
    MCPServerFactory,
    PerformanceAlertFactory,
    TenantFactory,
)

pytestmark = pytest.mark.django_db
WHOLE = ["database/size", "database/indexes", "database/performance", "retention-policies", "tasks"]


def get(client, path: str, key):
    return client.get(f"/api/v1/{path}", headers={"x-api-key": key.text})


@pytest.mark.parametrize("path", WHOLE)
def test_only_the_operators_tenant_sees_the_whole_gateway(client, path: str):
    ours = TenantFactory(settings={"runs_gateway": True})
    theirs = TenantFactory(settings={"runs_gateway": "yes"})
    mine = EnhancedAPIKeyFactory(tenant=ours, scopes=["admin"])
    other = EnhancedAPIKeyFactory(tenant=theirs, scopes=["admin"])
    assert get(client, path, mine).status_code == 200
    assert get(client, path, other).status_code == 403


def test_alerts_on_all_servers_are_seen_and_other_tenants_are_not(client):
    key = EnhancedAPIKeyFactory(tenant__settings={"runs_gateway": True}, scopes=["admin"])
    everywhere = PerformanceAlertFactory(server=None)
    foreign = PerformanceAlertFactory(server=MCPServerFactory())
    names = {row["name"] for row in get(client, "alerts", key).json()["results"]}
    assert everywhere.name in names
    assert foreign.name not in names
    assert not get(client, "servers", key).json()["results"]
