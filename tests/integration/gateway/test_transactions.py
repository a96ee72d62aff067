"""For whom requests, jobs and commands work, and what is kept of a request that fails."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, connections
from django.http import HttpRequest, HttpResponse
from django.test import Client, RequestFactory

from gateway import worker
from gateway.middleware import TransactionMiddleware
from gateway.schema import owners_connection
from monitoring.tasks import tables_analyze
from registry import services
from registry.db import crossing, roles
from registry.db.partitions import partitions_check
from registry.db.tenancy import APP_ROLE, OPERATOR_ROLE, tenant_transaction
from registry.models import MCPServer, ServerMetric, Tenant
from security.models import User
from tests.api import API, client_of
from tests.factories import MCPServerFactory, TenantFactory, UserFactory
from tests.walls import logged_in_as_app

pytestmark = pytest.mark.django_db(transaction=True)


def whoami() -> tuple[str, str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_user, session_user")
        return cursor.fetchone()


# ---------------------------------------------------------------- a request


@pytest.mark.parametrize(
    ("status", "kept"), [(200, True), (302, True), (403, True), (500, False), (503, False)]
)
def test_what_was_done_before_a_refusal_is_kept_and_before_a_failure_is_not(
    status: int, kept: bool
) -> None:
    def view(_request: HttpRequest) -> HttpResponse:
        TenantFactory(slug="made")
        assert whoami()[0] == OPERATOR_ROLE
        return HttpResponse(status=status)

    with logged_in_as_app():
        TransactionMiddleware(view)(RequestFactory().get("/"))
        assert not connection.in_atomic_block
    assert Tenant.objects.filter(slug="made").exists() is kept


def test_an_exception_of_a_view_undoes_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server is registered; then the answer cannot be written."""
    client = client_of(TenantFactory())
    client.raise_request_exception = False

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr("registry.api.views.MCPServerViewSet.answer", broken)
    new = {"name": "x", "endpoint_url": "https://192.0.2.1/", "is_enabled": False}
    monkeypatch.setattr(services, "resolve", lambda *_: ["93.184.216.34"])
    with logged_in_as_app():
        assert client.post(f"{API}servers", new, format="json").status_code == 500
    assert not MCPServer.objects.exists()


@pytest.mark.parametrize("path", [f"{API}servers", "/admin/"])
def test_without_a_database_the_answer_is_503_and_when_to_come_again(
    path: str, free_port: int
) -> None:
    default = connections["default"]
    before = default.settings_dict["HOST"], default.settings_dict["PORT"]
    default.close()
    default.settings_dict |= {"HOST": "127.0.0.1", "PORT": free_port}  # nobody listens there
    try:
        answer = Client().get(path)
    finally:
        default.settings_dict["HOST"], default.settings_dict["PORT"] = before
    assert (answer.status_code, answer["Retry-After"]) == (503, "5")
    assert "Try again in a few seconds." in answer.content.decode()
    if path.startswith(API):
        assert answer.json()["request_id"] == answer["X-Request-ID"]
    assert Client().get("/admin/login/").status_code == 200


def test_a_name_is_looked_up_outside_of_the_requests_transaction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def resolve(_host: str, _port: int) -> list[str]:
        asked.append(connection.in_atomic_block)
        return ["93.184.216.34"]

    monkeypatch.setattr(services, "resolve", resolve)
    mine = TenantFactory()
    client = client_of(mine)
    new = {"name": "x", "endpoint_url": "https://x.example.org/", "is_enabled": False}
    with logged_in_as_app():
        assert client.post(f"{API}servers", new, format="json").status_code == 201
    assert asked == [False]
    assert MCPServer.objects.get().tenant == mine


def test_somebody_signs_in_and_uses_the_admin_as_the_application_role() -> None:
    user = UserFactory(username="root", is_staff=True, is_superuser=True, tenant=None)
    user.set_password("a-long-password")
    user.save()
    server = MCPServerFactory()
    browser = Client()
    with logged_in_as_app():
        form = {"username": "root", "password": "a-long-password"}
        assert browser.post("/admin/login/?next=/admin/", form).status_code == 302
        page = browser.get("/admin/registry/mcpserver/")
        assert server.slug in page.content.decode()
        assert browser.get(f"{API}servers").json()["results"][0]["slug"] == server.slug


def test_a_signed_in_user_of_a_tenant_is_walled_in_and_stays_signed_in() -> None:
    server, other = MCPServerFactory(), MCPServerFactory()
    user: User = UserFactory(tenant=server.tenant)
    browser = Client()
    browser.force_login(user)
    with logged_in_as_app():
        for _ in range(2):
            answer = browser.get(f"{API}servers")
            assert [row["slug"] for row in answer.json()["results"]] == [server.slug]
    assert other.slug != server.slug


