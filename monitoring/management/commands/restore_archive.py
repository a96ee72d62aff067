"""Parse, call, print: the work is done in monitoring.retention.archive."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error
from django.utils.timezone import now

from monitoring.audit import Actor, audit_write
from monitoring.retention.archive import (
    Archive,
    ArchiveError,
    archive_files,
    archive_read,
    archive_restore,
)
from monitoring.retention.partitions import expiring_policy
from registry.db.direct import PoolerError, direct_connections
from registry.db.partitions import PartitionsError

ACTOR = Actor(service_name="cli")


class Command(BaseCommand):
    help = (
        "Load a partition that was archived before it was dropped. Its rows go into a table of "
        "their own, restored_<partition>, or with --attach back into the log. They are compared "
        "with what was archived; when they differ, nothing is left behind. Without FILE, lists "
        "the archives in GATEWAY_ARCHIVE_DIR."
    )
    requires_system_checks = []  # they are about the code, and load every page

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", nargs="?", type=Path, metavar="FILE")
        parser.add_argument(
            "--attach", action="store_true", help="Make it a partition of the log again."
        )
        parser.add_argument("--json", action="store_true", help="Print one JSON document.")

    def handle(self, *, file: Path | None, attach: bool, json: bool, **_options: Any) -> None:
        if attach and file is None:
            raise CommandError("--attach needs the FILE to attach.", returncode=2)
        try:
            if file is None:
                self._list(as_json=json)
            else:
                self._restore(file, attach=attach, as_json=json)
        except (PartitionsError, PoolerError) as error:
            raise CommandError(f"{str(error).rstrip('.')}.") from None
        except Error as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise CommandError(f"PostgreSQL refused to restore it: {reason}.") from None

    def _list(self, *, as_json: bool) -> None:
        found = [_looked_at(path) for path in archive_files()]
        if as_json:
            self.stdout.write(json.dumps(found, indent=2))
            return
        for one in found:
            if "error" in one:
                self.stdout.write(self.style.WARNING(one["error"]))
                continue
            self.stdout.write(
                f"{one['file']}: {one['rows']:,} rows of {one['table']}"
                f" from {one['since']:.16} until {one['until']:.16} UTC"
            )
        if not found:
            self.stdout.write("There is no archive in GATEWAY_ARCHIVE_DIR.")

    def _restore(self, file: Path, *, attach: bool, as_json: bool) -> None:
        archive = archive_read(file)
        if attach:
            _refuse_expired(archive)
        with direct_connections(application_name="mcp-gateway restore_archive") as (work, _):
            name = archive_restore(work, file, attach=attach)
        details = {"file": file.name, "table": name, "rows": archive.figures.rows}
        audit_write(actor=ACTOR, action="archive.restore", details=details)
        if as_json:
            self.stdout.write(json.dumps({**_described(archive), "restored": name}, indent=2))
            return
        where = f"into {archive.table} again" if attach else f"into the table {name}"
        self.stdout.write(
            self.style.SUCCESS(f"Restored {archive.figures.rows:,} rows {where}; they compare.")
        )


def _refuse_expired(archive: Archive) -> None:
    """The next night would drop what was just attached."""
    policy = expiring_policy(table=archive.table, until=archive.span.until, at=now())
    if policy is not None:
        raise PartitionsError(
            f"The retention policy {policy.name} keeps {policy.retention_days} days and would drop "
            "the partition again: switch it off or let it keep more, or leave --attach out"
        )


def _looked_at(path: Path) -> dict[str, Any]:
    """A file that cannot be read must not hide the others: it says so in its place."""
    try:
        return _described(archive_read(path))
    except ArchiveError as error:
        return {"file": str(path), "error": str(error)}


def _described(archive: Archive) -> dict[str, Any]:
    return {
        "file": str(archive.path),
        "table": archive.table,
        "since": archive.span.since.isoformat(sep=" "),
        "until": archive.span.until.isoformat(sep=" "),
        "rows": archive.figures.rows,
        "checksum": archive.figures.checksum,
        "bytes": archive.path.stat().st_size,
    }
