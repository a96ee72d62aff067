"""What the data plane refuses is in the audit log, with who and why, and without secrets."""

from __future__ import annotations

from typing import Any

import pytest

from monitoring.logwriter import writer
from monitoring.models import AuditLog
from registry.models import ServerMetric
from security.keys import generate_key
from tests.factories import EnhancedAPIKeyFactory
from tests.integration.gateway.conftest import Scene, running_gateway, wait_until


def denied(**found: Any) -> AuditLog:
    return wait_until(AuditLog.objects.filter(action="call.deny", **found).first)


def test_an_unknown_key_leaves_its_prefix_and_nothing_else_of_it(scene: Scene):
    key = generate_key()
    response = scene.call(key=key.text, headers={"user-agent": "curl/8"})
    assert response.status_code == 401
    entry = denied(request_id=response.headers["x-request-id"])
    assert (entry.success, entry.service_name, entry.user_agent) == (False, "proxy", "curl/8")
    assert (entry.ip_address, entry.tenant_id, entry.api_key_id) == ("127.0.0.1", None, None)
    assert entry.details["reason"] == "invalid_credentials"
    assert entry.details["key_prefix"] == key.prefix
    assert (entry.details["server"], entry.details["count"]) == (scene.server.slug, 1)
    assert key.secret not in str([entry.details, entry.error_message, entry.user_agent])


def test_a_wrong_secret_names_no_tenant_for_a_prefix_is_no_proof(scene: Scene):
    wrong = f"mcpgw_{scene.key.key_prefix}_{'0' * 64}"
    scene.call(key=wrong)
    entry = denied(details__reason="invalid_credentials")
    assert (entry.tenant_id, entry.api_key_id) == (None, None)
    assert entry.details["key_prefix"] == scene.key.key_prefix


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"scopes": ["read"]}, "scope_missing"),
        ({"ip_whitelist": ["192.0.2.1"]}, "ip_not_allowed"),
        ({"allowed_methods": ["ping"]}, "method_denied"),
        ({"is_locked": True}, "key_locked"),
    ],
)
def test_a_known_key_is_named_with_its_tenant(scene: Scene, fields: dict[str, Any], reason: str):
    key = EnhancedAPIKeyFactory(tenant=scene.tenant, **fields)
    scene.call(key=key.text)
    entry = denied(api_key_id=key.id)
    assert entry.tenant_id == scene.tenant.id
    assert (entry.details["reason"], entry.details["key_prefix"]) == (reason, key.key_prefix)
    assert entry.error_message


def test_a_refused_tool_call_names_method_tool_and_server(scene: Scene):
    key = EnhancedAPIKeyFactory(tenant=scene.tenant, allowed_methods=["ping"])
    scene.call(key=key.text)
    entry = denied(api_key_id=key.id)
    assert (entry.details["method"], entry.details["tool"]) == ("tools/call", "add")
    assert (entry.resource_type, entry.resource_id) == ("mcp_servers", str(scene.server.id))


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        ({"key": ""}, "missing_credentials"),
        ({"headers": {"origin": "https://evil.example"}}, "origin_not_allowed"),
        ({"slug": "no-such-server"}, "server_not_found"),
    ],
)
def test_other_refusals_are_there_too(scene: Scene, sent: dict[str, Any], reason: str):
    scene.call(**sent)
    assert denied(details__reason=reason).success is False


def test_what_is_no_refusal_of_access_is_no_denial(scene: Scene):
    assert scene.call(b"no json").status_code == 400
    assert scene.call().status_code == 200
    scene.call(key="")
    assert denied().details["reason"] == "missing_credentials"
    assert AuditLog.objects.filter(action="call.deny").count() == 1


def test_a_rate_limit_that_is_run_against_is_two_rows_with_all_denials(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
):
    key = EnhancedAPIKeyFactory(tenant=scene.tenant, rate_limit_per_hour=1)
    assert scene.call(key=key.text).status_code == 200
    with running_gateway() as url:
        scene.url = url
        answers = [scene.call(key=key.text).status_code for _ in range(30)]
    entries = AuditLog.objects.filter(api_key_id=key.id, details__reason="rate_limited")
    assert sum(entry.details["count"] for entry in entries) == answers.count(429) > 20
    assert entries.count() == 2


def test_the_minute_ends_by_itself(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    for _ in range(5):
        scene.call(key="")
    scene.call()
    denied()
    assert not ServerMetric.objects.exists()
    monkeypatch.setattr(writer, "MINUTE", 0.1)
    assert denied(details__count=4)
    metric = wait_until(ServerMetric.objects.filter(server_id=scene.server.id).first)
    assert (metric.custom_metrics["calls"], metric.error_rate) == (1, 0.0)
    assert metric.connection_pool_size > 0
