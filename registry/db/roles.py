"""Roles, grants and row-level security: what is declared, compared with what the database has.

Roles belong to the whole cluster and may be shared by several databases. Whoever may not make
them gets the statements to hand to a DBA. The rest is the owner's to do, one transaction a table:
the short lock that a policy takes is never held while another one is waited for. Where nothing
differs, nothing is locked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, LiteralString

from django.apps import apps
from django.db import DatabaseError, connections, transaction
from psycopg import errors, sql

from registry.db.tenancy import APP_ROLE, OPERATOR_ROLE, READER_ROLE
from registry.db.walls import Wall, expression, walls

__all__ = [
    "Raised",
    "Step",
    "passes_walls",
    "roles_missing",
    "roles_script",
    "roles_script_here",
    "tables_foreign",
    "walls_pending",
    "walls_raise",
]

# What a login of the gateway gets even where a pooler drops what it asks for at its start.
LIMITS: dict[str, str] = {
    "statement_timeout": "30s",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "30s",
    "jit": "off",
}
# Tables without tenants that a tenant's request needs: it asks the worker for things, and its
# summaries have to know how far back the rollups reach.
WITHOUT_TENANT: dict[str, frozenset[str]] = {
    "procrastinate_jobs": frozenset({"SELECT", "INSERT"}),
    "procrastinate_events": frozenset({"INSERT"}),
    "request_rollup_horizons": frozenset({"SELECT"}),
}
# Nothing for dashboards: who may sign in and what they clicked, and the queue's inside.
CLOSED_TO_READER = ("auth_", "django_", "procrastinate_", "users_")
EVERYTHING = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE"})
READ = frozenset({"SELECT"})
# Two that make the same role at once, or change the same row of a catalogue.
_LOST_RACES = (
    errors.DuplicateObject,
    errors.UniqueViolation,
    errors.InternalError_,  # "tuple concurrently updated"
    errors.DeadlockDetected,
)
ATTEMPTS = 10


@dataclass(frozen=True, slots=True)
class Step:
    """One statement, why it is there, and whether the walls stand without it."""

    statement: sql.Composed
    is_optional: bool = False
    makes: str = ""  # the role that it makes: what cannot be done twice

    def text(self) -> str:
        return self.statement.as_string(None) + ";"

    def repeatable(self) -> str:
        """The same for a script: a role that somebody else has made meanwhile is no error."""
        if not self.makes:
            return self.text() + ("  -- can be done without" if self.is_optional else "")
        guarded = sql.SQL(
            "IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {name}) THEN {make}; END IF;"
        ).format(name=sql.Literal(self.makes), make=self.statement)
        return sql.SQL("DO $$BEGIN {} END$$;").format(guarded).as_string(None)


@dataclass(frozen=True, slots=True)
class Raised:
    """What was done, and what a DBA has to do."""

    done: int
    refused: tuple[Step, ...] = ()
    walled: bool = True  # False: roles or memberships lack, so the walls were not touched
    foreign: tuple[Step, ...] = ()  # what gives tables of somebody else to their owner

    @property
    def has_walls(self) -> bool:
        return self.walled and all(step.is_optional for step in self.refused)

    @property
    def is_complete(self) -> bool:
        return self.has_walls and not self.foreign


# --------------------------------------------------------------------------- the whole of it


def walls_raise(*, using: str = "default") -> Raised:
    """Make roles, grants and policies what they are declared to be, as the tables' owner.

    Safe to repeat, and when several do it at once. A table that is in use for longer than the
    connection's lock_timeout is a database error like any other. No wall is raised before every
    role and membership is there: an owner without the operator's rights would see no row.
    """
    done, refused = _make_roles(using)
    if any(not step.is_optional for step in refused):
        return Raised(done, refused, walled=False)
    for table in _differing(using):
        try:
            made = _retried(lambda name=table: _make_table(using, name))  # type: ignore[misc]
        except DatabaseError as error:
            if not isinstance(error.__cause__, errors.InsufficientPrivilege):
                raise
            made = 0  # somebody else's table
            refused += _steps_of(using, table)
        if made:  # of who may not grant what it holds, PostgreSQL takes it, warns and does nothing
            left = _steps_of(using, table)
            made, refused = made - len(left), refused + left
        done += made
    done += _retried(lambda: _make_rest(using))
    # Of who does not own the schema PostgreSQL takes these, warns and does nothing.
    left = tuple(_schema_steps(using))
    return Raised(done - len(left), refused + left)


def walls_pending(
    *, using: str = "default", new_views: Iterable[str] = ()
) -> tuple[Step, ...] | None:
    """What of grants and policies `walls_raise` would change now. None: roles have to come first.

    `new_views` are yet to be made and have no grants. Optional rights of roles are left out.
    """
    if any(not step.is_optional for step in roles_missing(using=using)):
        return None
    tables = _tables(using)
    facts = _read_facts(using, tables)
    steps = [step for table in tables for step in _table_steps(facts, table)]
    views = [_new_view_grant(name) for name in new_views]
    return (*steps, *_rest_steps(using), *views)


def _new_view_grant(name: str) -> Step:
    return _step(
        "GRANT SELECT ON {view} TO {operator}, {reader}",
        view=sql.Identifier(name),
        operator=sql.Identifier(OPERATOR_ROLE),
        reader=sql.Identifier(READER_ROLE),
    )


def roles_script(*, owner: str, version: int) -> str:
    """All that a DBA has to run for an owner, on a cluster that has none of it yet."""
    bare = _Cluster(owner=owner, owner_is_super=False, version=version)
    return _script(_role_steps(bare))


def roles_script_here(*, using: str = "default") -> str:
    """What a DBA has to run for whoever this connection is: what is missing. May be run twice."""
    cluster = _read_cluster(using)
    database = connections[using].settings_dict
    where = f"{database['NAME']} on {database['HOST'] or 'this machine'}"
    return (
        f"-- For the database {where}, PostgreSQL {cluster.version // 10_000}, and {cluster.owner},"
        f" who owns its tables.\n{_script(_role_steps(cluster)) or '-- Nothing is missing.'}"
    )


def _script(steps: Iterable[Step]) -> str:
    return "\n".join(step.repeatable() for step in steps)


def roles_missing(*, using: str = "default") -> tuple[Step, ...]:
    """What the roles of this cluster lack."""
    return tuple(_role_steps(_read_cluster(using)))


def _make_roles(using: str) -> tuple[int, tuple[Step, ...]]:
    """How many statements ran, and what is missing still: that needs somebody with more rights."""
    done: set[str] = set()
    refused: set[str] = set()
    for _ in range(ATTEMPTS):
        missing = roles_missing(using=using)
        if all(step.text() in done | refused for step in missing):
            break
        for step in missing:
            if step.text() in done | refused:
                continue
            try:
                _run(using, step)
                done.add(step.text())
            except DatabaseError as error:
                if _lost_race(error):
                    break  # somebody else is at it: look again what is left
                refused.add(step.text())
    return len(done), roles_missing(using=using)


def _make_table(using: str, table: str) -> int:
    steps = _steps_of(using, table)
    if steps:
        with transaction.atomic(using=using):
            for step in steps:
                _run(using, step)
            _sign_policies(using, table)
    return len(steps)


def _make_rest(using: str) -> int:
    steps = tuple(_rest_steps(using))
    for step in steps:
        _run(using, step)
    return len(steps)


def _retried(work: Callable[[], int]) -> int:
    for _ in range(ATTEMPTS - 1):
        try:
            return work()
        except DatabaseError as error:
            if not _lost_race(error):
                raise
    return work()


def _lost_race(error: DatabaseError) -> bool:
    return isinstance(error.__cause__, _LOST_RACES)


def _run(using: str, step: Step) -> None:
    with transaction.atomic(using=using), connections[using].cursor() as cursor:
        cursor.execute(step.statement)


def _rows(
    using: str, query: str, parameters: list[Any] | dict[str, Any] | None = None
) -> list[tuple[Any, ...]]:
    with connections[using].cursor() as cursor:
        cursor.execute(query, parameters)
        return list(cursor.fetchall())


def _step(template: LiteralString, **parts: sql.Composable) -> Step:
    return Step(sql.SQL(template).format(**parts))


def _optional(template: LiteralString, **parts: sql.Composable) -> Step:
    return Step(sql.SQL(template).format(**parts), is_optional=True)


def _making(role: str, template: LiteralString) -> Step:
    return Step(sql.SQL(template).format(role=sql.Identifier(role)), makes=role)


# --------------------------------------------------------------------------- who owns, who passes


_FOREIGN = """
SELECT c.relname FROM pg_class AS c
  JOIN pg_class AS root ON root.oid = coalesce(pg_partition_root(c.oid), c.oid)
 WHERE root.relnamespace = current_schema()::regnamespace AND root.relname = ANY(%s)
   AND c.relkind IN ('r', 'p')
   AND (NOT pg_has_role(c.relowner, 'USAGE') OR pg_get_userbyid(c.relowner) = ANY(%s))
 ORDER BY c.relname
