"""Validators of the security models; each error says what to write instead."""

import ipaddress
import unicodedata
import zoneinfo

from django.core.exceptions import ValidationError

# What turns the reading direction of a text, or is not there to the eye: two names that look alike
# would be two keys in a list, and in an audit row. Joiners make Persian words and emoji.
FILLERS = frozenset("\u115f\u1160\u3164\uffa0")  # letters that show nothing
JOINERS = frozenset("\u200c\u200d")
# Controls, formats, half characters, ends of lines.
UNSEEN = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


def validate_shown(value: str) -> None:
    """ValidationError unless the text is seen as what it is, on one line."""
    for character in value:
        is_unseen = unicodedata.category(character) in UNSEEN and character not in JOINERS
        if is_unseen or character in FILLERS:
            raise ValidationError(
                f"Leave out U+{ord(character):04X}, which cannot be seen: write letters and digits."
            )


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
