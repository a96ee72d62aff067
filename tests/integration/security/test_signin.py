"""Guessing passwords: it is bounded, told, audited, and costs calls little."""

from __future__ import annotations

import os
from threading import Barrier, BoundedSemaphore, Thread, get_native_id

import pytest
from django.contrib.auth.hashers import PBKDF2PasswordHasher, check_password, make_password
from django.test import Client, override_settings

from monitoring.models import AuditLog
from security import passwords, signin

REFUSED = "Too many failed attempts to sign in from your address. Try again in "


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0 * signin.SECONDS]
    monkeypatch.setattr(signin, "_guesses", signin.Guesses(lambda: now[0]))
    return now


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
    monkeypatch.setattr("django.contrib.auth.forms.authenticate", pytest.fail)
    assert sign_in(user, "correct horse").status_code == 429
    [entry] = AuditLog.objects.filter(details__reason="rate_limited")
    assert (entry.action, entry.details["username"]) == ("session.deny", user.username)
    assert entry.error_message.startswith(REFUSED)


@pytest.mark.django_db
def test_who_signs_in_is_not_counted(clock, user):
    for _ in range(signin.FAILURES + 1):
        assert sign_in(user, "correct horse").status_code == 302


def fail(guesses, address, times=signin.FAILURES):
    return [guesses.take(address) for _ in range(times)]


def test_an_ipv6_subscriber_is_one_address():
    guesses = signin.Guesses(lambda: 0.0)
    for number in range(signin.FAILURES):
        assert guesses.take(f"2001:db8:0:1::{number}") == 0
    assert guesses.take("2001:db8:0:1:ffff::1") > 0
    assert guesses.take("2001:db8:0:2::1") == 0


def test_who_has_no_address_is_not_held_up_for_others():
    guesses = signin.Guesses(lambda: 0.0)
    assert not any(fail(guesses, None, signin.FAILURES + 1))


def test_the_oldest_address_is_forgotten_first(monkeypatch):
    monkeypatch.setattr(signin, "MAX_ADDRESSES", 2)
    guesses = signin.Guesses(lambda: 0.0)
    for address in ("192.0.2.1", "192.0.2.2", "192.0.2.3"):
        fail(guesses, address)
    assert [guesses.take(f"192.0.2.{n}") > 0 for n in (3, 2, 1)] == [True, True, False]


def test_of_many_at_once_no_more_than_the_limit_are_let_through():
    guesses, barrier, waits = signin.Guesses(lambda: 0.0), Barrier(8), []

    def guess():
        barrier.wait()
        waits.extend(fail(guesses, "192.0.2.1"))

    threads = [Thread(target=guess) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(waits), waits.count(0)) == (8 * signin.FAILURES, signin.FAILURES)


@pytest.mark.django_db
def test_who_comes_while_many_sign_in_is_told_to_come_again(clock, user, monkeypatch):
    places = {False: BoundedSemaphore(1), True: BoundedSemaphore(1)}
    monkeypatch.setattr(signin, "_places", places)
    with places[False]:
        for _ in range(signin.FAILURES + 1):  # counted as no failure
            answer = sign_in(user, "correct horse")
            assert (answer.status_code, answer["Retry-After"]) == (429, "5")
        assert "Too many are signing in at this moment." in answer.content.decode()
    with places[True]:  # by those who guess, who hold up nobody else
        assert sign_in(user, "wrong").status_code == 200
        assert sign_in(user, "correct horse").status_code == 429
        assert sign_in(user, "correct horse", address="203.0.113.10").status_code == 302
    assert sign_in(user, "correct horse").status_code == 302


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
