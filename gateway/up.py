"""From nothing to a running gateway: what the command `up` does, step by step."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import connections

from gateway import development
from gateway.children import Child, ChildError, Children
from gateway.defaults import DEFAULT_TENANT
from gateway.listening import check_address, url_of
from registry.db.crossing import acting_as_owner, crossing_tenants
from registry.db.embedded import DATABASE, Cluster, local_cluster
from registry.db.filelock import lock_alone, open_lock
from registry.models import Tenant
from security.models import User

__all__ = ["Running", "Wanted", "sample_url", "up", "wait_until_ready"]

READY_SECONDS = 45


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the command line asks for. `seed` None: on the first run of an embedded database."""

    host: str
    port: int
    workers: int
    seed: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What somebody needs to use the running gateway."""

    url: str
    server: str
    api_key: str
    database_url: str
    username: str
    password: str | None  # None: somebody changed it, and only they know it

    @property
    def mcp_url(self) -> str:
        return f"{self.url}/mcp/{self.server}"

    def as_json(self) -> dict[str, Any]:
        return {
            "url": self.url,
            "mcp_url": self.mcp_url,
            "server": self.server,
            "api_key": self.api_key,
            "database_url": self.database_url,
            "admin": {"username": self.username, "password": self.password},
        }


def up(
    wanted: Wanted,
    *,
    on_step: Callable[[str], None],
    on_error: Callable[[str], None],
    on_ready: Callable[[Running], None],
) -> None:
    """Start everything, report, and run until SIGTERM or Ctrl-C; then stop everything.

    `on_step` hears what is being done, `on_error` what the processes complain about, `on_ready`
    the result. A process that ends by itself is started again; CommandError when something cannot
    start, or keeps ending.
    """
    settings.LOCAL_DIR.mkdir(parents=True, exist_ok=True)
    with _signals_interrupt(), contextlib.suppress(KeyboardInterrupt), _only_one() as tell:
        port = check_address(wanted.host, wanted.port)
        url = url_of(wanted.host, port)
        tell(url)
        _allow_private_upstreams()
        on_step("Starting PostgreSQL" if settings.DATABASE_IS_EMBEDDED else "Connecting")
        with (
            _database() as cluster,
            _children(wanted.host, on_step=on_step, on_error=on_error) as children,
        ):

            def keep_database_up() -> None:
                if cluster is not None and cluster.revive():
                    on_error("PostgreSQL had ended; it was started again.")

            try:
                on_ready(_start(wanted, port=port, url=url, children=children, on_step=on_step))
                children.watch(each_round=keep_database_up)
            except ChildError as error:
                raise CommandError(str(error)) from None


def _start(
    wanted: Wanted, *, port: int, url: str, children: Children, on_step: Callable[[str], None]
) -> Running:
    sample = children.start("sample", "gateway.sample", "--port", "0", is_vital=False)
    on_step("Bringing the schema up to date")
    _run("init_db")
    with crossing_tenants():
        password, key = _lay_out(wanted.seed, sample, on_step)
    connections.close_all()
    on_step("Starting worker and server")
    children.start("worker", "gateway", "worker")
    address = ("--host", wanted.host, "--port", str(port), "--workers", str(wanted.workers))
    children.start("server", "gateway", "serve", *address)
    wait_until_ready(url, children)
    return Running(
        url=url,
        server=development.SAMPLE,
        api_key=key,
        database_url=_database_url(),
        username=development.ADMIN,
        password=password,
    )


def _lay_out(
    seed: bool | None, sample: Child, on_step: Callable[[str], None]
) -> tuple[str | None, str]:
    """What the database needs for a first look; the admin's password and the development key."""
    _run("optimize_db")
    tenant = Tenant.objects.get(slug=DEFAULT_TENANT)
    embedded = settings.DATABASE_IS_EMBEDDED
    first_run = embedded and not User.objects.exists()
    password = development.admin_password(folder=settings.LOCAL_DIR, may_reset=embedded)
    if seed or (seed is None and first_run):
        on_step("Adding development data (invented; --no-seed leaves it out)")
        with acting_as_owner():
            _run("seed_dev_data", verbosity=0)  # its keys are shown once, and not in a log
    key = development.development_key(folder=settings.LOCAL_DIR, tenant=tenant)
    on_step("Registering the sample server")
    url = sample_url(sample)
    sample.restart_with("gateway.sample", "--port", str(urlsplit(url).port))  # at its address
    development.sample_known(tenant=tenant, url=url)
    return password, key