"""
_PASSES = """
SELECT rolsuper, rolbypassrls, pg_has_role(oid, (
           SELECT oid FROM pg_roles WHERE rolname = %s), 'USAGE')
  FROM pg_roles WHERE rolname = %s
"""


def tables_foreign(*, using: str = "default") -> tuple[Step, ...]:
    """What a superuser runs to give this connection's user those of our tables that it lacks.

    Partitions, too. A table of one of our own roles is nobody's who maintains it: whoever owns it
    may take its wall away.
    """
    ours = [APP_ROLE, OPERATOR_ROLE, READER_ROLE]
    [(owner,)] = _rows(using, "SELECT current_user")
    return tuple(
        _step(
            "ALTER TABLE {table} OWNER TO {owner}",
            table=sql.Identifier(table),
            owner=sql.Identifier(owner),
        )
        for (table,) in _rows(using, _FOREIGN, [_tables(using), ours])
    )


def passes_walls(login: str, *, using: str = "default") -> str | None:
    """Why no wall holds who logs in with this name, in words; None: walls do, or nobody does."""
    [(is_super, bypasses, crosses)] = _rows(using, _PASSES, [OPERATOR_ROLE, login]) or [(None,) * 3]
    if is_super:
        return "is a superuser"
    if bypasses:
        return "has BYPASSRLS"
    return f"has the rights of {OPERATOR_ROLE} at any time" if crosses else None


# --------------------------------------------------------------------------- roles


@dataclass(frozen=True, slots=True)
class _Role:
    can_login: bool
    inherits: bool
    bypasses: bool
    is_super: bool = False


@dataclass(frozen=True, slots=True)
class _Cluster:
    """What is there of the roles, and who asks."""

    owner: str
    owner_is_super: bool
    version: int
    roles: dict[str, _Role] = field(default_factory=dict)
    # (role, member) -> does the member have the role's rights without taking it?
    members: dict[tuple[str, str], bool] = field(default_factory=dict)
    limits: frozenset[str] = frozenset()
    reads_statistics: bool = False


_ROLES = """
SELECT rolname, rolcanlogin, rolinherit, rolbypassrls, rolsuper FROM pg_roles
 WHERE rolname = ANY(%s)
