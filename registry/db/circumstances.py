"""What a figure has to be read with: the machine, its load, the server and its settings."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import psycopg

__all__ = ["backend_cpu_seconds", "load_average", "machine_facts", "one_line", "server_facts"]

SETTINGS = (
    "server_version",
    "shared_buffers",
    "work_mem",
    "random_page_cost",
    "effective_cache_size",
    "max_parallel_workers_per_gather",
    "jit",
    "fsync",
    "synchronous_commit",
    "full_page_writes",
)


def server_facts(connection: psycopg.Connection[Any]) -> dict[str, str]:
    """What the server's settings are for this session."""
    found = connection.execute(
        "SELECT name, current_setting(name) FROM unnest(%s::text[]) AS name", [list(SETTINGS)]
    )
    return dict(found.fetchall())


def machine_facts() -> dict[str, Any]:
    return {
        "cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load_before": load_average(),
    }


def load_average() -> float:
    """Runnable processes over the last minute: above the number of CPUs, others were in the way."""
    return round(os.getloadavg()[0], 2)


def one_line(connection: psycopg.Connection[Any]) -> str:
    """Server, machine and load, for the head of what a benchmark prints."""
    server, machine = server_facts(connection), machine_facts()
    return (
        f"PostgreSQL {server['server_version']}, shared_buffers {server['shared_buffers']}, "
        f"fsync {server['fsync']}; {machine['cpus']} CPUs ({machine['system']}), "
        f"load {machine['load_before']}"
    )


def backend_cpu_seconds(pid: int) -> float | None:
    """CPU time of a server process so far, in steps of 10 ms; None where it is not on this machine.

    Source: proc(5), the fields utime and stime of /proc/pid/stat.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    if "postgres" not in text:
        return None
    user, system = text.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
