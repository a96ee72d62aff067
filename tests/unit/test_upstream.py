"""Which addresses and URLs are accepted, without any network."""

import asyncio

import pytest

from registry import upstream
from registry.upstream import (
    AddressNotAllowed,
    AddressPolicy,
    InvalidURL,
    check_url,
    is_public,
    resolve_allowed,
)

PUBLIC = ["93.184.216.34", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
PRIVATE = [
    "10.1.2.3",
    "127.0.0.1",
    "127.255.0.9",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "192.0.2.1",
    "198.18.0.1",
    "240.0.0.1",
    "192.88.99.1",
    "::1",
    "::ffff:127.0.0.1",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a00:1",
    "2002:7f00:1::",
    "2001:db8::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "fc00::1",
]
NOWHERE = [
    "0.0.0.0",  # noqa: S104
    "0.1.2.3",
    "169.254.169.254",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "168.63.129.16",
    "100.100.100.200",
    "224.0.0.1",
    "239.255.255.250",
    "255.255.255.255",
    "::",
    "fe80::1",
    "fe80::1%eth0",
    "fd00:ec2::254",
    "ff02::1",
]


@pytest.mark.parametrize("ip", PUBLIC)
def test_public_addresses_are_allowed(ip):
    assert is_public(ip)
    assert AddressPolicy().allowed(ip)


@pytest.mark.parametrize("ip", PRIVATE)
def test_private_addresses_need_the_setting(ip):
    assert not AddressPolicy().allowed(ip)
    assert AddressPolicy(allow_private=True).allowed(ip)


@pytest.mark.parametrize("ip", NOWHERE)
def test_metadata_and_group_addresses_are_never_allowed(ip):
    assert not AddressPolicy().allowed(ip)
    assert not AddressPolicy(allow_private=True).allowed(ip)


@pytest.mark.parametrize("text", ["", "example.org", "1.2.3", "0x7f000001", "2130706433"])
def test_what_is_no_address_is_not_allowed(text):
    assert not AddressPolicy(allow_private=True).allowed(text)


@pytest.mark.parametrize(
    ("url", "transport"),
    [
        ("https://mcp.example.org/mcp", "http"),
        ("http://mcp.example.org:8080/mcp?tenant=a", "sse"),
        ("https://[2606:4700::1111]/mcp", "http"),
        ("wss://mcp.example.org/", "websocket"),
    ],
)
def test_urls_that_fit(url, transport):
    assert check_url(url, transport=transport).hostname


@pytest.mark.parametrize(
    ("url", "transport", "why"),
    [
        ("mcp.example.org/mcp", "http", "whole URL"),
        ("ftp://mcp.example.org", "http", "whole URL"),
        ("wss://mcp.example.org", "http", "whole URL"),
        ("https://mcp.example.org", "websocket", "whole URL"),
        ("https:///mcp", "http", "whole URL"),
        ("https://me:secret@mcp.example.org/", "http", "credentials"),
        ("https://mcp.example.org/#a", "http", "fragment"),
        ("https://mcp.example.org/#", "http", "fragment"),
        ("https://mcp.example.org:99999/", "http", "no URL"),
        ("https://mcp.example.org/a b", "http", "blanks"),
        ("https://mcp.example.org\r\nX: y/", "http", "blanks"),
        ("https://mcp.example.org\\@10.0.0.1/", "http", "credentials"),
        ("https://mcp.example.org/\\x", "http", "backslash"),
    ],
)
def test_urls_that_do_not_fit(url, transport, why):
    with pytest.raises(InvalidURL, match=why):
        check_url(url, transport=transport)


def test_one_private_address_among_public_ones_refuses_the_name(monkeypatch):
    monkeypatch.setattr(upstream, "resolve", lambda *_: ["8.8.8.8", "10.0.0.1"])
    with pytest.raises(AddressNotAllowed, match=r"sly\.example\.org \(10\.0\.0\.1\)"):
        asyncio.run(resolve_allowed("sly.example.org", 443, policy=AddressPolicy()))
