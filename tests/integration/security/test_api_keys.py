from __future__ import annotations

import json
from datetime import timedelta

import pytest
from django.utils.timezone import now
from rest_framework.test import APIClient

from monitoring.models import AuditLog
from security.models import EnhancedAPIKey
from tests.api import client_of, faults
from tests.factories import EnhancedAPIKeyFactory, MCPServerFactory, TenantFactory, UserFactory

pytestmark = pytest.mark.django_db

KEYS = "/api/v1/api-keys"


@pytest.fixture
def admin():
    return client_of(TenantFactory())


def test_a_new_key_is_shown_once_and_works(admin):
    made = admin.post(KEYS, {"name": "agent", "scopes": ["admin"]}, format="json")
    assert made.status_code == 201
    assert made["Cache-Control"] == "no-store"
    key = made.json()["key"]
    assert key.startswith(f"mcpgw_{made.json()['prefix']}_")
    again = admin.get(f"{KEYS}/{made.json()['id']}", headers={"authorization": f"Bearer {key}"})
    assert again.status_code == 200
    assert not {"key", "key_hash", "salt"} & again.json().keys()
    assert key not in admin.get(KEYS).content.decode()


def test_a_new_key_is_of_the_callers_tenant_whatever_they_say(admin):
    other = TenantFactory()
    said = admin.post(KEYS, {"name": "agent", "tenant": other.slug}, format="json")
    assert said.status_code == 400
    null = admin.post(KEYS, {"name": "agent", "tenant": None}, format="json")
    assert null.json()["tenant"] == admin.key.tenant.slug


def test_an_operator_names_the_tenant(admin):
    operator = client_of(None)
    assert faults(operator.post(KEYS, {"name": "agent"}, format="json")) == {"tenant"}
    slug = admin.key.tenant.slug
    made = operator.post(KEYS, {"name": "agent", "tenant": slug}, format="json")
    assert (made.status_code, made.json()["tenant"]) == (201, slug)


def test_somebody_elses_user_cannot_be_named(admin):
    answer = admin.post(KEYS, {"name": "agent", "user": str(UserFactory().pk)}, format="json")
    assert (answer.status_code, faults(answer)) == (400, {"user"})
    answer = client_of(None).post(
        KEYS,
        {"name": "a", "tenant": admin.key.tenant.slug, "user": str(UserFactory().pk)},
        format="json",
    )
    assert (answer.status_code, faults(answer)) == (400, {"user"})


def test_a_misspelt_limit_makes_no_free_key(admin):
    wanted = {"name": "narrow", "scopes": ["proxy"], "servers": ["a"], "ips": ["10.0.0.0/8"]}
    answer = admin.post(KEYS, wanted, "json")
    assert (answer.status_code, faults(answer)) == (400, {"servers", "ips"})
    assert "ip_whitelist" in answer.json()["ips"][0]
    assert not EnhancedAPIKey.objects.filter(name="narrow").exists()
    shown = admin.get(f"{KEYS}/{admin.key.pk}").json()
    del shown["tenant"], shown["user"]  # fixed at creation
    answer = admin.patch(f"{KEYS}/{admin.key.pk}", shown | {"name": "renamed"}, "json")
    assert (answer.status_code, answer.json()["name"]) == (200, "renamed")
    answer = admin.patch(f"{KEYS}/{admin.key.pk}", {"scope": []}, "json")
    assert (answer.status_code, faults(answer)) == (400, {"scope"})


def test_a_key_with_what_was_allowed_before_can_be_changed_still(admin):
    EnhancedAPIKey.objects.filter(pk=admin.key.pk).update(ip_whitelist=["127.0.0.1/8"])
    answer = admin.patch(f"{KEYS}/{admin.key.pk}", {"name": "renamed"}, "json")
    assert (answer.status_code, answer.json()["ip_whitelist"]) == (200, ["127.0.0.1/8"])
    answer = admin.patch(f"{KEYS}/{admin.key.pk}", {"ip_whitelist": ["127.0.0.2/8"]}, "json")
    assert (answer.status_code, faults(answer)) == (400, {"ip_whitelist"})


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"scopes": ["everything"]}, "scopes"),
        ({"ip_whitelist": ["not an address"]}, "ip_whitelist"),
        ({"ip_whitelist": ["10.0.0.1/8"]}, "ip_whitelist"),
        ({"rate_limit_per_hour": -1}, "rate_limit_per_hour"),
        ({"rate_limit_per_hour": 10**30}, "rate_limit_per_hour"),
        ({"name": "nul\0"}, "name"),
        ({"name": "half \ud800"}, "name"),
        ({"name": "turned \u202e around"}, "name"),
        ({"allowed_servers": ["nul\0"]}, "allowed_servers"),
        ({"expires_at": "tomorrow"}, "expires_at"),
        ({"tenant": None}, "tenant"),
        ({"name": None}, "name"),
    ],
)
def test_a_change_that_does_not_fit_is_refused_by_name(admin, change, field):
    # Written by hand: the test client cannot encode half a character.
    answer = admin.patch(
        f"{KEYS}/{admin.key.pk}", json.dumps(change), content_type="application/json"
    )
    assert answer.status_code == 400, answer.content
    assert field in answer.json()


