from __future__ import annotations

from datetime import timedelta

import pytest
from django.test import Client
from django.utils.timezone import now
from rest_framework.test import APIClient

from registry.models import TenantStatus
from security.keys import generate_key, plain_hash
from security.models import EnhancedAPIKey
from tests.api import client_of
from tests.factories import APIKeyFactory, EnhancedAPIKeyFactory, TenantFactory, UserFactory

pytestmark = pytest.mark.django_db

SERVERS = "/api/v1/servers"


def get(key: str, **extra):
    return APIClient().get(SERVERS, headers={"authorization": f"Bearer {key}"}, **extra)


def test_both_headers_carry_a_key():
    key = EnhancedAPIKeyFactory(scopes=["read"])
    assert get(key.text).status_code == 200
    assert APIClient().get(SERVERS, headers={"x-api-key": key.text}).status_code == 200


@pytest.mark.parametrize(
    ("facts", "status", "reason"),
    [
        ({"is_active": False}, 401, "invalid_credentials"),
        ({"is_locked": True}, 401, "key_locked"),
        ({"is_locked": True, "locked_until": now() + timedelta(hours=1)}, 401, "key_locked"),
        ({"expires_at": now() - timedelta(seconds=1)}, 401, "key_expired"),
        ({"ip_whitelist": ["203.0.113.0/24"]}, 403, "ip_not_allowed"),
        ({"scopes": ["proxy"]}, 403, "scope_missing"),
    ],
)
def test_a_key_that_may_not_be_used_is_told_why(facts, status, reason):
    key = EnhancedAPIKeyFactory(**{"scopes": ["read"]} | facts)
    answer = get(key.text)
    assert (answer.status_code, answer.json()["reason"]) == (status, reason)
    assert answer.json()["request_id"] == answer["X-Request-ID"]
    assert ("WWW-Authenticate" in answer) == (status == 401)


def test_a_lock_that_is_over_lets_in():
    key = EnhancedAPIKeyFactory(
        scopes=["read"], is_locked=True, locked_until=now() - timedelta(seconds=1)
    )
    assert get(key.text).status_code == 200


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[:-1] + ("0" if text[-1] != "0" else "1"),
        lambda text: text + "0",
        lambda text: text.replace("mcpgw", "other"),
        lambda text: "mcpgw_" + text.split("_")[2] + "_" + text.split("_")[1],
        lambda text: "x" * 10_000,
        lambda text: "é",
    ],
)
def test_a_wrong_key_is_refused_and_says_nothing_of_the_right_one(spoil):
    key = EnhancedAPIKeyFactory(scopes=["read"], is_locked=True)
    answer = get(spoil(key.text))
    assert (answer.status_code, answer.json()["reason"]) == (401, "invalid_credentials")


def test_addresses_behind_a_trusted_proxy_are_believed_and_others_are_not(settings):
    from ipaddress import ip_network

    key = EnhancedAPIKeyFactory(scopes=["read"], ip_whitelist=["203.0.113.7"])
    claim = {"HTTP_X_FORWARDED_FOR": "203.0.113.7", "REMOTE_ADDR": "10.0.0.1"}
    assert get(key.text, **claim).status_code == 403
    settings.GATEWAY_TRUSTED_PROXIES = [ip_network("10.0.0.0/8")]
    assert get(key.text, **claim).status_code == 200
    # What the client wrote itself stands to the left of what the proxy added.
    forged = claim | {"HTTP_X_FORWARDED_FOR": "203.0.113.7, 198.51.100.1"}
    assert get(key.text, **forged).status_code == 403


def test_a_key_of_somebody_who_left_is_refused():
    tenant = TenantFactory()
    owner = UserFactory(tenant=tenant, is_active=False)
    key = EnhancedAPIKeyFactory(tenant=tenant, user=owner, scopes=["read"])
    assert get(key.text).status_code == 401


def test_a_suspended_tenants_key_is_refused():
    key = EnhancedAPIKeyFactory(
        tenant=TenantFactory(status=TenantStatus.SUSPENDED), scopes=["read"]
    )
    answer = get(key.text)
    assert answer.status_code == 403
    assert "suspended" in answer.json()["detail"]


def test_use_is_noted_at_most_once_a_minute(django_assert_num_queries):
    client = client_of(TenantFactory())
    client.get(SERVERS)
    used = EnhancedAPIKey.objects.get().last_used
    assert used is not None
    client.get(SERVERS)
    assert EnhancedAPIKey.objects.get().last_used == used


@pytest.mark.parametrize("upgrade", [True, False])
def test_a_plain_key_is_accepted_and_upgraded_when_that_is_on(settings, upgrade):
    settings.GATEWAY_UPGRADE_PLAIN_KEYS = upgrade
    key = generate_key()
    APIKeyFactory(key_hash=plain_hash(key), key_prefix=key.prefix, scopes=["read"])
    assert [get(key.text).status_code for _ in range(2)] == [200, 200]
    assert EnhancedAPIKey.objects.filter(key_prefix=key.prefix).exists() is upgrade


@pytest.mark.parametrize("upgrade", [True, False])
def test_an_expired_plain_key_is_refused(settings, upgrade):
    settings.GATEWAY_UPGRADE_PLAIN_KEYS = upgrade
    key = generate_key()
    APIKeyFactory(
        key_hash=plain_hash(key),
        key_prefix=key.prefix,
        scopes=["read"],
        expires_at=now() - timedelta(days=1),
    )
    assert get(key.text).json()["reason"] == "key_expired"


def signed_in(enforce_csrf: bool = False, **facts) -> Client:
    client = Client(enforce_csrf_checks=enforce_csrf)
    client.force_login(UserFactory(**facts))
    return client


READ, METRICS, KEYS = SERVERS, "/api/v1/request-logs", "/api/v1/api-keys"


@pytest.mark.parametrize(
    ("role", "allowed"),
    [
        ("admin", {READ, METRICS, KEYS}),
        ("user", {READ, METRICS}),
        ("service", {READ, METRICS}),
        ("readonly", {READ, METRICS}),
    ],
)
def test_a_role_decides_what_a_signed_in_user_may_read(role, allowed):
    client = signed_in(role=role)
    assert {
        path for path in (READ, METRICS, KEYS) if client.get(path).status_code == 200
    } == allowed


@pytest.mark.parametrize(("role", "status"), [("user", 400), ("service", 403), ("readonly", 403)])
def test_a_role_decides_who_may_write(role, status):
    answer = signed_in(role=role).post(SERVERS, {}, content_type="application/json")
    assert answer.status_code == status


def test_a_session_needs_the_csrf_token_for_changes():
    client = signed_in(enforce_csrf=True, role="user")
    assert client.get(SERVERS).status_code == 200
    answer = client.post(SERVERS, {}, content_type="application/json")
    assert answer.status_code == 403
    assert "CSRF" in answer.json()["detail"]


def test_a_key_needs_no_csrf_token():
    client = APIClient(enforce_csrf_checks=True)
    key = EnhancedAPIKeyFactory(scopes=["write"])
    answer = client.post(
        SERVERS, {}, format="json", headers={"authorization": f"Bearer {key.text}"}
    )
    assert answer.status_code == 400


def test_without_a_tenant_only_operators_are_let_in():
    assert signed_in(tenant=None, role="admin").get(SERVERS).status_code == 403
    assert signed_in(tenant=None, role="admin", is_staff=True).get(SERVERS).status_code == 200
