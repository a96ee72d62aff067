"""Old partitions as Parquet files: written, loaded back for comparison, and restored.

A file `<GATEWAY_ARCHIVE_DIR>/<table>/<partition>.parquet` holds the rows of one partition, ordered
by primary key, with their number and checksum in its metadata. Columns without a type of their own
in Parquet (uuid, jsonb, inet, …) are text. The checksum is PostgreSQL's, over the rows as text, so
it says the same before, in and after the file; it does not depend on the order of rows.

pyarrow is an extra: it is imported where it is used, and its lack is told in words.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg import Connection, Error, errors, sql

from registry.db.partitions import (
    PartitionsError,
    Place,
    Span,
    Step,
    Verb,
    partition_name,
    read_partitions,
    statement,
)
from registry.sentences import first_line

if TYPE_CHECKING:
    from pyarrow import Schema
    from pyarrow.parquet import ParquetFile

__all__ = [
    "Archive",
    "ArchiveError",
    "archive_files",
    "archive_obstacle",
    "archive_partition",
    "archive_read",
    "archive_restore",
]

BATCH_ROWS = 20_000
METADATA = b"mcp_gateway"
INSTALL = "pyarrow is not installed; it comes with: pip install -e '.[archive]'"

_COLUMNS = """
SELECT attname, atttypid::regtype::text FROM pg_attribute
WHERE attrelid = to_regclass(quote_ident(%s)) AND attnum > 0 AND NOT attisdropped
ORDER BY attnum
"""
# As text a row looks the same in every session and version that has these.
_PLAIN_TEXT = """
SELECT set_config('TimeZone', 'UTC', true), set_config('DateStyle', 'ISO, YMD', true),
       set_config('IntervalStyle', 'postgres', true), set_config('extra_float_digits', '1', true),
       set_config('bytea_output', 'hex', true)
"""
_FIGURES = """
SELECT count(*), coalesce(sum(('x' || left(md5(ROW({columns})::text), 15))::bit(60)::bigint), 0)
FROM {table}
"""
_AS_TEXT = {"inet": "abbrev({})"}  # its cast to text would add the length of the mask


class ArchiveError(PartitionsError):
    """Rows were not archived or not restored; the message says why. Nothing was lost."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What rows add up to: their number, and a checksum of their texts."""

    rows: int
    checksum: str


@dataclass(frozen=True, slots=True)
class Archive:
    """One file and what its metadata says of it."""

    path: Path
    table: str
    span: Span
    figures: Figures
    columns: tuple[str, ...]

    @property
    def partition(self) -> str:
        return partition_name(self.table, self.span)


# --------------------------------------------------------------------------- the folder


def archive_obstacle() -> str:
    """Why this process can archive nothing, in words; empty when it can."""
    try:
        folder = _folder()
        _pyarrow()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except ArchiveError as error:
        return str(error)
    except OSError as error:
        return f"GATEWAY_ARCHIVE_DIR cannot be made: {error.strerror}."
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"GATEWAY_ARCHIVE_DIR: {folder} cannot be written."
    return ""


def archive_files() -> list[Path]:
    """The files of the folder, by table and time. ArchiveError where none could be read."""
    found = sorted(_folder().glob("*/*.parquet"))
    if found:
        _pyarrow()
    return found


def _folder() -> Path:
    if settings.GATEWAY_ARCHIVE_DIR is None:
        raise ArchiveError(
            "GATEWAY_ARCHIVE_DIR is not set: give it the absolute path of the folder that the "
            "worker archives to."
        )
    return settings.GATEWAY_ARCHIVE_DIR


def archive_read(path: Path) -> Archive:
    """What a file says of itself. ArchiveError for a file that is no archive."""
    with _opened(path) as file:
        return _archive_of(path, file)


def _archive_of(path: Path, file: ParquetFile) -> Archive:
    told = (file.schema_arrow.metadata or {}).get(METADATA)
    if told is None:
        raise ArchiveError(f"{path} was not written by this program.")
    try:
        archive = _understood(path, json.loads(told), tuple(file.schema_arrow.names))
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError):
        raise ArchiveError(
            f"{path} was not written by this program: its metadata do not say what it holds."
        ) from None
    if file.metadata.num_rows != archive.figures.rows:
        raise ArchiveError(f"{path} holds {file.metadata.num_rows} rows, not what it says itself.")
    return archive


