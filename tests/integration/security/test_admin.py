"""Keys are shown once, users join their role's group, rules and errors speak in words."""

from __future__ import annotations

import re

import pytest
from django.contrib.auth.models import Group
from django.test import Client
from django.urls import reverse

from gateway.defaults import defaults_ensure
from monitoring.models import AuditLog
from registry.admin_base import OperatorAdmin
from registry.audit import Actor
from security.admin import NewPasswordForm
from security.keys import hash_secret, parse_key
from security.models import EnhancedAPIKey, Role, ServerAccessControl, Session, User
from tests.factories import (
    APIKeyFactory,
    EnhancedAPIKeyFactory,
    MCPServerFactory,
    ServerAccessControlFactory,
    SessionFactory,
    TenantFactory,
    UserFactory,
)

pytestmark = pytest.mark.django_db

KEYS = reverse("admin:security_enhancedapikey_changelist")
ADD_KEY = reverse("admin:security_enhancedapikey_add")
ADD_USER = reverse("admin:security_user_add")
ADD_RULE = reverse("admin:security_serveraccesscontrol_add")

KEY_FORM = {
    "name": "agents",
    "scopes": ["proxy", "read"],
    "rate_limit_per_hour": 1000,
    "rate_limit_per_day": 10000,
}


def errors_of(response) -> str:
    """The words above and beside the fields of a refused form."""
    assert response.status_code == 200
    return " ".join(str(error) for errors in response.context["errors"] for error in errors)


# ---------------------------------------------------------------- API keys


def test_a_new_key_is_shown_once_and_works(admin_client):
    tenant = TenantFactory()
    response = admin_client.post(ADD_KEY, {**KEY_FORM, "tenant": tenant.pk})
    text = response.content.decode()
    key = re.search(r"mcpgw_[0-9a-z]+_[0-9a-f]{64}", text)[0]
    assert response.status_code == 200
    assert "never shown again" in text
    assert "no-store" in response["Cache-Control"]

    row = EnhancedAPIKey.objects.get()
    parsed = parse_key(key)
    assert row.key_prefix == parsed.prefix
    assert bytes(row.key_hash) == hash_secret(salt=bytes(row.salt), secret=parsed.secret)
    assert (row.tenant, row.scopes) == (tenant, ["proxy", "read"])

    # Nowhere else: not in a cookie, the session, the audit log or any later page.
    assert parsed.secret not in str(admin_client.cookies)
    assert parsed.secret not in str(dict(admin_client.session))
    assert parsed.secret not in str(list(AuditLog.objects.values()))
    change = reverse("admin:security_enhancedapikey_change", args=[row.pk])
    for page in (KEYS, change, reverse("admin:index"), f"{change[: -len('change/')]}history/"):
        later = admin_client.get(page)
        assert later.status_code == 200
        assert parsed.secret not in later.content.decode()


def test_a_new_key_leaves_one_audit_entry(admin_client, admin_user):
    admin_client.post(ADD_KEY, KEY_FORM)
    entry = AuditLog.objects.get(action__startswith="api_key.")
    assert (entry.action, entry.service_name) == ("api_key.create", "admin")
    assert entry.user_id == admin_user.pk
    assert entry.resource_id == str(EnhancedAPIKey.objects.get().pk)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("ip_whitelist", "10.0.0.0/99", "is no IP address or network"),
        ("ip_whitelist", "10.0.0.1/8", "write 10.0.0.0/8 for the network"),
        ("scopes", ["everything"], "not one of the available choices"),
        ("scopes", [], "required"),
        ("name", "a\0b", "Null characters"),
        ("rate_limit_per_hour", -1, "greater than or equal to 0"),
    ],
)
def test_a_key_that_does_not_fit_is_refused_in_words(admin_client, field, value, words):
    response = admin_client.post(ADD_KEY, {**KEY_FORM, field: value})
    assert words in errors_of(response)
    assert not EnhancedAPIKey.objects.exists()


def test_a_key_keeps_its_secret_and_owner_when_edited(admin_client):
    key = EnhancedAPIKeyFactory()
    page = reverse("admin:security_enhancedapikey_change", args=[key.pk])
    other = TenantFactory()
    forged = {"key_prefix": "x", "salt": "x", "key_hash": "x", "tenant": other.pk, "is_active": ""}
    response = admin_client.post(page, {**KEY_FORM, **forged, "name": "renamed"})
    assert response.status_code == 302
    now_row = EnhancedAPIKey.objects.get()
    assert now_row.name == "renamed"
    assert now_row.is_active
    for name in ("key_prefix", "tenant_id"):
        assert getattr(now_row, name) == getattr(key, name)
    assert bytes(now_row.key_hash) == bytes(key.key_hash)
    assert bytes(now_row.salt) == bytes(key.salt)
    changes = AuditLog.objects.get(action="api_key.update").details["changes"]
    assert changes["name"] == [key.name, "renamed"]