"""
_MEMBERS_15 = """
SELECT role.rolname, member.rolname, member.rolinherit
  FROM pg_auth_members AS m
  JOIN pg_roles AS role ON role.oid = m.roleid
  JOIN pg_roles AS member ON member.oid = m.member
 WHERE role.rolname = ANY(%s)
"""
# The creator of a role is a member that may neither inherit from it nor take it.
_MEMBERS_16 = """
SELECT role.rolname, member.rolname, bool_or(m.inherit_option)
  FROM pg_auth_members AS m
  JOIN pg_roles AS role ON role.oid = m.roleid
  JOIN pg_roles AS member ON member.oid = m.member
 WHERE role.rolname = ANY(%s)
 GROUP BY 1, 2 HAVING bool_or(m.set_option)
"""
# The asker's own rights, which may come by way of another role.
_HELD = """
SELECT role.rolname FROM pg_roles AS role
 WHERE role.rolname = ANY(%s) AND pg_has_role(role.oid, 'USAGE')
   AND pg_has_role(role.oid, CASE
           WHEN current_setting('server_version_num')::integer < 160000
           THEN 'MEMBER' ELSE 'SET' END)
"""
_LIMITS = """
SELECT split_part(unnest(s.setconfig), '=', 1)
  FROM pg_db_role_setting AS s JOIN pg_roles AS r ON r.oid = s.setrole
 WHERE r.rolname = %s AND s.setdatabase = 0