def _understood(path: Path, told: Any, columns: tuple[str, ...]) -> Archive:
    """What `_schema` wrote; one of several errors for anything else."""
    table, figures = told["table"], Figures(**told["figures"])
    if not (table.isascii() and table.isidentifier() and figures.checksum.isdecimal()):
        raise ValueError(told)
    if type(figures.rows) is not int:
        raise TypeError(figures.rows)
    since, until = (datetime.fromisoformat(told[end]) for end in ("since", "until"))
    if since.tzinfo is None or until.tzinfo is None or since >= until:
        raise ValueError(told)
    span = Span(since.astimezone(UTC), until.astimezone(UTC))
    return Archive(path=path, table=table, span=span, figures=figures, columns=columns)


@contextmanager
def _opened(path: Path) -> Iterator[ParquetFile]:
    pyarrow = _pyarrow()
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except FileNotFoundError:
        raise ArchiveError(f"There is no file {path}.") from None
    except (OSError, pyarrow.ArrowException) as error:
        raise ArchiveError(f"{path} cannot be read as Parquet ({first_line(error)}).") from None


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ArchiveError(INSTALL) from None
    return pyarrow


# --------------------------------------------------------------------------- into a file


def archive_partition(connection: BaseDatabaseWrapper, step: Step) -> None:
    """Write a detached partition to its file, and prove it by loading the file again.

    The file has its name only once it is proved and on the disk. A file that a run left which
    was killed before it dropped the partition is taken for what it is: the same rows.
    An empty partition leaves no file. ArchiveError: the partition is to stay.
    """
    if obstacle := archive_obstacle():
        raise ArchiveError(obstacle)
    path = _path(step)
    raw = _raw(connection)
    with raw.transaction():
        raw.execute(_PLAIN_TEXT)
        columns = _columns(raw, step.name)
        figures = _figures(raw, sql.Identifier(step.name), [name for name, _ in columns])
        if figures.rows and not _is_there(path, figures):
            _write(raw, step, path, columns, figures)


def _path(step: Step) -> Path:
    return _folder() / step.table / f"{step.name}.parquet"


def _is_there(path: Path, figures: Figures) -> bool:
    """Whether these very rows are archived. ArchiveError when others have the name."""
    if not path.exists():
        return False
    if archive_read(path).figures != figures:
        raise ArchiveError(f"{path} holds other rows: move it away, the next run writes it anew")
    return True


def _write(
    raw: Connection[Any],
    step: Step,
    path: Path,
    columns: Sequence[tuple[str, str]],
    figures: Figures,
) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_rows(raw, draft, step, columns, figures)
        _prove(raw, draft, step.table)
        _keep(draft, path)
    except OSError as error:
        raise ArchiveError(f"it could not be archived ({error.strerror or error})") from None
    finally:
        with suppress(FileNotFoundError):
            draft.unlink()


def _write_rows(
    raw: Connection[Any],
    draft: Path,
    step: Step,
    columns: Sequence[tuple[str, str]],
    figures: Figures,
) -> None:
    pyarrow = _pyarrow()
    schema = _schema(columns, step, figures)
    names = [sql.Identifier(name) for name, _ in columns]
    query = sql.SQL("SELECT {} FROM {} ORDER BY {}").format(
        sql.SQL(", ").join(_selected(name, kind) for name, kind in columns),
        sql.Identifier(step.name),
        names[0],
    )
    with (
        os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file,
        pyarrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer,
        raw.cursor(name="archive") as cursor,
    ):
        cursor.execute(query)
        while rows := cursor.fetchmany(BATCH_ROWS):
            arrays = [
                pyarrow.array(values, type=field.type)
                for values, field in zip(zip(*rows, strict=True), schema, strict=True)
            ]
            writer.write_batch(pyarrow.RecordBatch.from_arrays(arrays, schema=schema))


def _schema(columns: Sequence[tuple[str, str]], step: Step, figures: Figures) -> Schema:
    pyarrow = _pyarrow()
    told = {
        "table": step.table,
        "since": step.span.since.isoformat(),
        "until": step.span.until.isoformat(),
        "figures": asdict(figures),
    }
    fields = [(name, _arrow_type(kind) or pyarrow.string()) for name, kind in columns]
    return pyarrow.schema(fields, metadata={METADATA: json.dumps(told).encode()})


def _arrow_type(kind: str) -> Any:
    """Parquet's own type for a column's; None: it goes as text."""
    pyarrow = _pyarrow()
    known = {
        "boolean": pyarrow.bool_,
        "smallint": pyarrow.int16,
        "integer": pyarrow.int32,
        "bigint": pyarrow.int64,
        "double precision": pyarrow.float64,
        "timestamp with time zone": lambda: pyarrow.timestamp("us", tz="UTC"),
    }
    return known[kind]() if kind in known else None


def _selected(name: str, kind: str) -> sql.Composable:
    if _arrow_type(kind) is not None:
        return sql.Identifier(name)
    return sql.SQL(_AS_TEXT.get(kind, "{}::text")).format(sql.Identifier(name))


