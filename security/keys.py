"""API keys: `mcpgw_<prefix>_<secret>`. The prefix finds the row, the secret proves the holder.

The secret has 256 random bits, so a fast keyed hash is enough: nothing can be guessed that a
slow password hash would protect, and half a second a call would be lost to it.
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field

__all__ = ["ParsedKey", "generate_key", "hash_secret", "new_salt", "parse_key", "plain_hash"]

MARK = "mcpgw"
PREFIX_BYTES = 6
SECRET_BYTES = 32
# Longer text cannot be a key of ours; it is refused before anything is computed from it.
MAX_LENGTH = 200


@dataclass(frozen=True, slots=True)
class ParsedKey:
    """A presented key in its parts. The secret stays out of reprs, logs and tracebacks."""

    prefix: str
    secret: str = field(repr=False)

    @property
    def text(self) -> str:
        return f"{MARK}_{self.prefix}_{self.secret}"


def generate_key() -> ParsedKey:
    return ParsedKey(prefix=secrets.token_hex(PREFIX_BYTES), secret=secrets.token_hex(SECRET_BYTES))


def parse_key(text: str) -> ParsedKey | None:
    """None for anything that is not shaped like a key."""
    if len(text) > MAX_LENGTH or not text.isascii():
        return None
    mark, _, rest = text.partition("_")
    prefix, _, secret = rest.partition("_")
    if mark != MARK or not prefix.isalnum() or len(prefix) > 16 or not secret:
        return None
    return ParsedKey(prefix=prefix, secret=secret)


def new_salt() -> bytes:
    return secrets.token_bytes(32)


def hash_secret(*, salt: bytes, secret: str) -> bytes:
    """HMAC-SHA-256, the salt as key and the secret as message; 32 bytes."""
    return hmac.digest(salt, secret.encode(), hashlib.sha256)


def plain_hash(key: ParsedKey) -> str:
    """The unsalted SHA-256 of the whole key that `api_keys` holds, in hex."""
    return hashlib.sha256(key.text.encode()).hexdigest()
