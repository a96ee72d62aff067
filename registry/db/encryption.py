"""Encryption at rest for what must be read back, such as credentials for an upstream."""

import json
from typing import Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings
from django.db import models

__all__ = ["DecryptionError", "EncryptedJSONField", "decrypt_json", "encrypt_json"]


class DecryptionError(Exception):
    """No key of ENCRYPTION_KEYS opens the value: put the key that wrote it back into the list."""


def _box() -> MultiFernet:
    return MultiFernet([Fernet(key) for key in settings.ENCRYPTION_KEYS])


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


class EncryptedJSONField(models.BinaryField):  # type: ignore[type-arg]
    """JSON that lies encrypted in the table; reads and writes plain Python values.

    Not searchable, and left out of forms and serializers by being non-editable.
    """

    def from_db_value(self, value: bytes | None, *_: Any) -> Any:
        return None if value is None else decrypt_json(value)

    def get_db_prep_value(self, value: Any, connection: Any, prepared: bool = False) -> Any:
        encrypted = None if value is None else encrypt_json(value)
        return super().get_db_prep_value(encrypted, connection, prepared)

    def value_to_string(self, obj: models.Model) -> str:  # noqa: ARG002  (Django's signature)
        raise TypeError("Encrypted values are not serialized: dumpdata would write them in clear.")
