"""One run of the soak, from an empty scratch database to what was found."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from django.conf import settings
from django.core.management import call_command
from django.db import connections
from django.utils.timezone import now

from gateway.bench.samples import Growth, Memory, Sample, growths, memories, sample_take
from gateway.bench.steady import Hurry, Load, loading
from gateway.children import Child, Children
from gateway.defaults import DEFAULT_TENANT
from gateway.development import PLENTY, SAMPLE, sample_known
from gateway.jobs import PERIODIC
from gateway.listening import check_address
from gateway.up import sample_url, wait_until_ready
from monitoring.audit import Actor
from registry.db.circumstances import load_average, machine_facts, one_line, server_facts
from registry.db.embedded import local_cluster
from registry.db.scratch import connect, scratch_database
from registry.db.tenancy import APP_ROLE
from registry.models import Tenant
from security.models import APIKeyScope
from security.services import api_key_create

__all__ = ["Result", "soak", "soak_scratch"]

Told = Callable[[str], object]
HOST = "127.0.0.1"
MOST_ERRORS = 50


@dataclass(slots=True)
class Result:
    """Everything that was seen. Memory in bytes, times in seconds."""

    rate: float
    speed: float
    seconds: float
    facts: dict[str, Any] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    answers: dict[str, int] = field(default_factory=dict)
    behind: int = 0
    runs: dict[str, tuple[int, float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    @property
    def memories(self) -> list[Memory]:
        return memories(self.samples, speed=self.speed)

    @property
    def growths(self) -> list[Growth]:
        return growths(self.samples)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {
            "memory": [one.as_dict() for one in self.memories],
            "growth": [asdict(one) for one in self.growths],
        }


def soak_scratch(*, seconds: float, rate: float, speed: float, every: float, told: Told) -> Result:
    """Soak a gateway on a database of its own. ScratchError, ChildError: it cannot be had."""
    with scratch_database() as name:
        told("Creating the schema")
        call_command("init_db", verbosity=0)
        return soak(
            environment=_databases(name),
            seconds=seconds,
            rate=rate,
            speed=speed,
            every=every,
            told=told,
        )


def _databases(name: str) -> dict[str, str]:
    """What the processes read: the same server and users, the scratch database."""
    if settings.DATABASE_IS_EMBEDDED:
        cluster = local_cluster(settings.LOCAL_DIR)
        return {
            "DATABASE_URL": cluster.url(name, user=APP_ROLE),
            "DATABASE_MAINTENANCE_URL": cluster.url(name),
        }
    named = ("DATABASE_URL", "DATABASE_MAINTENANCE_URL", "DATABASE_DIRECT_URL")
    return {
        variable: urlunsplit(urlsplit(url)._replace(path=f"/{quote(name, safe='')}"))
        for variable in named
        if (url := os.environ.get(variable))
    }


def soak(
    *,
    environment: dict[str, str],
    seconds: float,
    rate: float,
    speed: float,
    every: float,
    told: Told,
) -> Result:
    """Soak a gateway on the default database, which has its schema; `environment` names it."""
    result = Result(rate=rate, speed=speed, seconds=seconds)
    with tempfile.TemporaryDirectory(prefix="mcp-gateway-soak-") as folder:
        with _children(environment, Path(folder), result.errors) as children:
            url, key, roots = _start(children, told)
            load = Load(url, server=SAMPLE, key=key, rate=rate)
            hurry = Hurry(PERIODIC, speed=speed)
            with loading(load), hurry:
                _watch(result, children, roots, every=every, told=told)
        result.answers, result.behind = dict(load.answers), load.behind
        result.runs = hurry.runs(over=timedelta(seconds=seconds))
        result.errors += [f"hurry: {error}" for error in hurry.broken]
    return result


@contextmanager
def _children(environment: dict[str, str], folder: Path, errors: list[str]) -> Iterator[Children]:
    def note(line: str) -> None:
        if len(errors) < MOST_ERRORS:
            errors.append(line)

    kept = {name: value for name, value in os.environ.items() if not name.startswith("DATABASE_")}
    children = Children(
        env={
            **kept,
            **environment,
            "GATEWAY_LOCAL_DIR": str(folder),
            "GATEWAY_ALLOW_PRIVATE_UPSTREAMS": "on",
            "GATEWAY_SECURE_COOKIES": "off",
            "SECRET_KEY": settings.SECRET_KEY,
            "ENCRYPTION_KEYS": ",".join(settings.ENCRYPTION_KEYS),
        },
        folder=settings.BASE_DIR,
        logs=folder / "logs",
        on_error=note,
    )
    try:
        yield children
    finally:
        connections.close_all()
        children.stop()


def _start(children: Children, told: Told) -> tuple[str, str, dict[str, int]]:
    """Address, key, and the processes' ids by name."""
    told("Starting the sample, the worker and the server")
    sample = children.start("sample", "gateway.sample", "--port", "0")
    key = _lay_out(sample)
    port = check_address(HOST, 0)
    started = {
        "sample": sample,
        "worker": children.start("worker", "gateway", "worker"),
        "serve": children.start("serve", "gateway", "serve", "--port", str(port)),
    }
    url = f"http://{HOST}:{port}"
    wait_until_ready(url, children)
    return url, key, {name: child.process.pid for name, child in started.items()}


def _lay_out(sample: Child) -> str:
    """The sample as a server of the default tenant, and a key that may do everything."""
    usual = settings.GATEWAY_ALLOW_PRIVATE_UPSTREAMS
    settings.GATEWAY_ALLOW_PRIVATE_UPSTREAMS = True  # this process checks the sample's address
    try:
        tenant = Tenant.objects.get(slug=DEFAULT_TENANT)
        sample_known(tenant=tenant, url=sample_url(sample))
    finally:
        settings.GATEWAY_ALLOW_PRIVATE_UPSTREAMS = usual
    _, text = api_key_create(
        actor=Actor(service_name="cli"),
        name="soak",
        tenant=tenant,
        scopes=APIKeyScope.values,
        rate_limit_per_hour=PLENTY,
        rate_limit_per_day=24 * PLENTY,
    )
    return text


def _watch(
    result: Result, children: Children, roots: dict[str, int], *, every: float, told: Told
) -> None:
    """Sample until the time is over. ChildError: one of the processes ended."""
    began = time.monotonic()
    with connect("mcp-gateway soak") as connection:
        told(f"{one_line(connection)}; {result.rate:g} calls/s, tasks {result.speed:g} times")
        result.facts = {
            "started": now().isoformat(),
            "server": server_facts(connection),
            "machine": machine_facts(),
        }
        for number in range(int(result.seconds / every) + 1):
            time.sleep(max(0.0, began + number * every - time.monotonic()))
            children.check()
            sample = sample_take(connection, seconds=time.monotonic() - began, roots=roots)
            result.samples.append(sample)
            told(_told(sample))
    result.facts["load_after"] = load_average()


def _told(sample: Sample) -> str:
    memory = ", ".join(f"{name} {size / 2**20:.1f}" for name, size in sample.memory().items())
    files = sum(process.files or 0 for process in sample.processes.values())
    rows = sum(table.rows for table in sample.tables.values())
    size = sum(table.bytes for table in sample.tables.values())
    return (
        f"{sample.seconds:6.0f} s  MB: {memory}; {files} files,"
        f" {sum(sample.connections.values())} connections; {rows:,} rows, {size / 2**20:.0f} MB"
    )
