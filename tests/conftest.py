"""Fixtures that tests of several rooms share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.management.commands import flush as flush_command
from django.db import connection
from django.test import override_settings
from servestatic.middleware import ServeStaticMiddleware

from tests.serving import port_now

_SAME_FOR_ALL = {"django_content_type", "auth_permission"}
_HOLDING = """
SELECT quote_ident(c.relname) FROM pg_class AS c
 WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind = 'r'
   AND pg_relation_size(c.oid) > 0
   AND (SELECT root.relname FROM pg_class AS root
         WHERE root.oid = coalesce(pg_partition_root(c.oid), c.oid)) = ANY (%s)
"""


@pytest.fixture
def free_port() -> int:
    return port_now()


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """As pytest-django's; at the end sessions that a server's threads left open are cut."""
    yield
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


@pytest.fixture(scope="session", autouse=True)
def cheap_passwords() -> Iterator[None]:
    """A third of a second for each user is what attackers are to pay, not tests."""
    with override_settings(PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"]):
        yield


@pytest.fixture(scope="session", autouse=True)
def static_files_found_once() -> Iterator[None]:
    """Each test client makes the middleware anew, which looks at two hundred files."""
    find = ServeStaticMiddleware.add_files_from_finders
    found: dict[tuple[bool, int | None], dict[str, Any]] = {}

    def add(self: Any) -> None:
        kind = self.autorefresh, self.max_age
        if kind not in found:
            find(self)
            found[kind] = self.files
        self.files = found[kind]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ServeStaticMiddleware, "add_files_from_finders", add)
        yield


@pytest.fixture(scope="session", autouse=True)
def brief_flushes() -> Iterator[None]:
    """Truncate what holds rows: each partition of the logs is a dozen files to make anew.

    Content types and permissions stay, so they need not be made again after each test.
    """

    def flush(self: Any, _style: Any, tables: list[str], **_: Any) -> list[str]:
        with self.connection.cursor() as cursor:
            cursor.execute(_HOLDING, [[name for name in tables if name not in _SAME_FOR_ALL]])
            holding = ", ".join(name for (name,) in cursor.fetchall())
        return [f"TRUNCATE {holding} CASCADE"] if holding else []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(connection.ops), "sql_flush", flush)
        patch.setattr(flush_command, "emit_post_migrate_signal", lambda *_, **__: None)
        yield


_skipped: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        _skipped.append(report.nodeid)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """CI installs every peer, so there a skipped test is a failure."""
    if _skipped and os.environ.get("GATEWAY_TESTS_ALLOW_NO_SKIP") and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        sys.stderr.write(f"\nskipped, and no skip is allowed: {', '.join(_skipped)}\n")