# ---------------------------------------------------------------- a process


@pytest.fixture
def as_app() -> Iterator[None]:
    with logged_in_as_app():
        yield


@pytest.mark.usefixtures("as_app")
def test_a_command_crosses_and_gives_it_back() -> None:
    with crossing.crossing_tenants():
        assert whoami() == (OPERATOR_ROLE, APP_ROLE)
        TenantFactory()
        assert Tenant.objects.count() == 1
        with tenant_transaction(tenant_id=TenantFactory().pk):
            assert whoami() == (APP_ROLE, APP_ROLE)
            assert Tenant.objects.count() == 1
        assert Tenant.objects.count() == 2
    assert whoami() == (APP_ROLE, APP_ROLE)
    assert Tenant.objects.count() == 0


@pytest.mark.usefixtures("as_app")
def test_new_threads_of_the_process_cross_too() -> None:
    def in_a_thread() -> tuple[str, str]:
        try:
            return whoami()
        finally:
            connection.close()

    with crossing.crossing_tenants(), ThreadPoolExecutor(1) as pool:
        assert pool.submit(in_a_thread).result(timeout=30) == (OPERATOR_ROLE, APP_ROLE)


@pytest.mark.usefixtures("as_app")
def test_a_pooler_that_drops_the_role_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crossing, "_OPTION", " -c application_name=dropped")
    with pytest.raises(crossing.CrossingError, match="DATABASE_DIRECT_URL"):
        crossing.cross_tenants()


def test_a_role_that_would_see_nothing_is_told() -> None:
    default = connections["default"]
    before = default.settings_dict["USER"]
    with connection.cursor() as cursor:
        cursor.execute("CREATE ROLE wall_stranger LOGIN")
    default.close()
    default.settings_dict["USER"] = "wall_stranger"
    try:
        with pytest.raises(crossing.CrossingError, match=r'GRANT .* TO "wall_stranger"'):
            crossing.cross_tenants()
        with pytest.raises(crossing.CrossingError, match="would see no tenant's rows"):
            crossing.crossing_check()
    finally:
        default.close()
        default.settings_dict["USER"] = before
        with connection.cursor() as cursor:
            cursor.execute("DROP ROLE wall_stranger")


def test_the_owner_passes_by_itself() -> None:
    before = whoami()
    with crossing.crossing_tenants():
        assert whoami() == before
    crossing.crossing_check()


def test_statistics_are_the_owners_to_refresh(settings: Any) -> None:
    settings.DATABASE_MAINTENANCE = {"USER": connection.settings_dict["USER"]}
    server = MCPServerFactory()
    ServerMetric.objects.bulk_create(ServerMetric(server=server) for _ in range(2500))
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_force_next_flush()")
    with logged_in_as_app(), crossing.crossing_tenants():
        assert tables_analyze(at=server.created_at) >= 1
        assert tables_analyze(at=server.created_at) == 0


# ---------------------------------------------------------------- init_db


def test_two_that_raise_walls_at_once_both_end_well() -> None:
    """Each finds the same things missing, and one of them is second with every statement."""
    damages = (
        "DROP POLICY tenant_reads ON mcp_servers",
        "REVOKE SELECT ON tenants, users, sessions FROM mcp_gateway_app",
        "ALTER ROLE mcp_gateway_app RESET lock_timeout",
        "ALTER TABLE users DISABLE ROW LEVEL SECURITY",
    )
    with connection.cursor() as cursor:
        for damage in damages:
            cursor.execute(damage)
    at_once = Barrier(2)

    def raise_walls(_: int) -> roles.Raised:
        try:
            at_once.wait(timeout=30)
            return roles.walls_raise()
        finally:
            connection.close()

    with ThreadPoolExecutor(2) as pool:
        assert all(raised.walled for raised in pool.map(raise_walls, range(2)))
    assert roles.walls_raise() == roles.Raised(done=0)


