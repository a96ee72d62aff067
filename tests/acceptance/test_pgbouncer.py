"""The gateway as production runs it: roles with passwords, and a PgBouncer before PostgreSQL."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
import pytest

from registry.db.embedded import DATABASE, PORT, Cluster
from tests.acceptance.test_up import signs_in
from tests.mcp_server import mcp_over_http
from tests.peers import running_peer
from tests.serving import Gateway, environment, manage, port_now, start, stop, wait_for

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
pytestmark = [
    pytest.mark.xdist_group("pgbouncer"),
    pytest.mark.timeout(240),
    pytest.mark.skipif(PGBOUNCER is None, reason="needs PgBouncer"),
]

PASSWORDS = {"gateway": "owner's secret", "mcp_gateway_app": "app's secret"}
POOL_SIZE = 2
CALLERS = 8
CONFIG = """\
[databases]
{database} = host={socket} port={port} pool_size={pool_size}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {folder}/users.txt
pool_mode = transaction
ignore_startup_parameters = extra_float_digits, options
logfile = {folder}/pgbouncer.log
"""
# A person, and two tenants with servers and keys, made by the services that commands and admin use.
MAKE = """
import json
from monitoring.audit import Actor
from registry.models import Tenant
from registry.services import server_register
from security.models import User
from security.services import api_key_create
User.objects.create_superuser(username="admin", password="long enough for us")
actor, found = Actor(service_name="cli"), {}
for slug in ("one", "two"):
    tenant = Tenant.objects.create(name=slug, slug=slug)
    for number in range(3):
        name = f"{slug}-{number}"
        server_register(actor=actor, tenant=tenant, name=name, url=URL, defer_check=False)
    for name, scopes in {"calls": ["proxy"], "reads": ["read", "write", "metrics"]}.items():
        row, text = api_key_create(actor=actor, name=name, tenant=tenant, scopes=scopes)
        found[f"{slug} {name}"] = [str(row.pk), text]
print(json.dumps(found))
"""


@dataclass
class Site:
    """The gateways through PgBouncer: one that is told of changes, one that cannot be."""

    cluster: Cluster
    env: dict[str, str]
    told: Gateway
    deaf: Gateway
    keys: dict[str, tuple[str, str]]
    pooler: str  # PgBouncer's address, for psycopg
    answered: Counter[str] = field(default_factory=Counter)  # request ids of MCP answers

    def call(self, gateway: Gateway, key: str, slug: str) -> int:
        answer = gateway.call(key, slug)
        self.answered[answer.headers["x-request-id"]] += 1
        return int(answer.status_code)

    def superuser(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.cluster.url(DATABASE), autocommit=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A server that asks for passwords, with an owner who is no superuser."""
    # Not below pytest's folder: where root runs the tests PgBouncer is another user, who has to
    # pass through at any time, and each pytest that starts closes that folder to others.
    with TemporaryDirectory(prefix="mcp-gateway-pgbouncer-") as folder:
        Path(folder).chmod(0o711)
        yield from running_cluster(Path(folder))


def running_cluster(folder: Path) -> Iterator[Cluster]:
    hba = folder / "pg_hba.conf"
    hba.write_text("local all postgres trust\nlocal all all scram-sha-256\n")
    hba.chmod(0o644)
    # A zone that is not UTC: behind PgBouncer nothing sets the session's own.
    own = {"hba_file": str(hba), "timezone": "Asia/Kolkata", "fsync": "off"}
    cluster = Cluster(folder / "cluster", settings=own | {"max_connections": "40"})
    with cluster.running():
        with psycopg.connect(cluster.url(DATABASE), autocommit=True) as superuser:
            superuser.execute("CREATE ROLE gateway LOGIN CREATEROLE PASSWORD 'owner''s secret'")
            superuser.execute(f"ALTER DATABASE {DATABASE} OWNER TO gateway")
            superuser.execute("ALTER SCHEMA public OWNER TO gateway")
        yield cluster
    cluster.remove()


