from __future__ import annotations

import socket

import pytest
from django.core.management import CommandError

from gateway.listening import check_address, url_of


def test_a_free_port_is_given_back(free_port: int) -> None:
    assert check_address("127.0.0.1", free_port) == free_port


def test_zero_takes_one_that_can_be_listened_on() -> None:
    port = check_address("127.0.0.1", 0)
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_a_taken_port_says_so(free_port: int) -> None:
    with (
        socket.create_server(("127.0.0.1", free_port)),
        pytest.raises(CommandError, match=rf"127.0.0.1:{free_port}: the port is taken"),
    ):
        check_address("127.0.0.1", free_port)


@pytest.mark.parametrize(
    ("host", "port", "said"),
    [
        ("127.0.0.1", 70_000, "no port"),
        ("127.0.0.1", -1, "no port"),
        ("no.such.host.invalid", 8000, "not a name or address"),
        ("192.0.2.1", 8000, "does not have that address"),
    ],
)
def test_what_cannot_be_listened_on(host: str, port: int, said: str) -> None:
    with pytest.raises(CommandError, match=said):
        check_address(host, port)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),  # noqa: S104
        ("::", "http://[::1]:80"),
        ("gateway.example", "http://gateway.example:80"),
    ],
)
def test_the_address_to_open(host: str, url: str) -> None:
    assert url_of(host, 80) == url