def test_keys_are_revoked_and_unlocked_by_action(admin_client):
    key, locked = EnhancedAPIKeyFactory(), EnhancedAPIKeyFactory(is_locked=True)

    def act(action: str, *rows: EnhancedAPIKey) -> str:
        form = {"action": action, "_selected_action": [row.pk for row in rows]}
        return admin_client.post(KEYS, form, follow=True).content.decode()

    assert "1 key(s) unlocked" in act("unlock", key, locked)
    assert "1 key(s) locked" in act("lock", key)
    assert "1 locked before" in act("lock", key)
    change = reverse("admin:security_enhancedapikey_change", args=[key.pk])
    assert "until somebody unlocks it" in admin_client.get(change).content.decode()
    assert "1 key(s) revoked" in act("revoke", key)
    assert "1 revoked before" in act("revoke", key)
    key.refresh_from_db()
    locked.refresh_from_db()
    assert (key.is_active, locked.is_active, locked.is_locked) == (False, True, False)
    actions = AuditLog.objects.values_list("action", flat=True)
    assert sorted(actions) == ["api_key.lock", "api_key.revoke", "api_key.unlock"]


# ---------------------------------------------------------------- sessions


def test_a_session_is_signed_out_and_its_token_never_shown(admin_client):
    session = SessionFactory(session_token="ef" * 32)
    page = reverse("admin:security_session_changelist")
    assert "ef" * 32 not in admin_client.get(page).content.decode()
    admin_client.post(page, {"action": "revoke", "_selected_action": [session.pk]})
    session.refresh_from_db()
    assert not session.is_active
    assert AuditLog.objects.filter(action="session.revoke").count() == 1


def test_a_revoked_operator_is_out_at_the_next_page(admin_client, admin_user):
    other = Client()
    other.force_login(admin_user)
    theirs = Session.objects.filter(user=admin_user).order_by("-created_at").first()
    admin_client.post(
        reverse("admin:security_session_changelist"),
        {"action": "revoke", "_selected_action": [theirs.pk]},
    )
    assert other.get(reverse("admin:index")).status_code == 302
    assert admin_client.get(reverse("admin:index")).status_code == 200


# ---------------------------------------------------------------- users


@pytest.fixture
def groups():
    defaults_ensure(actor=Actor(service_name="test"))


USER_FORM = {
    "username": "ada",
    "email": "ada@example.org",
    "role": "readonly",
    "is_staff": "on",
    "usable_password": "true",
    "password1": "a long enough secret",
    "password2": "a long enough secret",
}


def names(user: User) -> set[str]:
    return set(user.groups.values_list("name", flat=True))


def test_a_user_joins_the_group_of_the_role(admin_client, groups):
    assert admin_client.post(ADD_USER, USER_FORM).status_code == 302
    user = User.objects.get(username="ada")
    assert names(user) == {"readonly"}
    assert user.check_password("a long enough secret")

    user.groups.add(Group.objects.create(name="on call"))
    page = reverse("admin:security_user_change", args=[user.pk])
    form = {"username": "ada", "email": "ada@example.org", "role": "admin", "is_active": "on"}
    assert admin_client.post(page, form).status_code == 302
    assert names(user) == {"admin", "on call"}
    entry = AuditLog.objects.get(action="user.update")
    assert entry.details["changes"]["role"] == ["readonly", "admin"]


def test_a_new_password_opens_the_login_page_and_stays_out_of_the_log(admin_client, groups):
    user = UserFactory(is_staff=True, tenant=None)
    page = reverse("admin:auth_user_password_change", args=[user.pk])
    secret = "correct horse battery"
    form = {"usable_password": "true", "password1": secret, "password2": secret}
    assert admin_client.post(page, form).status_code == 302
    assert secret not in str(list(AuditLog.objects.values()))
    assert AuditLog.objects.filter(action="user.update", resource_id=str(user.pk)).exists()

    visitor = Client()
    login = reverse("admin:login")
    refused = visitor.post(login, {"username": user.username, "password": "wrong"})
    assert "correct username and password" in refused.content.decode()
    entered = visitor.post(login, {"username": user.username, "password": secret})
    assert entered.status_code == 302
    assert visitor.get(reverse("admin:index")).status_code == 200


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"username": "taken"}, "exists already"),
        ({"email": "TAKEN@example.org"}, "e-mail address exists already"),
        ({"tenant": "some"}, "leave the tenant empty for an operator"),
        ({"role": "owner"}, "not one of the available choices"),
    ],
)
def test_a_user_that_does_not_fit_is_refused_in_words(admin_client, groups, change, words):
    existing = UserFactory(username="taken", email="taken@example.org")
    if "tenant" in change:
        change = {"tenant": existing.tenant_id}
    assert words in errors_of(admin_client.post(ADD_USER, {**USER_FORM, **change}))


