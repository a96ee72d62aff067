"""Guessing passwords: it is bounded, told, audited, and costs calls little."""

from __future__ import annotations

import os
from threading import Barrier, Thread, get_native_id

import pytest
from django.contrib.auth.hashers import PBKDF2PasswordHasher, check_password, make_password
from django.test import Client, override_settings

from monitoring.models import AuditLog
from security import passwords, signin
from tests.factories import UserFactory

REFUSED = "Too many failed attempts to sign in from your address. Try again in "


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0 * signin.SECONDS]
    monkeypatch.setattr(signin, "_guesses", signin.Guesses(lambda: now[0]))
    return now


@pytest.fixture
def user():
    user = UserFactory(tenant=None, is_staff=True)
    user.set_password("correct horse")
    user.save()
    return user


def sign_in(user, password, *, address="203.0.113.9"):
    form = {"username": user.username, "password": password}
    return Client(REMOTE_ADDR=address).post("/admin/login/", form)


@pytest.mark.django_db
def test_an_address_that_guesses_waits_and_then_may_try_again(clock, user):
    for _ in range(signin.FAILURES):
        assert sign_in(user, "wrong").status_code == 200
    answer = sign_in(user, "correct horse")
    assert answer.status_code == 429
    assert REFUSED in answer.content.decode()
    wait = int(answer["Retry-After"])
    assert 0 < wait <= 2 * signin.SECONDS

    assert sign_in(user, "correct horse", address="203.0.113.10").status_code == 302
    clock[0] += wait - 1.5
    assert sign_in(user, "correct horse").status_code == 429
    clock[0] += 1.5
    assert sign_in(user, "correct horse").status_code == 302


@pytest.mark.django_db
def test_who_waits_is_hashed_nothing_and_stays_in_the_audit_log(clock, user, monkeypatch):
    for _ in range(signin.FAILURES):
        sign_in(user, "wrong")
    monkeypatch.setattr("django.contrib.auth.authenticate", pytest.fail)
    monkeypatch.setattr("django.contrib.auth.forms.authenticate", pytest.fail)
    assert sign_in(user, "correct horse").status_code == 429
    [entry] = AuditLog.objects.filter(details__reason="rate_limited")
    assert (entry.action, entry.details["username"]) == ("session.deny", user.username)
    assert entry.error_message.startswith(REFUSED)


@pytest.mark.django_db
def test_who_signs_in_is_not_counted(clock, user):
    for _ in range(signin.FAILURES + 1):
        assert sign_in(user, "correct horse").status_code == 302


def test_an_ipv6_subscriber_is_one_address():
    guesses = signin.Guesses(lambda: 0.0)
    for number in range(signin.FAILURES):
        guesses.note(f"2001:db8:0:1::{number}")
    assert guesses.wait("2001:db8:0:1:ffff::1") > 0
    assert guesses.wait("2001:db8:0:2::1") == 0
    assert guesses.wait(None) == 0


def test_the_oldest_address_is_forgotten_first(monkeypatch):
    monkeypatch.setattr(signin, "MAX_ADDRESSES", 2)
    guesses = signin.Guesses(lambda: 0.0)
    for address in ("192.0.2.1", "192.0.2.2", "192.0.2.3"):
        for _ in range(signin.FAILURES):
            guesses.note(address)
    assert [guesses.wait(f"192.0.2.{n}") > 0 for n in (1, 2, 3)] == [False, True, True]


@pytest.fixture
def yielding():
    """The hasher that settings name, which other tests replace by a cheap one."""
    with override_settings(PASSWORD_HASHERS=["security.passwords.YieldingHasher"]):
        yield


@pytest.fixture
def brief(monkeypatch):
    monkeypatch.setattr(PBKDF2PasswordHasher, "iterations", 1000)


def test_its_hashes_are_djangos(yielding, brief):
    made = make_password("correct horse")
    assert made.startswith("pbkdf2_sha256$1000$")
    with override_settings(PASSWORD_HASHERS=["django.contrib.auth.hashers.PBKDF2PasswordHasher"]):
        assert check_password("correct horse", made)
        theirs = make_password("battery staple")
    assert check_password("battery staple", theirs)
    assert not check_password("wrong", theirs)


def test_one_password_is_hashed_at_a_time_on_a_thread_that_yields(yielding, monkeypatch):
    seen, barrier = [], Barrier(4)

    def encode(self, *_arguments, **_options):
        seen.append((get_native_id(), os.getpriority(os.PRIO_PROCESS, get_native_id())))
        return "hashed"

    def ask():
        barrier.wait()
        make_password("secret")

    monkeypatch.setattr(PBKDF2PasswordHasher, "encode", encode)
    threads = [Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 4
    assert len(set(seen)) == 1
    own = os.getpriority(os.PRIO_PROCESS, get_native_id())
    assert seen[0][1] == min(19, max(own, passwords.NICENESS))
