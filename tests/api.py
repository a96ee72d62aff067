"""Calling the REST API in tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.urls import get_resolver
from rest_framework.test import APIClient

from registry.models import Tenant
from tests.factories import EnhancedAPIKeyFactory

ALL_SCOPES = ["read", "write", "admin", "proxy", "metrics", "health"]
API = "/api/v1/"


def client_of(tenant: Tenant | None, *, scopes: list[str] | None = None, **key: Any) -> APIClient:
    """A client with a key of this tenant (None: an operator's), with every scope unless told.

    The key's row is `client.key`.
    """
    row = EnhancedAPIKeyFactory(
        tenant=tenant, scopes=ALL_SCOPES if scopes is None else scopes, **key
    )
    client = APIClient(headers={"authorization": f"Bearer {row.text}"})
    client.key = row
    return client


def faults(answer: Any) -> set[str]:
    """The fields that a 400 finds fault with; it names the request besides."""
    body = answer.json()
    assert "request_id" in body
    return {name for name, value in body.items() if not isinstance(value, str)}


def transaction_queries(tenant: Tenant | None) -> int:
    """What a request's transaction costs in a test: its savepoint, and whom it acts for.

    Before and after both; a tenant's request is narrowed to the tenant once.
    """
    return 4 if tenant is None else 5


def api_patterns() -> Iterator[tuple[str, type]]:
    """Each address below /api/v1/ as a regular expression, with its view class."""
    return _views(get_resolver().url_patterns, "")


def _views(patterns: Any, prefix: str) -> Iterator[tuple[str, type]]:
    for pattern in patterns:
        path = prefix + str(pattern.pattern).lstrip("^")
        if hasattr(pattern, "url_patterns"):
            yield from _views(pattern.url_patterns, path)
        elif path.startswith("api/v1/") and hasattr(pattern.callback, "cls"):
            yield path, pattern.callback.cls


def list_paths() -> list[str]:
    """Every list of rows, as a path."""
    found = {
        path.removesuffix("/?$")
        for path, view in api_patterns()
        if hasattr(view, "list") and "(?P<" not in path
    }
    return sorted(f"/{path}" for path in found)