def _run(command: str, *, verbosity: int = 1) -> None:
    """Run a command of ours; what it prints goes to .local/logs/setup.log."""
    with (settings.LOCAL_DIR / "logs" / "setup.log").open("a", encoding="utf-8") as log:
        log.write(f"== {command}\n")
        # Both: a command may print through Django or straight to standard output.
        with contextlib.redirect_stdout(log):
            call_command(command, stdout=log, verbosity=verbosity)


# ------------------------------------------------------------ the parts


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """SIGTERM and a closed terminal are what Ctrl-C is."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    yield


@contextlib.contextmanager
def _only_one() -> Iterator[Callable[[str], None]]:
    """One `up` a folder. Yields what tells later ones our address; CommandError names the first."""
    with open_lock(settings.LOCAL_DIR / "up.lock") as file:
        if not lock_alone(file):
            raise CommandError(
                f"`up` runs in {settings.LOCAL_DIR} already ({file.read().strip()}): "
                "use that one, or stop it first."
            )

        def tell(address: str) -> None:
            file.seek(0)
            file.truncate()
            file.write(f"process {os.getpid()}{address and ', '}{address}\n")
            file.flush()

        tell("")
        yield tell


def _database() -> AbstractContextManager[Cluster | None]:
    if settings.DATABASE_IS_EMBEDDED:
        return local_cluster(settings.LOCAL_DIR).running()
    return nullcontext()


def _database_url() -> str:
    if settings.DATABASE_IS_EMBEDDED:
        return local_cluster(settings.LOCAL_DIR).url(DATABASE)
    return os.environ["DATABASE_URL"]


@contextlib.contextmanager
def _children(
    host: str, *, on_step: Callable[[str], None], on_error: Callable[[str], None]
) -> Iterator[Children]:
    children = Children(
        env=_environment(host),
        folder=settings.BASE_DIR,
        logs=settings.LOCAL_DIR / "logs",
        on_error=on_error,
    )
    try:
        yield children
    finally:
        # Once is asking, twice is insisting.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: children.kill())
        told = _unheard(on_step)
        told("Stopping; calls in flight may end, Ctrl-C once more cuts them off")
        connections.close_all()
        children.stop(told=lambda name: told(f"Stopping the {name}"))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # PostgreSQL is stopped next, in any case
        if settings.DATABASE_IS_EMBEDDED:
            told("Stopping PostgreSQL")


def _unheard(on_step: Callable[[str], None]) -> Callable[[str], None]:
    """The same, though nobody listens any more: rich leaves the program over a closed pipe."""

    def told(step: str) -> None:
        with contextlib.suppress(OSError, SystemExit):
            on_step(step)

    return told


def _environment(host: str) -> dict[str, str]:
    """Ours, with the secrets, which `serve` and `worker` want from the environment."""
    hosts = [*settings.ALLOWED_HOSTS, *([] if host in {"0.0.0.0", "::"} else [host])]  # noqa: S104
    return {
        **os.environ,
        "GATEWAY_LOCAL_DIR": str(settings.LOCAL_DIR),
        "GATEWAY_ALLOW_PRIVATE_UPSTREAMS": "on",
        # The address is plain http, where browsers would not send secure cookies back.
        "GATEWAY_SECURE_COOKIES": os.environ.get("GATEWAY_SECURE_COOKIES") or "off",
        "SECRET_KEY": settings.SECRET_KEY,
        "ENCRYPTION_KEYS": ",".join(settings.ENCRYPTION_KEYS),
        "ALLOWED_HOSTS": ",".join(dict.fromkeys(hosts)),
    }


def _allow_private_upstreams() -> None:
    """For this process, which checks the sample's address itself."""
    settings.GATEWAY_ALLOW_PRIVATE_UPSTREAMS = True


def sample_url(sample: Child) -> str:
    try:
        return str(json.loads(sample.first_line.result(timeout=30))["url"])
    except (ChildError, TimeoutError, ValueError, KeyError):
        sample.check()
        raise CommandError(f"The sample server did not start; see {sample.log}.") from None


def wait_until_ready(url: str, children: Children) -> None:
    # The address is this machine's: a proxy of the environment could not reach it.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + READY_SECONDS
    answer = "it does not answer"
    while time.monotonic() < deadline:
        children.check()
        try:
            with direct.open(f"{url}/health/ready", timeout=5):
                return
        except urllib.error.HTTPError as error:
            answer = f"it answers {error.code}"
        except OSError:
            pass
        time.sleep(0.1)
    raise CommandError(f"The server is not ready after {READY_SECONDS} seconds ({answer}).")