"""


def _read_cluster(using: str) -> _Cluster:
    names = [APP_ROLE, OPERATOR_ROLE, READER_ROLE]
    [(owner, is_super, version)] = _rows(
        using,
        "SELECT current_user, rolsuper, current_setting('server_version_num')::integer"
        " FROM pg_roles WHERE rolname = current_user",
    )
    roles = {row[0]: _Role(*row[1:]) for row in _rows(using, _ROLES, [names])}
    members = _rows(using, _MEMBERS_16 if version >= 160_000 else _MEMBERS_15, [names])
    members += [(role, owner, True) for (role,) in _rows(using, _HELD, [names])]
    statistics = OPERATOR_ROLE in roles and _rows(
        using, "SELECT pg_has_role(%s, 'pg_read_all_stats', 'USAGE')", [OPERATOR_ROLE]
    ) == [(True,)]
    return _Cluster(
        owner=owner,
        owner_is_super=is_super,
        version=version,
        roles=roles,
        members={(role, member): inherits for role, member, inherits in members},
        limits=frozenset(row[0] for row in _rows(using, _LIMITS, [APP_ROLE])),
        reads_statistics=statistics,
    )


def _role_steps(cluster: _Cluster) -> Iterator[Step]:
    yield from _missing_roles(cluster)
    yield from _missing_memberships(cluster)
    app, operator = sql.Identifier(APP_ROLE), sql.Identifier(OPERATOR_ROLE)
    for name, value in LIMITS.items():
        if name not in cluster.limits:  # another value is somebody's decision
            yield _optional(
                "ALTER ROLE {app} SET {name} = {value}",
                app=app,
                name=sql.Identifier(name),
                value=sql.Literal(value),
            )
    known = cluster.roles.get(OPERATOR_ROLE)
    if known is None or not known.bypasses:
        # Policies let it through as well; but COPY is refused where they are asked.
        yield _optional("ALTER ROLE {role} BYPASSRLS", role=operator)
    if not cluster.reads_statistics:
        # Figures of statements that other roles ran.
        yield _optional("GRANT pg_read_all_stats TO {role}", role=operator)


def _missing_roles(cluster: _Cluster) -> Iterator[Step]:
    app = cluster.roles.get(APP_ROLE)
    if app is None:
        yield _making(APP_ROLE, "CREATE ROLE {role} LOGIN NOINHERIT")
    else:
        yield from _wrong_attributes(app)
    for name in (OPERATOR_ROLE, READER_ROLE):
        if name not in cluster.roles:
            yield _making(name, "CREATE ROLE {role} NOLOGIN")


def _wrong_attributes(app: _Role) -> Iterator[Step]:
    role = sql.Identifier(APP_ROLE)
    if app.is_super:  # alone: who is no superuser may not even name it
        yield _step("ALTER ROLE {role} NOSUPERUSER", role=role)
    if app.inherits or app.bypasses:
        # With the operator's rights by inheritance it would see every tenant at any time.
        yield _step("ALTER ROLE {role} NOINHERIT NOBYPASSRLS", role=role)
    if not app.can_login:
        yield _step("ALTER ROLE {role} LOGIN", role=role)


def _missing_memberships(cluster: _Cluster) -> Iterator[Step]:
    """The application takes the operator's role when it needs it; the owner has its rights."""
    wanted = [(OPERATOR_ROLE, APP_ROLE, False)]
    if not cluster.owner_is_super:
        wanted += [(OPERATOR_ROLE, cluster.owner, True), (APP_ROLE, cluster.owner, True)]
    for role, member, inherits in wanted:
        held = cluster.members.get((role, member))
        if held is None or (held != inherits and cluster.version >= 160_000):
            yield _membership(role, member, inherits=inherits, version=cluster.version)
        elif inherits and not held:  # a member already: there the role itself inherits or not
            yield _step("ALTER ROLE {member} INHERIT", member=sql.Identifier(member))


