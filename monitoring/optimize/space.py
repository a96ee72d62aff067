"""Whether the disk holds what is to be built, where its folder can be looked at from here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper
from rich.filesize import decimal

__all__ = ["NoSpaceError", "Space", "space_for"]

# An index and about as much again for sorting it and for the write-ahead log.
TIMES = 2
MARGIN = 100_000_000  # for what others write meanwhile

# Where a new index goes: the session's tablespace or the database's, else the data folder.
_FOLDER = """
SELECT coalesce(
    (SELECT nullif(pg_tablespace_location(s.oid), '') FROM pg_tablespace AS s
      WHERE s.oid = coalesce(
          (SELECT oid FROM pg_tablespace WHERE spcname = current_setting('default_tablespace')),
          (SELECT dattablespace FROM pg_database WHERE datname = current_database()))),
    current_setting('data_directory'))
"""


class NoSpaceError(Exception):
    """The disk is too small for what is to be built; the message says by how much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """Bytes that the builds need and that there are. `free` None: could not be looked at."""

    needed: int
    free: int | None
    where: str  # the folder, or why it was not looked at

    @property
    def is_enough(self) -> bool:
        return self.free is None or self.free >= self.needed

    def __str__(self) -> str:
        needed = f"the builds need about {decimal(self.needed)}"
        if self.free is None:
            return f"{needed}; what is free was not checked: {self.where}"
        return f"{needed}, {decimal(self.free)} are free in {self.where}"


def space_for(connection: BaseDatabaseWrapper, sizes: Mapping[str, int]) -> Space | None:
    """For indexes of these estimated sizes; None when none is to be built."""
    if not sizes:
        return None
    free, where = _free(connection)
    return Space(needed=TIMES * sum(sizes.values()) + MARGIN, free=free, where=where)


def _free(connection: BaseDatabaseWrapper) -> tuple[int | None, str]:
    if not _is_here(connection):
        return None, "the server is on another machine"
    try:
        with connection.cursor() as cursor:
            cursor.execute(_FOLDER)
            folder = str(cursor.fetchone()[0])
        found = os.statvfs(folder)
    except Error:
        return None, "this role may not ask for the data folder (pg_read_all_settings)"
    except OSError:
        return None, f"{folder} cannot be looked at from here"
    return found.f_bavail * found.f_frsize, folder


def _is_here(connection: BaseDatabaseWrapper) -> bool:
    """By a Unix socket or the loopback address."""
    connection.ensure_connection()
    address = connection.connection.info.hostaddr
    return not address or ip_address(address).is_loopback
