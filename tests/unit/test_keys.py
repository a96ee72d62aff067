from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from security.authentication import check_key, ip_allowed, presented_key
from security.keys import ParsedKey, generate_key, hash_secret, new_salt, parse_key
from security.refusals import Refusal

NOW = datetime(2026, 11, 22, tzinfo=UTC)


def row(secret: str, **changes: Any) -> Any:
    salt = new_salt()
    fields = {
        "key_hash": hash_secret(salt=salt, secret=secret),
        "salt": salt,
        "is_active": True,
        "expires_at": None,
        "is_locked": False,
        "locked_until": None,
        "ip_whitelist": [],
    }
    return SimpleNamespace(**(fields | changes))


def test_a_made_key_reads_back_and_hides_its_secret():
    key = generate_key()
    assert parse_key(key.text) == key
    assert key.secret not in repr(key)
    assert len(bytes.fromhex(key.secret)) == 32


@given(st.text())
def test_any_text_is_a_key_or_not_but_never_an_error(text: str):
    parsed = parse_key(text)
    assert parsed is None or parsed.text == text


@pytest.mark.parametrize(
    "text", ["", "mcpgw", "mcpgw_", "mcpgw__x", "other_ab_cd", "mcpgw_ab_", "mcpgw_a-b_c"]
)
def test_what_is_not_shaped_like_a_key_is_none(text: str):
    assert parse_key(text) is None


@pytest.mark.parametrize(
    ("authorization", "x_api_key", "found"),
    [
        ("Bearer mcpgw_ab_cd", "", "ab"),
        ("bearer  mcpgw_ab_cd ", "mcpgw_xy_zz", "ab"),
        ("", "mcpgw_xy_zz", "xy"),
        ("Basic dXNlcg==", "mcpgw_xy_zz", "xy"),
        ("", "", "missing_credentials"),
        ("Bearer ", "", "missing_credentials"),
        ("Bearer nonsense", "", "invalid_credentials"),
    ],
)
def test_where_a_key_is_looked_for(authorization: str, x_api_key: str, found: str):
    key = presented_key(authorization=authorization, x_api_key=x_api_key)
    assert (key.reason if isinstance(key, Refusal) else key.prefix) == found


@given(st.text(min_size=1), st.text(min_size=1))
def test_only_the_right_secret_passes(right: str, tried: str):
    try:
        refusal = check_key(row(right), secret=tried, ip=None, at=NOW)
    except UnicodeEncodeError:
        return  # lone surrogates cannot arrive in a header
    assert (refusal is None) == (right == tried)


def test_the_state_of_a_key_is_told_only_to_its_holder():
    locked = row("right", is_locked=True)
    assert check_key(locked, secret="wrong", ip=None, at=NOW).reason == "invalid_credentials"
    assert check_key(locked, secret="right", ip=None, at=NOW).reason == "key_locked"


def test_a_lock_with_an_end_says_when_to_come_back():
    locked = row("s", is_locked=True, locked_until=NOW + timedelta(seconds=90))
    assert check_key(locked, secret="s", ip=None, at=NOW).retry_after_header == "90"
    assert check_key(locked, secret="s", ip=None, at=NOW + timedelta(seconds=90)) is None


@pytest.mark.parametrize(
    ("ip", "whitelist", "allowed"),
    [
        (None, [], True),
        (None, ["10.0.0.0/8"], False),
        ("10.1.2.3", ["10.0.0.0/8"], True),
        ("11.1.2.3", ["10.0.0.0/8"], False),
        ("::ffff:10.1.2.3", ["10.0.0.0/8"], True),
        ("2001:db8::1", ["10.0.0.0/8", "2001:db8::/32"], True),
        ("203.0.113.7", ["203.0.113.7"], True),
        ("not an address", ["0.0.0.0/0"], False),
    ],
)
def test_addresses(ip: str | None, whitelist: list[str], allowed: bool):
    assert ip_allowed(ip, whitelist) is allowed


def test_parsed_keys_compare_by_their_parts():
    assert ParsedKey("a", "b") == ParsedKey("a", "b") != ParsedKey("a", "c")