def _membership(role: str, member: str, *, inherits: bool, version: int) -> Step:
    names = {"role": sql.Identifier(role), "member": sql.Identifier(member)}
    if version < 160_000:  # there the member's own INHERIT decides
        return _step("GRANT {role} TO {member}", **names)
    if inherits:
        return _step("GRANT {role} TO {member} WITH INHERIT TRUE, SET TRUE", **names)
    return _step("GRANT {role} TO {member} WITH INHERIT FALSE, SET TRUE", **names)


# --------------------------------------------------------------------------- tables


def _tables(using: str) -> list[str]:
    """Our tables that there are: of models and of the queue, parents and not partitions."""
    models = apps.get_models(include_auto_created=True)
    names = sorted({model._meta.db_table for model in models} | {"django_migrations"})
    found = _rows(
        using,
        "SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace"
        " AND relkind IN ('r', 'p') AND NOT relispartition AND relname = ANY(%s)",
        [names],
    )
    return sorted(row[0] for row in found)


def _differing(using: str) -> list[str]:
    """The tables about which something is to be done; most of the time there is none."""
    tables = _tables(using)
    facts = _read_facts(using, tables)
    return [table for table in tables if any(_table_steps(facts, table))]


def _steps_of(using: str, table: str) -> tuple[Step, ...]:
    """By what the table has now."""
    return tuple(_table_steps(_read_facts(using, [table]), table))


def _table_steps(facts: _Facts, table: str) -> Iterator[Step]:
    wall = _wall_of(table)
    yield from _grant_steps(facts.grants, table, _privileges(table, wall))
    yield from _reader_steps(facts, table, wall)
    if wall is not None:
        yield from _flag_steps(facts, table)
        yield from _policy_steps(facts, wall)


def _wall_of(table: str) -> Wall | None:
    return next((wall for wall in walls() if wall.table == table), None)


def _privileges(table: str, wall: Wall | None) -> dict[str, frozenset[str]]:
    """What each role may do with a table; which of its rows is the policies' to say."""
    if wall is None:
        return {APP_ROLE: WITHOUT_TENANT.get(table, frozenset()), OPERATOR_ROLE: EVERYTHING}
    added = frozenset({"INSERT"}) if wall.check else frozenset()
    changed = frozenset({"UPDATE", "DELETE"}) if wall.change else frozenset()
    operator = EVERYTHING - {"UPDATE", "DELETE"} if wall.append_only else EVERYTHING
    return {APP_ROLE: READ | added | changed, OPERATOR_ROLE: operator}


_Grants = dict[str, list[tuple[str, str]]]  # a relation's: role and privilege


@dataclass(frozen=True, slots=True)
class _Facts:
    """What relations have, by name: read together, for there are many and each answer is short."""

    grants: _Grants
    columns: dict[str, list[tuple[str, bool]]]  # name, and whether the read-only role reads it
    flags: dict[str, list[tuple[bool, bool]]]  # row-level security: enabled, forced
    policies: dict[str, list[tuple[str, str, str]]]  # name, signature, shape


_GRANTS = """
SELECT t.relname, grantee.rolname, acl.privilege_type
  FROM pg_class AS t
 CROSS JOIN LATERAL aclexplode(t.relacl) AS acl
  JOIN pg_roles AS grantee ON grantee.oid = acl.grantee
 WHERE t.relnamespace = current_schema()::regnamespace AND t.relname = ANY(%(names)s)
   AND grantee.rolname = ANY(%(roles)s)
"""
_COLUMNS = """
SELECT t.relname, a.attname, has_column_privilege(%(reader)s, t.oid, a.attnum, 'SELECT')
  FROM pg_class AS t JOIN pg_attribute AS a ON a.attrelid = t.oid
 WHERE t.relnamespace = current_schema()::regnamespace AND t.relname = ANY(%(names)s)
   AND a.attnum > 0 AND NOT a.attisdropped
"""
_FLAGS = """
SELECT t.relname, t.relrowsecurity, t.relforcerowsecurity
  FROM pg_class AS t
 WHERE t.relnamespace = current_schema()::regnamespace AND t.relname = ANY(%(names)s)
"""
_POLICIES = """
SELECT t.relname, p.polname, coalesce(obj_description(p.oid, 'pg_policy'), ''),
       concat_ws('|', p.polcmd, p.polpermissive, p.polroles::text,
                 pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))
  FROM pg_class AS t JOIN pg_policy AS p ON p.polrelid = t.oid
 WHERE t.relnamespace = current_schema()::regnamespace AND t.relname = ANY(%(names)s)
"""


