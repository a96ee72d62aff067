"""Validators of the security models; each error says what to write instead."""

import ipaddress
import zoneinfo

from django.core.exceptions import ValidationError


def validate_network(value: str) -> None:
    try:
        network = ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise ValidationError(
            f"'{value}' is no IP address or network; write 203.0.113.7 or 10.0.0.0/8."
        ) from None
    address = ipaddress.ip_address(value.partition("/")[0])
    if address != network.network_address:  # that one alone, or all of them? Not ours to guess
        raise ValidationError(
            f"'{value}' is an address within a network; write {network} for the network, or "
            f"{address} for that address alone."
        )


def validate_timezone(value: str) -> None:
    if value not in zoneinfo.available_timezones():
        raise ValidationError(f"'{value}' is no time zone; write a name such as Europe/Berlin.")


def validate_weekday(value: int) -> None:
    if not 0 <= value <= 6:
        raise ValidationError("A weekday is 0 (Monday) to 6 (Sunday).")


def validate_hour(value: int) -> None:
    if not 0 <= value <= 23:
        raise ValidationError("An hour is 0 to 23.")
