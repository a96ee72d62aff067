from __future__ import annotations

from datetime import timedelta

import pytest
from asgiref.sync import async_to_sync
from django.conf import settings
from django.contrib.sessions.backends.base import UpdateError
from django.core.management import call_command
from django.test import AsyncClient, Client
from django.utils.timezone import now

from monitoring.audit import Actor
from monitoring.models import AuditLog
from security.models import Session
from security.services import session_revoke
from security.sessions import SessionStore, token_hash
from tests.factories import UserFactory

pytestmark = pytest.mark.django_db

WHO = "/api/v1/servers"


@pytest.fixture
def browser(user):
    """A browser that has signed in through the admin's own form."""
    client = Client(REMOTE_ADDR="203.0.113.7", headers={"user-agent": "Browser/1.0"})
    answer = client.post(
        "/admin/login/?next=/admin/", {"username": user.username, "password": "correct horse"}
    )
    assert answer.status_code == 302
    return client


def cookie(client: Client) -> str:
    return client.cookies[settings.SESSION_COOKIE_NAME].value


def test_a_login_from_the_login_page_itself_leads_to_the_overview(user):
    form = {"username": user.username, "password": "correct horse"}
    answer = Client().post("/admin/login/", form)
    assert (answer.status_code, answer["Location"]) == (302, "/admin/")


def test_a_refused_login_says_why_once(user):
    typed = {"username": user.username, "password": "guessed"}
    text = Client().post("/admin/login/", typed).text
    assert "Please enter the correct" in text
    assert "marked below" not in text
    assert "marked below" in Client().post("/admin/login/", typed | {"password": ""}).text


def test_a_login_is_one_row_with_who_and_where_from(browser, user):
    [row] = Session.objects.all()
    assert (row.user, row.ip_address, row.user_agent) == (user, "203.0.113.7", "Browser/1.0")
    assert row.is_active
    assert row.expires_at > now() + timedelta(days=13)


def test_the_table_holds_the_hash_and_never_the_cookies_value(browser):
    [row] = Session.objects.values()
    assert row["session_token"] == token_hash(cookie(browser))
    assert cookie(browser) not in str(row)


def test_the_login_lets_into_the_api(browser):
    assert browser.get(WHO).status_code == 200


def test_a_revoked_session_is_logged_out_at_the_next_request(browser):
    [row] = Session.objects.all()
    assert session_revoke(actor=Actor(service_name="admin"), session=row)
    assert browser.get(WHO).status_code == 401
    assert not browser.cookies[settings.SESSION_COOKIE_NAME].value  # told to forget it
    assert AuditLog.objects.get(action="session.revoke").resource_id == str(row.pk)


def test_revoking_twice_is_told(browser):
    [row] = Session.objects.all()
    actor = Actor(service_name="admin")
    assert [session_revoke(actor=actor, session=row) for _ in range(2)] == [True, False]


def test_a_request_under_way_does_not_revive_a_revoked_session():
    store = SessionStore()
    store["n"] = 1
    store.save()
    Session.objects.update(is_active=False)
    store["n"] = 2
    with pytest.raises(UpdateError):
        store.save()
    assert not Session.objects.get().is_active


def test_an_expired_session_is_empty(browser):
    Session.objects.update(expires_at=now() - timedelta(seconds=1))
    assert browser.get(WHO).status_code == 401


def test_logging_out_removes_the_row(browser):
    before = cookie(browser)
    assert browser.post("/admin/logout/").status_code == 200
    assert not Session.objects.filter(session_token=token_hash(before)).exists()
    assert not Session.objects.exclude(user=None).exists()


def test_changed_data_of_a_forged_row_is_not_believed(browser):
    Session.objects.update(session_data="forged:data:here")
    assert browser.get(WHO).status_code == 401


def test_use_is_noted_once_a_minute_and_not_on_every_request(browser, django_assert_num_queries):
    fresh = Session.objects.get().last_activity
    browser.get(WHO)
    assert Session.objects.get().last_activity == fresh
    Session.objects.update(last_activity=now() - timedelta(seconds=61))
    browser.get(WHO)
    noted = Session.objects.get().last_activity
    assert noted > now() - timedelta(seconds=10)
    store = SessionStore(cookie(browser))
    with django_assert_num_queries(1):  # one look-up and no write
        store.load()


