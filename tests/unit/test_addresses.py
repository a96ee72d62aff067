from __future__ import annotations

from ipaddress import ip_network

import pytest

from security.addresses import client_address

OURS = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]


@pytest.mark.parametrize(
    ("peer", "forwarded", "trusted", "client"),
    [
        ("203.0.113.7", "", OURS, "203.0.113.7"),
        ("203.0.113.7", "198.51.100.1", OURS, "203.0.113.7"),  # no proxy of ours: not believed
        ("10.0.0.1", "198.51.100.1", OURS, "198.51.100.1"),
        ("10.0.0.1", "198.51.100.1", [], "10.0.0.1"),
        ("10.0.0.1", "192.0.2.1, 198.51.100.1", OURS, "198.51.100.1"),  # the left is hearsay
        ("10.0.0.1", "198.51.100.1, 10.0.0.2", OURS, "198.51.100.1"),
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", OURS, "10.0.0.3"),
        ("10.0.0.1", "198.51.100.1, nonsense", OURS, "10.0.0.1"),
        ("fd00::1", "2001:db8::1", OURS, "2001:db8::1"),
        ("::ffff:10.0.0.1", "198.51.100.1", OURS, "198.51.100.1"),
        ("fe80::1%eth0", "", OURS, "fe80::1"),
        ("fd00::1%x y", "2001:db8::1%x y", OURS, "2001:db8::1"),
        (None, "198.51.100.1", OURS, None),
        ("", "198.51.100.1", OURS, None),
    ],
)
def test_the_client_is_the_nearest_address_that_is_no_proxy_of_ours(
    peer, forwarded, trusted, client
):
    assert client_address(peer=peer, forwarded_for=forwarded, trusted=trusted) == client