@contextmanager
def pgbouncer(cluster: Cluster, port: int) -> Iterator[None]:
    """PgBouncer on a port, as the user whom the server runs as: root may not run it."""
    folder = cluster.folder.parent / "pgbouncer"
    folder.mkdir()
    config = folder / "pgbouncer.ini"
    values = {"database": DATABASE, "socket": cluster._socket_folder, "port": PORT}
    more = {"pool_size": POOL_SIZE, "listen": port, "folder": folder}
    config.write_text(CONFIG.format(**values, **more))
    users = "".join(f'"{name}" "{password}"\n' for name, password in PASSWORDS.items())
    (folder / "users.txt").write_text(users)
    account: dict[str, Any] = {}
    if not os.geteuid():
        user = cluster._account
        account = {"user": user.uid, "group": user.gid, "extra_groups": []}
        for path in (folder, *folder.iterdir()):
            os.chown(path, user.uid, user.gid)
    assert PGBOUNCER
    process = subprocess.Popen([PGBOUNCER, "-q", config], **account)
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


def url(user: str, where: str) -> str:
    return f"postgresql://{user}:{PASSWORDS[user].replace(' ', '%20')}@{where}"


@pytest.fixture(scope="module")
def site(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """All of it as the README's "Production" and "Roles" say."""
    folder = tmp_path_factory.mktemp("site")
    direct = f"/{DATABASE}?host={cluster._socket_folder}&port={PORT}"
    ports = [port_now() for _ in range(3)]
    pooled = f"127.0.0.1:{ports[0]}/{DATABASE}"
    env = environment(
        folder,
        DATABASE_MAINTENANCE_URL=url("gateway", direct),
        DATABASE_DIRECT_URL=url("mcp_gateway_app", direct),
        DATABASE_URL=url("mcp_gateway_app", pooled),
    )
    with ExitStack() as stack:
        stack.enter_context(pgbouncer(cluster, ports[0]))
        peer = stack.enter_context(running_peer())
        manage(env, "init_db")
        with psycopg.connect(cluster.url(DATABASE), autocommit=True) as superuser:
            superuser.execute("ALTER ROLE mcp_gateway_app PASSWORD 'app''s secret'")
        made = manage(env, "shell", "-v", "0", "-c", MAKE.replace("URL", repr(peer.url)))
        keys = {name: tuple(key) for name, key in json.loads(made).items()}
        told = Gateway(env, port=ports[1], log=folder / "told.log")
        stack.callback(told.process.kill)
        without = {name: value for name, value in env.items() if name != "DATABASE_DIRECT_URL"}
        deaf = Gateway(without, port=ports[2], log=folder / "deaf.log")
        stack.callback(deaf.process.kill)
        for gateway in (told, deaf):
            wait_for(lambda: gateway.ready()[0] == 200)  # noqa: B023
        yield Site(cluster, env, told, deaf, keys, url("mcp_gateway_app", pooled))
        assert [stop(gateway.process) < 12 for gateway in (told, deaf)] == [True, True]
        assert (told.process.returncode, deaf.process.returncode) == (0, 0)


def in_threads(work: Callable[[int], None], *, times: int) -> None:
    with ThreadPoolExecutor(CALLERS) as pool:
        for done in [pool.submit(work, number) for number in range(times)]:
            done.result(60)


def test_every_call_is_answered_and_leaves_one_row(site: Site) -> None:
    slugs = [(f"{tenant} calls", f"{tenant}-{n}") for tenant in ("one", "two") for n in range(3)]

    def call(number: int) -> None:
        key, slug = slugs[number % len(slugs)]
        gateway = (site.told, site.deaf)[number % 2]
        assert site.call(gateway, site.keys[key][1], slug) == 200

    in_threads(call, times=120)
    assert len(site.answered) == 120

    def logged() -> Counter[str]:
        query = "SELECT request_id::text, count(*) FROM request_logs GROUP BY 1"
        with site.superuser() as superuser:
            return Counter(dict(superuser.execute(query).fetchall()))

    wait_for(lambda: len(logged()) >= len(site.answered))
    assert logged() == site.answered


def test_two_tenants_in_parallel_never_see_one_another(site: Site) -> None:
    with site.superuser() as superuser:
        found = superuser.execute("SELECT slug, id::text FROM tenants").fetchall()
    tenants: dict[str, str] = dict(found)
    seen: Counter[str] = Counter()

    def look(number: int) -> None:
        tenant = ("one", "two")[number % 2]
        key = site.keys[f"{tenant} reads"][1]
        gateway = (site.told, site.deaf)[number // 2 % 2]
        path = ("servers", "audit-logs", "request-logs", "summaries/tenant-usage")[number // 4 % 4]
        answer = gateway.api(key, path)
        assert answer.status_code == 200, answer.text
        text = answer.text
        other = ({"one", "two"} - {tenant}).pop()
        assert tenants[other] not in text
        assert f"{other}-" not in text
        seen[path] += tenants[tenant] in text or f"{tenant}-" in text

    in_threads(look, times=96)
    assert min(seen.values()) == 24, seen


def test_a_person_signs_in(site: Site) -> None:
    for gateway in (site.told, site.deaf):
        assert signs_in(gateway.url, username="admin", password="long enough for us")


def test_a_revoked_key_is_refused(site: Site) -> None:
    """By the one that listens within moments, by the other at its next call."""
    key_id, key = site.keys["two calls"]
    assert {site.call(gateway, key, "two-0") for gateway in (site.told, site.deaf)} == {200}
    with site.superuser() as superuser:
        superuser.execute("UPDATE enhanced_api_keys SET is_active = false WHERE id = %s", [key_id])
    try:
        assert site.call(site.deaf, key, "two-0") == 401
        wait_for(lambda: site.call(site.told, key, "two-0") == 401, seconds=3)
    finally:
        with site.superuser() as superuser:
            superuser.execute(
                "UPDATE enhanced_api_keys SET is_active = true WHERE id = %s", [key_id]
            )
    sentence = "no connection that hears of changes, so each call asks the database"
    assert sentence in site.deaf.log.read_text()
    assert sentence not in site.told.log.read_text()


def test_time_outs_hold_and_nothing_of_a_session_is_used(site: Site) -> None:
    wanted = {
        "statement_timeout": "30s",
        "lock_timeout": "5s",
        "idle_in_transaction_session_timeout": "30s",
        "jit": "off",
    }
    at_once = threading.Barrier(POOL_SIZE)

    def look(_number: int) -> None:
        with psycopg.connect(site.pooler, options="-c statement_timeout=7s") as own:
            at_once.wait(10)  # each holds a server's connection of its own
            found = {name: own.execute(f"SHOW {name}").fetchone()[0] for name in wanted}
            assert found == wanted
            names = "SELECT name FROM pg_prepared_statements UNION SELECT name FROM pg_cursors"
            assert set(own.execute(names).fetchall()) <= {("",)}
            at_once.wait(10)

    in_threads(look, times=POOL_SIZE)
    with site.superuser() as superuser:
        cursors = superuser.execute(
            "SELECT query FROM pg_stat_statements WHERE query ~* '^(DECLARE|FETCH|PREPARE)'"
            " AND userid = 'mcp_gateway_app'::regrole"
        )
        assert cursors.fetchall() == []


def test_the_worker_goes_around_it(site: Site, tmp_path: Path) -> None:
    worker = start(site.env, tmp_path / "worker.log", "worker", "--concurrency", "1")
    try:
        with mcp_over_http() as address:
            body = {"name": "New", "slug": "new", "endpoint_url": address}
            key = site.keys["one reads"][1]
            assert site.told.api(key, "servers", json=body).status_code == 201

            def is_healthy() -> bool:
                [row] = site.told.api(key, "servers?slug=new").json()["results"]
                return bool(row["health_status"] == "healthy")

            wait_for(is_healthy)
            wait_for(lambda: site.told.api(key, "tools").json()["results"])
    finally:
        stop(worker)
    assert worker.returncode == 0, (tmp_path / "worker.log").read_text()


@pytest.mark.parametrize("user", ["gateway", "mcp_gateway_app"])
def test_what_needs_a_session_refuses_to_go_through_it(site: Site, user: str) -> None:
    through = url(user, site.pooler.rpartition("@")[2])
    env = {name: value for name, value in site.env.items() if not name.startswith("DATABASE_")}
    said = manage(env | {"DATABASE_URL": through}, "optimize_db", status=1)
    assert "Error: The database is reached through a transaction pooler" in said, said
    assert "set DATABASE_DIRECT_URL to the server itself" in said
    assert "Traceback" not in said