def _keep(draft: Path, path: Path) -> None:
    """Give the file its name once its bytes are on the disk; whoever has the name keeps it."""
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    os.link(draft, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


# --------------------------------------------------------------------------- and back


def _prove(raw: Connection[Any], path: Path, table: str) -> None:
    """Load the file as a restore would; ArchiveError unless the same rows come out."""
    proof = sql.Identifier("pg_temp", "archive_proof")
    raw.execute(
        sql.SQL("CREATE TEMP TABLE archive_proof (LIKE {} INCLUDING DEFAULTS)").format(
            sql.Identifier(table)
        )
    )
    _load(raw, path, proof)
    raw.execute(sql.SQL("DROP TABLE {}").format(proof))


def _load(raw: Connection[Any], path: Path, table: sql.Identifier) -> Archive:
    """Copy the file's rows into an empty table, and hold them against what the file says."""
    with _opened(path) as file:
        archive = _archive_of(path, file)
        copy = sql.SQL("COPY {} ({}) FROM STDIN").format(
            table, sql.SQL(", ").join(map(sql.Identifier, archive.columns))
        )
        with raw.cursor() as cursor, cursor.copy(copy) as into:
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    into.write_row(row)
    found = _figures(raw, table, archive.columns)
    if found != archive.figures:
        raise ArchiveError(
            f"{path} gives {found.rows} rows with the checksum {found.checksum}, it should be "
            f"{archive.figures.rows} with {archive.figures.checksum}"
        )
    return archive


def archive_restore(connection: BaseDatabaseWrapper, path: Path, *, attach: bool) -> str:
    """Load a file into a new table of this database; the table's name.

    Beside the log as `restored_<partition>`, or attached to it as the partition that it was. One
    transaction: rows that differ from those archived leave nothing behind. ArchiveError in words.
    """
    archive = archive_read(path)
    name = archive.partition if attach else f"restored_{archive.partition}"
    raw = _raw(connection)
    with _told_in_words(archive), raw.transaction():
        raw.execute(_PLAIN_TEXT)
        _refuse_unfit(raw, archive, name)
        if attach:
            _refuse_overlap(connection, archive)
        _run(raw, Verb.MAKE, archive, name)
        _load(raw, path, sql.Identifier(name))
        raw.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(name)))
        if attach:
            _run(raw, Verb.ATTACH, archive, name)
    return name


@contextmanager
def _told_in_words(archive: Archive) -> Iterator[None]:
    """psycopg's own errors, which Django does not translate, without the rows in their detail."""
    try:
        yield
    except errors.LockNotAvailable:
        raise ArchiveError(
            f"{archive.table} was locked by others for too long and nothing was restored: "
            "try again later"
        ) from None
    except Error as error:
        reason = error.diag.message_primary or first_line(error)
        raise ArchiveError(f"PostgreSQL refused to restore {archive.path}: {reason}") from None


def _run(raw: Connection[Any], verb: Verb, archive: Archive, name: str) -> None:
    raw.execute(statement(Step(verb=verb, table=archive.table, name=name, span=archive.span)))


def _refuse_unfit(raw: Connection[Any], archive: Archive, name: str) -> None:
    known = {column for column, _ in _columns(raw, archive.table)}
    if not known:
        raise ArchiveError(f"There is no table {archive.table} in this database: run init_db first")
    if missing := [column for column in archive.columns if column not in known]:
        raise ArchiveError(f"{archive.table} has no column {', '.join(missing)} any more")
    if _columns(raw, name):
        raise ArchiveError(f"There is a table {name} already: drop or rename it first")


def _refuse_overlap(connection: BaseDatabaseWrapper, archive: Archive) -> None:
    for partition in read_partitions(connection, archive.table):
        if partition.place is not Place.LOOSE and partition.span.overlaps(archive.span):
            raise ArchiveError(
                f"{partition.name}, a partition of {archive.table}, is of the same time as "
                f"{archive.path}: leave --attach out"
            )


def _columns(raw: Connection[Any], table: str) -> list[tuple[str, str]]:
    return [(name, kind) for name, kind in raw.execute(_COLUMNS, [table]).fetchall()]


def _figures(raw: Connection[Any], table: sql.Identifier, columns: Sequence[str]) -> Figures:
    query = sql.SQL(_FIGURES).format(
        table=table, columns=sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    rows, checksum = raw.execute(query).fetchone() or (0, 0)
    return Figures(rows=int(rows), checksum=str(checksum))


def _raw(connection: BaseDatabaseWrapper) -> Connection[Any]:
    connection.ensure_connection()
    raw: Connection[Any] = connection.connection
    return raw