def test_a_change_is_made_and_noted_with_who_and_which_request(admin):
    key = EnhancedAPIKeyFactory(tenant=admin.key.tenant, name="old")
    answer = admin.patch(
        f"{KEYS}/{key.pk}",
        {"name": "new", "ip_whitelist": ["10.0.0.0/8"]},
        format="json",
        headers={"user-agent": "Tool/2"},
    )
    assert answer.json()["name"] == "new"
    [entry] = AuditLog.objects.filter(action="api_key.update")
    assert entry.details["name"] == {"from": "old", "to": "new"}
    assert str(entry.request_id) == answer["X-Request-ID"]
    facts = (entry.service_name, entry.tenant_id, entry.api_key_id, entry.user_agent)
    assert facts == ("api", admin.key.tenant_id, admin.key.pk, "Tool/2")
    assert entry.ip_address == "127.0.0.1"


def test_a_change_to_what_it_was_notes_nothing(admin):
    admin.patch(f"{KEYS}/{admin.key.pk}", {"name": admin.key.name}, format="json")
    assert not AuditLog.objects.exists()


def test_revoking_and_unlocking_are_noted_once(admin):
    key = EnhancedAPIKeyFactory(tenant=admin.key.tenant, is_locked=True, failed_attempts=7)
    caller = {"headers": {"authorization": f"Bearer {key.text}"}}
    for _ in range(2):
        unlocked = admin.post(f"{KEYS}/{key.pk}/unlock").json()
        assert (unlocked["is_locked"], unlocked["failed_attempts"]) == (False, 0)
    for _ in range(2):
        assert admin.post(f"{KEYS}/{key.pk}/lock").json()["is_locked"] is True
        assert "is locked" in APIClient().get(KEYS, **caller).json()["detail"]
    for _ in range(2):
        assert admin.post(f"{KEYS}/{key.pk}/revoke").json()["is_active"] is False
    actions = list(AuditLog.objects.order_by("timestamp").values_list("action", flat=True))
    assert actions == ["api_key.unlock", "api_key.lock", "api_key.revoke"]


def test_a_key_without_scopes_is_an_agent_s(admin):
    made = admin.post(KEYS, {"name": "agent"}, format="json").json()
    assert made["scopes"] == ["proxy", "read"]
    none = admin.post(KEYS, {"name": "agent", "scopes": []}, format="json")
    assert (none.status_code, faults(none)) == (400, {"scopes"})


def test_a_key_names_servers_that_there_are_and_a_time_to_come(admin):
    theirs = MCPServerFactory().slug
    mine = MCPServerFactory(tenant=admin.key.tenant).slug
    for wrong in ({"allowed_servers": [mine, theirs]}, {"expires_at": "2020-01-01T00:00:00Z"}):
        answer = admin.post(KEYS, {"name": "agent", **wrong}, format="json")
        assert (answer.status_code, faults(answer)) == (400, set(wrong))
    assert (
        admin.post(KEYS, {"name": "a", "allowed_servers": [mine]}, format="json").status_code == 201
    )
    old = EnhancedAPIKeyFactory(
        tenant=admin.key.tenant, allowed_servers=["gone"], expires_at=now() - timedelta(days=1)
    )
    same = {"allowed_servers": ["gone"], "expires_at": old.expires_at.isoformat(), "name": "b"}
    assert admin.patch(f"{KEYS}/{old.pk}", same, format="json").status_code == 200


def test_a_key_is_not_deleted(admin):
    assert admin.delete(f"{KEYS}/{admin.key.pk}").status_code == 405
    assert EnhancedAPIKey.objects.filter(pk=admin.key.pk).exists()


RESTRICTED = {
    "allowed_servers": ["a", "b"],
    "allowed_methods": ["tools/call:read_*"],
    "ip_whitelist": ["127.0.0.0/8"],
}


@pytest.fixture
def restricted():
    for slug in "abc":
        MCPServerFactory(tenant=None, slug=slug)
    return client_of(TenantFactory(), **RESTRICTED)


def test_a_restricted_key_hands_its_limits_on(restricted):
    made = restricted.post(KEYS, {"name": "child", "allowed_servers": []}, format="json").json()
    assert {name: made[name] for name in RESTRICTED} == RESTRICTED
    narrower = {
        "allowed_servers": ["a"],
        "allowed_methods": ["tools/call:read_one"],
        "ip_whitelist": ["127.0.0.1"],
    }
    made = restricted.post(KEYS, {"name": "child", **narrower}, format="json").json()
    assert {name: made[name] for name in RESTRICTED} == narrower


@pytest.mark.parametrize(
    "beyond",
    [
        {"allowed_servers": ["a", "c"]},
        {"allowed_methods": ["tools/call"]},
        {"ip_whitelist": ["0.0.0.0/0"]},
    ],
)
def test_a_restricted_key_widens_neither_itself_nor_another(restricted, beyond):
    other = EnhancedAPIKeyFactory(tenant=restricted.key.tenant, **RESTRICTED)
    answers = [restricted.post(KEYS, {"name": "child", **beyond}, format="json")]
    [name] = beyond
    for key in (restricted.key, other):
        answers.append(restricted.patch(f"{KEYS}/{key.pk}", beyond, format="json"))
        emptied = restricted.patch(f"{KEYS}/{key.pk}", {name: []}, format="json")
        assert emptied.json()[name] == RESTRICTED[name]
    for answer in answers:
        assert (answer.status_code, faults(answer)) == (400, beyond.keys())