def test_an_administrator_cannot_become_a_superuser(groups, admin_user):
    operator = UserFactory(role=Role.ADMIN, is_staff=True, tenant=None)
    operator.groups.set(Group.objects.filter(name="admin"))
    client = Client()
    client.force_login(operator)
    own = reverse("admin:security_user_change", args=[operator.pk])
    form = {"username": operator.username, "role": "admin", "is_active": "on", "is_staff": "on"}
    assert client.post(own, {**form, "is_superuser": "on"}).status_code == 302
    operator.refresh_from_db()
    assert not operator.is_superuser
    boss = reverse("admin:auth_user_password_change", args=[admin_user.pk])
    secret = "correct horse battery"
    form = {"usable_password": "true", "password1": secret, "password2": secret}
    assert client.post(boss, form).status_code == 403


# ---------------------------------------------------------------- access rules


def test_a_rule_names_exactly_one_subject(admin_client):
    server, user, tenant = MCPServerFactory(), UserFactory(), TenantFactory()
    form = {"server": server.pk, "timezone": "UTC", "can_proxy": "on", "is_active": "on"}
    both = admin_client.post(ADD_RULE, {**form, "user": user.pk, "tenant": tenant.pk})
    assert "Name exactly one of user, tenant and API key" in errors_of(both)
    assert "Name exactly one" in errors_of(admin_client.post(ADD_RULE, form))
    fitting = {**form, "tenant": tenant.pk, "allowed_days": ["0", "6"], "allowed_hours": "9,10"}
    assert admin_client.post(ADD_RULE, fitting).status_code == 302
    rule = ServerAccessControl.objects.get()
    assert (rule.allowed_days, rule.allowed_hours) == ([0, 6], [9, 10])
    assert "active rule for the server already" in errors_of(admin_client.post(ADD_RULE, fitting))
    entry = AuditLog.objects.get(action="access_rule.create")
    assert entry.resource_id == str(rule.pk)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("allowed_hours", "24", "0 to 23"),
        ("timezone", "Mars/Olympus", "is no time zone"),
        ("allowed_days", ["7"], "not one of the available choices"),
    ],
)
def test_a_rule_that_does_not_fit_is_refused_in_words(admin_client, field, value, words):
    form = {"server": MCPServerFactory().pk, "tenant": TenantFactory().pk, "timezone": "UTC"}
    assert words in errors_of(admin_client.post(ADD_RULE, {**form, field: value}))


# ---------------------------------------------------------------- two at once


def saved_late(client, monkeypatch, row, form, **meanwhile):
    """The row after a form was saved that another writer overtook."""
    save_model = OperatorAdmin.save_model

    def late(admin, request, obj, form, change):
        type(row).objects.filter(pk=row.pk).update(**meanwhile)
        save_model(admin, request, obj, form, change)

    monkeypatch.setattr(OperatorAdmin, "save_model", late)
    page = reverse(f"admin:security_{row._meta.model_name}_change", args=[row.pk])
    assert client.post(page, form).status_code == 302
    return type(row).objects.get(pk=row.pk)


def test_a_key_revoked_and_counted_meanwhile_stays_so(admin_client, monkeypatch):
    key = EnhancedAPIKeyFactory()
    late = {"is_active": False, "is_locked": True, "total_requests": 7}
    saved = saved_late(admin_client, monkeypatch, key, {**KEY_FORM, "name": "new"}, **late)
    assert saved.name == "new"
    assert {name: getattr(saved, name) for name in late} == late


def test_a_plain_keys_counter_is_kept(admin_client, monkeypatch):
    saved = saved_late(admin_client, monkeypatch, APIKeyFactory(), {}, total_requests=7)
    assert (saved.is_active, saved.total_requests) == (False, 7)


def test_a_rule_ended_meanwhile_stays_so(admin_client, monkeypatch):
    rule = ServerAccessControlFactory(tenant=TenantFactory())
    form = {
        "server": rule.server_id,
        "tenant": rule.tenant_id,
        "timezone": "UTC",
        "is_active": "on",
        "can_write": "on",
    }
    late = {"is_active": False, "access_count": 7}
    saved = saved_late(admin_client, monkeypatch, rule, form, **late)
    assert saved.can_write
    assert (saved.is_active, saved.access_count) == (False, 7)


def test_a_user_shut_out_meanwhile_stays_so(admin_client, monkeypatch, groups):
    user = UserFactory()
    form = {
        "username": user.username,
        "email": user.email,
        "role": user.role,
        "tenant": user.tenant_id,
        "is_active": "on",
        "full_name": "Ada",
    }
    saved = saved_late(admin_client, monkeypatch, user, form, is_active=False)
    assert (saved.full_name, saved.is_active) == ("Ada", False)


@pytest.mark.parametrize("usable", ["true", "false"])
def test_a_new_password_writes_nothing_else(usable):
    user = UserFactory()
    secret = "correct horse battery"
    data = {"usable_password": usable, "password1": secret, "password2": secret}
    form = NewPasswordForm(user, data)
    assert form.is_valid()
    User.objects.update(is_active=False)
    form.save()
    user.refresh_from_db()
    assert (user.check_password(secret), user.is_active) == (usable == "true", False)
