"""The environment: read once, refused by name when it cannot be parsed."""

from __future__ import annotations

import os
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import environ
from cryptography.fernet import Fernet
from django.core.exceptions import ImproperlyConfigured
from django.core.management.utils import get_random_secret_key

__all__ = [
    "Network",
    "cache",
    "database",
    "fernet_keys",
    "folder",
    "http_url",
    "index_profile",
    "load_env_file",
    "log_format",
    "log_level",
    "mail",
    "natural",
    "networks",
    "origins",
    "parsed",
    "positive_int",
    "read",
    "secret",
    "truth",
    "words",
]

T = TypeVar("T")
Network = IPv4Network | IPv6Network

_TRUTH = {"1": True, "true": True, "yes": True, "on": True}
_FALSEHOOD = {"": False, "0": False, "false": False, "no": False, "off": False}


def load_env_file(path: Path) -> None:
    """Read .env; what the environment says already wins."""
    if path.exists():
        environ.Env.read_env(str(path), overwrite=False)


def read(name: str, parse: Callable[[str], T], default: T) -> T:
    """The parsed value of a variable; ImproperlyConfigured names it when it does not parse."""
    raw = os.environ.get(name)
    if raw is None or raw == "":
        return default
    return parsed(name, raw, parse)


def parsed(name: str, raw: str, parse: Callable[[str], T]) -> T:
    """What a variable's text says; ImproperlyConfigured names the variable when it says nothing."""
    try:
        return parse(raw)
    except ValueError as error:
        raise ImproperlyConfigured(f"{name}: {error}") from None


def truth(raw: str) -> bool:
    """on/off, true/false, yes/no, 1/0."""
    known = _TRUTH | _FALSEHOOD
    if raw.strip().lower() not in known:
        raise ValueError(f"'{raw}' is neither on nor off; write 'on' or 'off'.")
    return known[raw.strip().lower()]


def positive_int(raw: str) -> int:
    if not raw.strip().isdigit() or int(raw) < 1:
        raise ValueError(f"'{raw}' is not a whole number above 0.")
    return int(raw)


def natural(raw: str) -> int:
    """A whole number from 0."""
    if not raw.strip().isdecimal():
        raise ValueError(f"'{raw}' is not a whole number from 0.")
    return int(raw)


def folder(raw: str) -> Path:
    """An absolute path that is a folder, or nothing yet."""
    found = Path(raw)
    if not found.is_absolute():
        raise ValueError(f"'{raw}' is not an absolute path, such as /var/lib/mcp-gateway.")
    if found.exists() and not found.is_dir():
        raise ValueError(f"'{raw}' is not a folder; name another path.")
    return found


def log_level(raw: str) -> str:
    """DEBUG, INFO, WARNING or ERROR, in any case."""
    if raw.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
        raise ValueError(f"'{raw}' is no level; write DEBUG, INFO, WARNING or ERROR.")
    return raw.upper()


def log_format(raw: str) -> str:
    """text or json."""
    if raw not in {"text", "json"}:
        raise ValueError(f"'{raw}' is no format; write text or json.")
    return raw


def index_profile(raw: str) -> str:
    """guide or expert."""
    if raw not in {"guide", "expert"}:
        raise ValueError(f"'{raw}' is no profile; write guide or expert.")
    return raw


def words(raw: str) -> list[str]:
    """A comma-separated list."""
    return [word.strip() for word in raw.split(",") if word.strip()]


def origins(raw: str) -> list[str]:
    """Comma-separated origins such as https://app.example.org."""
    found = [origin.rstrip("/") for origin in words(raw)]
    for origin in found:
        parts = urlsplit(origin)
        if not parts.scheme or not parts.netloc or parts.path or parts.query:
            raise ValueError(f"'{origin}' is no origin; write https://app.example.org.")
    return found


def http_url(raw: str) -> str:
    """A whole http or https URL."""
    parts = urlsplit(raw)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("write a whole URL such as https://watcher.example.org/ping/…")
    return raw


def mail(raw: str) -> dict[str, object]:
    """smtp://, smtp+tls:// or smtps://user:password@host:port as Django's EMAIL_* settings."""
    if urlsplit(raw).scheme not in {"smtp", "smtp+tls", "smtps", "smtp+ssl"}:
        raise ValueError("write smtp+tls://user:password@mail.example.org:587.")
    found: dict[str, object] = environ.Env.email_url_config(raw)
    return {name: value for name, value in found.items() if name.startswith("EMAIL_")}


def networks(raw: str) -> list[Network]:
    """Comma-separated addresses and networks."""
    return [ip_network(word, strict=False) for word in words(raw)]


def cache(raw: str) -> dict[str, str]:
    """redis://host:6379/0, or nothing for a cache in each process."""
    scheme = urlsplit(raw).scheme
    if scheme == "locmem":
        return {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
    if scheme in {"redis", "rediss", "unix"}:
        return {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": raw}
    raise ValueError(f"'{raw}' is no cache; write redis://host:6379/0.")


def fernet_keys(raw: str) -> list[str]:
    """Comma-separated Fernet keys, the newest first."""
    keys = words(raw)
    for key in keys:
        try:
            Fernet(key)
        except ValueError:
            raise ValueError(
                "each key must be 32 random bytes in URL-safe base64; make one with: python -c "
                "'from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())'"
            ) from None
    return keys


def database(raw: str) -> dict[str, Any]:
    """A PostgreSQL URL as Django's settings; query parameters become connection options.

    Takes what psql takes: postgresql://user:password@host:port/name?sslmode=require, also with
    a socket folder as ?host=/path or percent-encoded in the host's place.
    """
    parts = urlsplit(raw)
    if parts.scheme not in {"postgres", "postgresql"}:
        raise ValueError(
            "only PostgreSQL is supported; write postgresql://user:password@host:5432/name."
        )
    try:
        port = parts.port
    except ValueError:
        raise ValueError("the port is not a number from 1 to 65535.") from None
    if not parts.path.strip("/"):
        raise ValueError("the database's name is missing; write postgresql://host/NAME.")
    # Not parts.hostname: it lower-cases, and a socket folder may have capitals.
    host = parts.netloc.rpartition("@")[2]
    if port is not None:
        host = host.rpartition(":")[0]
    return {
        "NAME": unquote(parts.path.lstrip("/")),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": unquote(host).strip("[]"),
        "PORT": str(port or ""),
        "OPTIONS": dict(parse_qsl(parts.query)),
    }


def secret(name: str, *, folder: Path) -> tuple[str, bool]:
    """A secret and whether the environment gave it; a missing one is made once and kept.

    Kept as one file a secret in `folder` (mode 0700, files 0600), so that two processes that
    start together agree: whoever links the file first has made it.
    """
    if given := os.environ.get(name):
        return given, True
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ImproperlyConfigured(
            f"GATEWAY_LOCAL_DIR: {folder} cannot be made ({error.strerror}); name another folder."
        ) from None
    kept = folder / name.lower()
    if not kept.exists():
        made = _MAKERS[name]()
        draft = folder / f".{name.lower()}.{os.getpid()}"
        draft.touch(mode=0o600)
        draft.write_text(made)
        try:
            os.link(draft, kept)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return kept.read_text(), False


_MAKERS: dict[str, Callable[[], str]] = {
    "SECRET_KEY": get_random_secret_key,
    "ENCRYPTION_KEYS": lambda: Fernet.generate_key().decode(),
}