def _read_facts(using: str, names: list[str]) -> _Facts:
    secretive = [wall.table for wall in walls() if wall.secret and wall.table in names]
    return _Facts(
        grants=_read_grants(using, names),
        columns=_by_relation(using, _COLUMNS, names=secretive, reader=READER_ROLE),
        flags=_by_relation(using, _FLAGS, names=names),
        policies=_by_relation(using, _POLICIES, names=names),
    )


def _read_grants(using: str, names: list[str]) -> _Grants:
    roles = [APP_ROLE, OPERATOR_ROLE, READER_ROLE]
    return _by_relation(using, _GRANTS, names=names, roles=roles)


def _by_relation(using: str, query: str, **parameters: Any) -> dict[str, list[Any]]:
    """Rows by their first column, without it."""
    found: dict[str, list[Any]] = {}
    for name, *row in _rows(using, query, parameters):
        found.setdefault(name, []).append(tuple(row))
    return found


def _grant_steps(
    grants: _Grants, relation: str, wanted: dict[str, frozenset[str]]
) -> Iterator[Step]:
    """GRANT what is missing, REVOKE what is too much."""
    held: dict[str, set[str]] = {role: set() for role in wanted}
    for role, privilege in grants.get(relation, []):
        if role in held:
            held[role].add(privilege)
    for role, privileges in wanted.items():
        names = {"table": sql.Identifier(relation), "role": sql.Identifier(role)}
        if missing := sorted(privileges - held[role]):
            yield _step("GRANT {what} ON {table} TO {role}", what=_list(missing), **names)
        if excess := sorted(held[role] - privileges):
            yield _step("REVOKE {what} ON {table} FROM {role}", what=_list(excess), **names)


def _list(keywords: list[str]) -> sql.Composable:
    # Keywords of GRANT, from this module or from the catalogue.
    return sql.SQL(", ").join(sql.SQL(word) for word in keywords)


def _reader_steps(facts: _Facts, table: str, wall: Wall | None) -> Iterator[Step]:
    """SELECT for dashboards, but for the columns that are secret."""
    if wall is None or not wall.secret:
        closed = table.startswith(CLOSED_TO_READER)
        wanted = {READER_ROLE: frozenset() if closed else READ}
        yield from _grant_steps(facts.grants, table, wanted)
        return
    columns = facts.columns[table]
    names = {"table": sql.Identifier(table), "role": sql.Identifier(READER_ROLE)}
    if any(readable for name, readable in columns if name in wall.secret):
        yield _step("REVOKE SELECT ON {table} FROM {role}", **names)
        columns = [(name, False) for name, _ in columns]
    open_ones = [name for name, readable in columns if not readable and name not in wall.secret]
    if open_ones:
        listed = sql.SQL(", ").join(map(sql.Identifier, open_ones))
        yield _step("GRANT SELECT ({columns}) ON {table} TO {role}", columns=listed, **names)


def _flag_steps(facts: _Facts, table: str) -> Iterator[Step]:
    [(enabled, forced)] = facts.flags[table]
    if not enabled:
        yield _step("ALTER TABLE {t} ENABLE ROW LEVEL SECURITY", t=sql.Identifier(table))
    if not forced:  # the owner too: it passes because it has the operator's rights
        yield _step("ALTER TABLE {t} FORCE ROW LEVEL SECURITY", t=sql.Identifier(table))


# --------------------------------------------------------------------------- policies


