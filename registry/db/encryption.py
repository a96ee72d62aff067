"""Encryption at rest for what must be read back, such as credentials for an upstream."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings
from django.db import models

__all__ = ["DecryptionError", "EncryptedJSONField", "Sealed", "decrypt_json", "encrypt_json"]


class DecryptionError(Exception):
    """No key of ENCRYPTION_KEYS opens the value: put the key that wrote it back into the list."""


def encrypt_json(value: Any) -> bytes:
    """Encrypt with the newest key (authenticated AES, Fernet)."""
    return _box().encrypt(json.dumps(value).encode())


def decrypt_json(token: bytes) -> Any:
    """Decrypt with whichever key of ENCRYPTION_KEYS fits; DecryptionError when none does."""
    try:
        return json.loads(_box().decrypt(bytes(token)))
    except InvalidToken:
        raise DecryptionError(
            "A stored secret was written with a key that is not in ENCRYPTION_KEYS. "
            "Add the old key behind the newest one and try again."
        ) from None


def _box() -> MultiFernet:
    return _box_of(tuple(settings.ENCRYPTION_KEYS))


@lru_cache(maxsize=4)
def _box_of(keys: tuple[str, ...]) -> MultiFernet:
    return MultiFernet([Fernet(key) for key in keys])


class Sealed:
    """A stored value as it lies in the table; nothing is decrypted before `open`.

    So a row can be read, shown and saved whose key is lost: only who needs the value meets the
    DecryptionError. Equals the plain value that it holds.
    """

    __slots__ = ("token",)

    def __init__(self, token: bytes) -> None:
        self.token = bytes(token)

    def open(self) -> Any:
        """The plain value, or DecryptionError."""
        return decrypt_json(self.token)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Sealed) and other.token == self.token:
            return True
        try:
            return bool(self.open() == (other.open() if isinstance(other, Sealed) else other))
        except DecryptionError:
            return False

    __hash__ = None  # type: ignore[assignment]  # what it holds has no hash either

    def __repr__(self) -> str:
        return "<Sealed>"


class EncryptedJSONField(models.BinaryField):  # type: ignore[type-arg]
    """JSON that lies encrypted in the table; takes plain Python values and reads `Sealed` ones.

    Not searchable, and left out of forms and serializers by being non-editable.
    """

    def from_db_value(self, value: bytes | None, *_: Any) -> Sealed | None:
        return None if value is None else Sealed(value)

    def get_db_prep_value(self, value: Any, connection: Any, prepared: bool = False) -> Any:
        if isinstance(value, Sealed):
            stored: bytes | None = value.token
        else:
            stored = None if value is None else encrypt_json(value)
        return super().get_db_prep_value(stored, connection, prepared)

    def value_to_string(self, obj: models.Model) -> str:  # noqa: ARG002  (Django's signature)
        raise TypeError("Encrypted values are not serialized: dumpdata would write them in clear.")
