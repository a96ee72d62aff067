"""HTTP headers as people write them."""

from __future__ import annotations

import re

from django.core.exceptions import ValidationError

__all__ = ["HEADER_NAME", "parse_headers"]

HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a token: RFC 9110, section 5.6.2
# Not str.splitlines(): it splits at VT and U+2028, too, and the rest would pass for a header.
_LINE_END = re.compile(r"\r?\n")
_BLANKS = " \t"


def parse_headers(text: str) -> dict[str, str]:
    """`Name: value`, one a line; ValidationError says which line is none, not what it holds.

    A name stands once, whatever its case: of two values nobody could tell which is sent.
    """
    headers: dict[str, str] = {}
    spelt: dict[str, str] = {}
    for number, line in enumerate(_LINE_END.split(text), start=1):
        name, colon, value = (part.strip(_BLANKS) for part in line.partition(":"))
        if not line.strip(_BLANKS):
            continue
        if not (HEADER_NAME.fullmatch(name) and colon and value):
            raise ValidationError(f"Line {number} is no header; write Authorization: Bearer …")
        if name.lower() in spelt:
            raise ValidationError(f"Line {number} repeats {spelt[name.lower()]}.")
        spelt[name.lower()] = name
        headers[name] = value
    return headers