def _policies(wall: Wall) -> dict[str, sql.Composed]:
    """Each policy's name and what follows `CREATE POLICY name ON table`."""
    operator, reader = sql.Identifier(OPERATOR_ROLE), sql.Identifier(READER_ROLE)
    using, check = sql.SQL(" USING ({})").format, sql.SQL(" WITH CHECK ({})").format
    made = {
        "tenant_reads": sql.SQL("FOR SELECT") + using(expression(wall.read)),
        "operator_crosses": sql.SQL("TO {} USING (true) WITH CHECK (true)").format(operator),
        "reader_reads": sql.SQL("FOR SELECT TO {} USING (true)").format(reader),
    }
    if wall.check:
        made["tenant_adds"] = sql.SQL("FOR INSERT") + check(expression(wall.check))
    if wall.change:
        change = using(expression(wall.change))
        made["tenant_changes"] = sql.SQL("FOR UPDATE") + change + check(expression(wall.check))
        made["tenant_removes"] = sql.SQL("FOR DELETE") + change
    return made


def _policy_steps(facts: _Facts, wall: Wall) -> Iterator[Step]:
    """Those that are missing or are not what they were signed as; foreign ones go."""
    table = sql.Identifier(wall.table)
    wanted = _policies(wall)
    held: set[str] = set()
    for name, signature, shape in facts.policies.get(wall.table, []):
        if name in wanted and signature == _signature(wanted[name], shape):
            held.add(name)
        else:
            yield _step("DROP POLICY {name} ON {table}", name=sql.Identifier(name), table=table)
    for name, rest in wanted.items():
        if name not in held:
            yield _step(
                "CREATE POLICY {name} ON {table} {rest}",
                name=sql.Identifier(name),
                table=table,
                rest=rest,
            )


def _sign_policies(using: str, table: str) -> None:
    """Keep of each policy what was declared and what PostgreSQL made of it.

    PostgreSQL prints expressions in its own words, so a change by hand shows in the second half
    and a change of the declaration in the first.
    """
    wall = _wall_of(table)
    wanted = _policies(wall) if wall else {}
    quoted = sql.Identifier(table)
    held = _by_relation(using, _POLICIES, names=[table])
    for name, signature, shape in held.get(table, []):
        expected = _signature(wanted[name], shape)
        if signature != expected:
            comment = _step(
                "COMMENT ON POLICY {name} ON {table} IS {text}",
                name=sql.Identifier(name),
                table=quoted,
                text=sql.Literal(expected),
            )
            _run(using, comment)


def _signature(declared: sql.Composed, shape: str) -> str:
    halves = (sha256(text.encode()).hexdigest()[:16] for text in (declared.as_string(None), shape))
    return "Made by init_db from walls.py: " + " ".join(halves)


# --------------------------------------------------------------------------- views, sequences

_RELATIONS = """
SELECT c.relname, c.relkind::text
  FROM pg_class AS c
 WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('v', 'm', 'S')
   AND pg_has_role(current_user, c.relowner, 'USAGE')
   AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.objid = c.oid AND d.deptype = 'e')
 ORDER BY c.relname
"""


def _rest_steps(using: str) -> Iterator[Step]:
    """The schema, and in it the views, for everybody who looks across tenants, and sequences."""
    yield from _schema_steps(using)
    relations = _rows(using, _RELATIONS)
    grants = _read_grants(using, [name for name, _ in relations])
    for name, kind in relations:
        if kind == "S":
            use = frozenset({"USAGE"})
            yield from _grant_steps(grants, name, {APP_ROLE: use, OPERATOR_ROLE: use})
        else:  # a view reads as its owner: through it the application would see every tenant
            yield from _grant_steps(
                grants, name, {APP_ROLE: frozenset(), OPERATOR_ROLE: READ, READER_ROLE: READ}
            )


def _schema_steps(using: str) -> Iterator[Step]:
    roles = [APP_ROLE, OPERATOR_ROLE, READER_ROLE]
    found = _rows(
        using,
        "SELECT role, current_schema(), has_schema_privilege(role, current_schema(), 'USAGE'),"
        " has_schema_privilege(role, current_schema(), 'CREATE') FROM unnest(%s::text[]) AS role",
        [roles],
    )
    for role, schema, may_use, may_create in found:
        names = {"schema": sql.Identifier(schema), "role": sql.Identifier(role)}
        if not may_use:
            yield _step("GRANT USAGE ON SCHEMA {schema} TO {role}", **names)
        if may_create:
            yield _step("REVOKE CREATE ON SCHEMA {schema} FROM {role}, PUBLIC", **names)
