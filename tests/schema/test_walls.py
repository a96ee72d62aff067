"""Every table has the wall that is declared, and the catalogue is brought to the declaration."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, LiteralString

import pytest
from django.apps import apps
from django.db import connection, transaction
from django.utils.timezone import now
from psycopg import sql

from registry.db import roles
from registry.db.partitions import partitions_make, read_partitions
from registry.db.tenancy import APP_ROLE, OPERATOR_ROLE, READER_ROLE
from registry.db.walls import walls
from tests.factories import MCPServerFactory, ServerToolFactory, SystemConfigFactory

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.xdist_group("walls")]

# These lead to a tenant. (What leads to a user only, such as a user's groups, has no grant at all
# for the application's role, see below.)
LEADING = ("tenant_id", "server_id", "target_server_id")


@pytest.fixture
def repaired() -> Iterator[None]:
    """Whatever a test breaks is whole again afterwards."""
    yield
    roles.walls_raise()
    assert roles.walls_raise().done == 0


def rows(query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(query, parameters or None)
        return cursor.fetchall() if cursor.description else []


def test_walls_that_stand_are_found_standing_in_few_queries(
    django_assert_max_num_queries: Any,
) -> None:
    """However many tables there are."""
    with django_assert_max_num_queries(25):
        assert roles.walls_raise() == roles.Raised(done=0)


def test_every_table_that_leads_to_a_tenant_has_a_wall() -> None:
    found = rows(
        "SELECT DISTINCT c.relname FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid"
        " WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')"
        " AND NOT c.relispartition AND a.attname = ANY(%s) AND NOT a.attisdropped",
        list(LEADING),
    )
    through_others = {"tenants", "sessions", "alert_events"}
    of_all_together = {"request_tool_days"}  # which the application itself may not read
    leading = {row[0] for row in found} - of_all_together
    assert leading | through_others == {wall.table for wall in walls()}


def test_every_wall_is_forced_and_is_a_tables() -> None:
    found = rows(
        "SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace"
        " AND relrowsecurity AND relforcerowsecurity AND NOT relispartition"
    )
    assert {row[0] for row in found} == {wall.table for wall in walls()}
    tables = {model._meta.db_table for model in apps.get_models()}
    assert {wall.table for wall in walls()} <= tables


def test_the_application_is_given_walled_tables_and_few_others() -> None:
    found = rows(
        "SELECT DISTINCT c.relname FROM pg_class AS c CROSS JOIN aclexplode(c.relacl) AS acl"
        " WHERE acl.grantee IN (0, %s::regrole) AND c.relkind <> 'S'"
        " AND c.relnamespace = current_schema()::regnamespace"
        " AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.objid = c.oid AND d.deptype = 'e')",
        APP_ROLE,
    )
    walled = {wall.table for wall in walls()}
    assert {row[0] for row in found} == walled | roles.WITHOUT_TENANT.keys()


GRANTED_PARTITIONS = """
SELECT c.relname FROM pg_class AS c CROSS JOIN aclexplode(c.relacl) AS acl
 WHERE c.relispartition AND c.relkind = 'r' AND acl.grantee <> c.relowner