def test_an_owner_without_rights_is_told_the_sql(
    settings: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with connection.cursor() as cursor:
        cursor.execute("CREATE ROLE wall_owner LOGIN")
        cursor.execute("GRANT SELECT ON django_migrations TO wall_owner")
    settings.DATABASE_MAINTENANCE = {"USER": "wall_owner"}
    try:
        call_command("init_db", "--roles-sql")
        script = capsys.readouterr().out
        assert "CREATE ROLE" not in script, "what is there is left out"
        assert f'GRANT "{OPERATOR_ROLE}" TO "wall_owner"' in script
        refused = _refused()
        assert [text for text in refused if f'GRANT "{OPERATOR_ROLE}" TO "wall_owner"' in text]
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP OWNED BY wall_owner")
            cursor.execute("DROP ROLE wall_owner")


def test_a_worker_that_could_make_no_partitions_does_not_start(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def started() -> None:
        raise AssertionError("it started")

    monkeypatch.setattr(worker, "_schedule", started)
    settings.DEBUG = True  # with the secrets of development
    owner = {"USER": connection.settings_dict["USER"]}
    settings.DATABASE_MAINTENANCE = None
    with logged_in_as_app(), crossing.crossing_tenants():
        with pytest.raises(CommandError, match=r"own audit_logs, .* set DATABASE_MAINTENANCE_URL"):
            call_command("worker")
        settings.DATABASE_MAINTENANCE = owner
        partitions_check()


def _refused() -> list[str]:
    with owners_connection():
        return [step.text() for step in roles._make_roles("default")[1]]


@pytest.fixture
def bare_owner(settings: Any) -> Iterator[str]:
    """Owns a table without its wall, but was never made a member of the operator's role."""
    [(owner,)] = _run("SELECT tableowner FROM pg_tables WHERE tablename = 'tenants'")
    _run("CREATE ROLE bare_owner LOGIN")
    _run("GRANT SELECT ON django_migrations TO bare_owner")
    _run("GRANT USAGE, CREATE ON SCHEMA public TO bare_owner")
    _run("ALTER TABLE tenants DISABLE ROW LEVEL SECURITY")
    _run("ALTER TABLE tenants OWNER TO bare_owner")
    settings.DATABASE_MAINTENANCE = {"USER": "bare_owner"}
    yield "bare_owner"
    _run("REASSIGN OWNED BY bare_owner TO CURRENT_USER")
    _run(f'ALTER TABLE tenants OWNER TO "{owner}"')
    _run("DROP OWNED BY bare_owner")
    _run("DROP ROLE bare_owner")
    roles.walls_raise()


def _run(query: str) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall() if cursor.description else []


@pytest.mark.xdist_group("bare_owner")  # a role is the whole cluster's
def test_an_owner_is_not_walled_out_of_its_own_tables(bare_owner: str) -> None:
    TenantFactory()
    with owners_connection():
        raised = roles.walls_raise()
        assert not raised.walled
        assert Tenant.objects.exists()
    assert f'GRANT "{OPERATOR_ROLE}" TO "{bare_owner}"' in raised.refused[0].text()


@pytest.mark.usefixtures("bare_owner")
def test_what_a_dba_has_to_do_is_told_before_anything_can_fail(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(DatabaseError, match="permission denied"):
        call_command("init_db")
    told = capsys.readouterr().err
    assert "walls between tenants were not raised" in told
    assert f'GRANT "{OPERATOR_ROLE}" TO "bare_owner"' in told


@pytest.mark.xdist_group("bare_owner")  # a role is the whole cluster's
def test_a_schema_that_is_not_the_owners_is_left_to_the_dba(bare_owner: str) -> None:
    for role in (OPERATOR_ROLE, APP_ROLE):
        _run(f"GRANT {role} TO {bare_owner}")
    _run(f"GRANT CREATE ON SCHEMA public TO {APP_ROLE}")
    with owners_connection():
        refused = [step.text() for step in roles.walls_raise().refused if not step.is_optional]
    assert refused == [f'REVOKE CREATE ON SCHEMA "public" FROM "{APP_ROLE}", PUBLIC;']


@pytest.mark.xdist_group("bare_owner")  # a role is the whole cluster's
def test_rights_by_way_of_another_role_are_enough(bare_owner: str) -> None:
    _run("CREATE ROLE bare_team")
    try:
        _run(f"GRANT {OPERATOR_ROLE}, {APP_ROLE} TO bare_team")
        _run(f"GRANT bare_team TO {bare_owner}")
        with owners_connection():
            assert not [step for step in roles.roles_missing() if not step.is_optional]
    finally:
        _run("DROP ROLE bare_team")


def test_an_owner_that_inherits_nothing_is_made_to_before_postgresql_16() -> None:
    member = {(role, "owner"): False for role in (OPERATOR_ROLE, APP_ROLE)}
    old = roles._Cluster(owner="owner", owner_is_super=False, version=150_000, members=member)
    steps = {step.text() for step in roles._missing_memberships(old)}
    assert 'ALTER ROLE "owner" INHERIT;' in steps
    assert not [text for text in steps if 'TO "owner"' in text]
