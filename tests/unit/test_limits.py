"""What a key's maker may hand on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from django.core.exceptions import ValidationError

from security.limits import narrowed


def handed_on(held: dict[str, list[str]], asked: dict[str, list[str]]) -> dict[str, list[str]]:
    lists = {"allowed_servers": [], "allowed_methods": [], "ip_whitelist": []}
    limits = SimpleNamespace(**{**lists, **held})
    return narrowed(asked, limits=limits, scopes=["read"], new=True)


@pytest.mark.parametrize(
    ("wide", "narrow", "fits"),
    [
        ("tools/*", "tools/call", True),
        ("tools/*", "tools/*", True),
        ("tools/*", "tools/call:read_*", True),
        ("tools/call", "tools/call:read_*", True),
        ("tools/call:*", "tools/call", True),
        ("tools/call:read_*", "tools/call:read_a*", True),
        ("*", "resources/read", True),
        ("tools/call:read_*", "tools/call", False),
        ("tools/call:read_*", "tools/call:*", False),
        ("tools/call:read_*", "tools/call:r*", False),
        ("tools/call", "tools/*", False),
        ("tools/?*", "tools/*", False),
        ("tools/call:?", "tools/call:*", False),
        ("tools/[a-z]*", "tools/[!a]", False),
        ("*/call", "**", False),
    ],
)
def test_a_pattern_covers_what_fits_it_only(wide, narrow, fits):
    held, asked = {"allowed_methods": [wide]}, {"allowed_methods": [narrow]}
    if fits:
        assert handed_on(held, asked)["allowed_methods"] == [narrow]
    else:
        with pytest.raises(ValidationError, match="Beyond what your own key may"):
            handed_on(held, asked)


@pytest.mark.parametrize(
    ("wide", "narrow", "fits"),
    [
        ("10.0.0.0/8", "10.1.0.0/16", True),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("2001:db8::/32", "2001:db8::1", True),
        ("10.0.0.0/8", "0.0.0.0/0", False),
        ("10.0.0.0/8", "2001:db8::1", False),
    ],
)
def test_a_network_covers_its_parts(wide, narrow, fits):
    held, asked = {"ip_whitelist": [wide]}, {"ip_whitelist": [narrow]}
    if fits:
        assert handed_on(held, asked)["ip_whitelist"] == [narrow]
    else:
        with pytest.raises(ValidationError):
            handed_on(held, asked)


def test_no_scope_is_handed_on_that_its_giver_lacks():
    with pytest.raises(ValidationError) as refused:
        handed_on({}, {"scopes": ["read", "admin"]})
    assert set(refused.value.message_dict) == {"scopes"}
    assert handed_on({}, {"scopes": ["read"]}) == {"scopes": ["read"]}


def test_without_lists_nothing_is_added():
    assert handed_on({}, {"allowed_servers": []}) == {"allowed_servers": []}