"""


def test_a_partition_is_reached_through_its_parent_only() -> None:
    """It has no wall of its own, so what a DBA grants by default is taken back."""
    assert rows(GRANTED_PARTITIONS) == []
    granted = f"ON TABLES {{}} PUBLIC, {APP_ROLE}, {OPERATOR_ROLE}, {READER_ROLE}"
    rows("ALTER DEFAULT PRIVILEGES GRANT SELECT " + granted.format("TO"))
    try:
        later = now() + timedelta(days=1)
        assert partitions_make(at=later, tables=["audit_logs"]) == 1
        assert rows(GRANTED_PARTITIONS) == []
    finally:
        rows("ALTER DEFAULT PRIVILEGES REVOKE SELECT " + granted.format("FROM"))
        newest = read_partitions(connection, "audit_logs")[-1]
        rows(f'DROP TABLE "{newest.name}"')


@pytest.mark.parametrize("wrong", ["SUPERUSER", "BYPASSRLS", "INHERIT", "NOLOGIN"])
def test_an_application_that_could_pass_the_walls_is_put_right(wrong: str, repaired: None) -> None:
    rows(f"ALTER ROLE {APP_ROLE} {wrong}")
    opposite = wrong.removeprefix("NO") if wrong == "NOLOGIN" else f"NO{wrong}"
    assert any(opposite in step.text() for step in roles.roles_missing())
    assert roles.walls_raise().is_complete
    assert roles.roles_missing() == ()


def test_without_a_tenant_the_application_sees_no_row() -> None:
    """Not even what all tenants share."""
    with transaction.atomic():
        server = MCPServerFactory(tenant=None)
        ServerToolFactory(server=server)
        SystemConfigFactory(tenant=None)
        rows(f"SET LOCAL ROLE {APP_ROLE}")
        for wall in walls():
            count = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(wall.table))
            assert rows(count) == [(0,)], wall.table  # type: ignore[arg-type]
        transaction.set_rollback(True)


def test_the_application_does_not_have_the_operators_rights_by_itself() -> None:
    [(inherited, bypasses, is_super)] = rows(
        "SELECT pg_has_role(oid, %s, 'USAGE'), rolbypassrls, rolsuper FROM pg_roles"
        " WHERE rolname = %s",
        OPERATOR_ROLE,
        APP_ROLE,
    )
    assert (inherited, bypasses, is_super) == (False, False, False)


def test_a_login_has_its_time_outs_where_a_pooler_drops_them() -> None:
    [(settings,)] = rows(
        "SELECT s.setconfig FROM pg_db_role_setting AS s"
        " WHERE s.setrole = %s::regrole AND s.setdatabase = 0",
        APP_ROLE,
    )
    assert set(settings) >= {f"{name}={value}" for name, value in roles.LIMITS.items()}


@pytest.mark.usefixtures("repaired")
@pytest.mark.parametrize(
    "damage",
    [
        "ALTER TABLE mcp_servers DISABLE ROW LEVEL SECURITY",
        "ALTER TABLE mcp_servers NO FORCE ROW LEVEL SECURITY",
        "DROP POLICY tenant_reads ON mcp_servers",
        "ALTER POLICY tenant_reads ON mcp_servers USING (true)",
        "CREATE POLICY everybody ON mcp_servers USING (true)",
        "REVOKE SELECT ON mcp_servers FROM mcp_gateway_app",
        "GRANT DELETE ON audit_logs TO mcp_gateway_app",
        "GRANT UPDATE ON audit_logs TO mcp_gateway_operator",
        "GRANT SELECT ON users_groups TO mcp_gateway_app",
        "GRANT SELECT ON performance_monitoring TO mcp_gateway_app",
        "GRANT SELECT ON mcp_servers TO mcp_gateway_reader",
        "GRANT CREATE ON SCHEMA public TO mcp_gateway_app",
        "ALTER ROLE mcp_gateway_app INHERIT",
    ],
)
def test_what_was_changed_by_hand_is_put_right(damage: str) -> None:
    rows(damage)
    assert roles.walls_raise().done > 0
    assert roles.walls_raise() == roles.Raised(done=0)


def test_the_script_for_a_dba_makes_everything() -> None:
    script = roles.roles_script(owner="gateway", version=150_000)
    for role in (APP_ROLE, OPERATOR_ROLE, READER_ROLE):
        assert f'CREATE ROLE "{role}"' in script
    assert f'GRANT "{OPERATOR_ROLE}" TO "gateway";' in script
    assert "PASSWORD" not in script


def test_the_script_for_a_dba_may_be_run_twice() -> None:
    [(owner,)] = rows("SELECT current_user")
    with transaction.atomic():
        rows(roles.roles_script(owner=owner, version=connection.pg_version))
        transaction.set_rollback(True)


def _plan_as_app(query: LiteralString, table: str) -> str:
    with connection.cursor() as cursor:
        cursor.execute("SET ROLE mcp_gateway_app")
        try:
            cursor.execute(sql.SQL("EXPLAIN " + query).format(sql.Identifier(table)))
            return "\n".join(row[0] for row in cursor.fetchall())
        finally:
            cursor.execute("RESET ROLE")


def test_a_policy_finds_the_tenant_once_a_statement() -> None:
    """A sub-select without a reference outside is an InitPlan: not one call a row."""
    plan = _plan_as_app("SELECT FROM {}", "mcp_servers")
    assert "InitPlan" in plan
    filters = [line for line in plan.splitlines() if "Filter:" in line or "Cond:" in line]
    assert filters
    assert not [line for line in filters if "current_setting" in line]


@pytest.mark.parametrize(
    "table", ["server_tools", "server_resources", "server_prompts", "circuit_breakers"]
)
def test_lists_of_what_servers_have_look_servers_up_once(table: str) -> None:
    """See Note [IN to read, EXISTS to change]."""
    assert "hashed SubPlan" in _plan_as_app("SELECT FROM {} ORDER BY id DESC LIMIT 51", table)