def test_cycling_the_key_keeps_the_data_and_ends_the_old_key():
    store = SessionStore()
    store["n"] = 1
    store.save()
    old = store.session_key
    store.cycle_key()
    store.save()
    assert store.session_key != old
    assert SessionStore(store.session_key)["n"] == 1
    assert not store.exists(old)


def test_flush_forgets_everything():
    store = SessionStore()
    store["n"] = 1
    store.save()
    store.flush()
    assert store.session_key is None
    assert not Session.objects.exists()


def test_clearsessions_removes_what_is_over_and_nothing_else():
    for n in range(2):
        store = SessionStore()
        store["n"] = n
        store.save()
    Session.objects.filter(session_token=token_hash(store.session_key)).update(
        expires_at=now() - timedelta(seconds=1)
    )
    call_command("clearsessions")
    [row] = Session.objects.all()
    assert row.expires_at > now()


def test_a_deleted_users_session_cannot_be_saved(transactional_db, user):
    store = SessionStore()
    store["_auth_user_id"] = str(user.pk)
    store.save()
    user.delete()
    store["n"] = 1
    with pytest.raises(UpdateError):
        store.save()


@pytest.mark.django_db(transaction=True)
def test_the_asynchronous_methods_do_the_same():
    async def live() -> None:
        store = SessionStore()
        await store.aset("n", 1)
        await store.asave()
        again = SessionStore(store.session_key)
        assert await again.aget("n") == 1
        await again.acycle_key()
        assert not await again.aexists(store.session_key)
        await again.aflush()
        assert not await Session.objects.aexists()
        await SessionStore.aclear_expired()

    async_to_sync(live)()


@pytest.mark.django_db(transaction=True)
def test_an_asynchronous_login_is_bound_to_its_user():
    user = UserFactory()
    client = AsyncClient()

    async def sign_in() -> int:
        await client.aforce_login(user)
        return (await client.get(WHO)).status_code

    assert async_to_sync(sign_in)() == 200
    assert Session.objects.get().user == user


def test_what_indexes_cover_moves_once_a_minute_at_most(browser):
    """A page that writes the session again and again touches no index in between."""
    store = SessionStore(cookie(browser))
    rows = Session.objects.filter(session_token=token_hash(cookie(browser)))
    before = rows.values("last_activity", "expires_at").get()

    store["note"] = 1
    store.save()
    assert rows.values("last_activity", "expires_at").get() == before
    assert SessionStore(cookie(browser))["note"] == 1

    long_ago = now() - timedelta(minutes=2)
    rows.update(last_activity=long_ago, expires_at=long_ago + timedelta(days=14))
    store.save()
    assert rows.get().last_activity > long_ago + timedelta(minutes=1)
    assert rows.get().expires_at > before["expires_at"] - timedelta(seconds=5)

    store.set_expiry(3600)  # an end that is drawn nearer is written at once
    store.save()
    assert rows.get().expires_at < now() + timedelta(hours=2)


# ---------------------------------------------------------------- the audit log hears of it


def test_a_login_and_its_end_are_audited(browser, user):
    entry = AuditLog.objects.get(action="session.login")
    assert (entry.user_id, entry.resource_id) == (user.pk, str(user.pk))
    assert (entry.ip_address, entry.user_agent, entry.success) == (
        "203.0.113.7",
        "Browser/1.0",
        True,
    )
    assert browser.post("/admin/logout/").status_code in {200, 302}
    assert AuditLog.objects.get(action="session.logout").user_id == user.pk
    browser.post("/admin/logout/")
    assert AuditLog.objects.filter(action="session.logout").count() == 1


@pytest.mark.parametrize("name", ["known", "nobody"])
def test_a_refused_login_is_audited_without_what_was_typed_as_password(user, name):
    typed = user.username if name == "known" else "nobody\0" + "x" * 300
    answer = Client(REMOTE_ADDR="203.0.113.8").post(
        "/admin/login/", {"username": typed, "password": "guessed-4717"}
    )
    assert answer.status_code == 200
    if name == "nobody":  # the form refuses it before anybody is asked
        assert not AuditLog.objects.filter(action="session.deny").exists()
        return
    entry = AuditLog.objects.get(action="session.deny")
    assert (entry.user_id, entry.success, entry.ip_address) == (None, False, "203.0.113.8")
    assert (entry.details["username"], entry.details["count"]) == (user.username, 1)
    assert "guessed-4717" not in str(AuditLog.objects.values())
