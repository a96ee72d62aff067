"""The processes that `up` starts: their logs, their end, and a new start for who broke."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from logging.handlers import RotatingFileHandler
from pathlib import Path

from gateway.lifeline import PARENT_VARIABLE

__all__ = ["Child", "ChildError", "Children"]

GRACE_SECONDS = 15  # more than a server gives the requests in flight
QUICK_SECONDS = 30  # who lives shorter than this died quickly,
QUICK_DEATHS = 4  # and who does so as often in a row is not started again
PAUSE_SECONDS = 0.5  # before the second start; twice as long after each quick death
LOG_BYTES = 5 * 2**20  # and as much again in one older file
ERROR = re.compile(
    r'"level": *"(error|critical)"|\[ *(error|critical) *\]|^(error|critical)\b', re.IGNORECASE
)


class ChildError(Exception):
    """A process that should be running has ended; the message says which, and its last words."""


class _LogFile(RotatingFileHandler):
    """Goes without the lines that a full disk has no room for; logging would print tracebacks."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        pass


class Child:
    """One process. What it prints goes to its log, what looks like an error also to `on_error`."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        folder: Path,
        logs: Path,
        on_error: Callable[[str], None],
        is_vital: bool,
    ) -> None:
        self.name, self._is_vital = name, is_vital
        self.log = logs / f"{name}.log"
        self.first_line: Future[str] = Future()
        self._arguments, self._env, self._folder = arguments, env, folder
        self._last: deque[str] = deque(maxlen=12)
        self._on_error = on_error
        self._deaths = 0  # quick ones, in a row
        self._is_given_up = False
        self.restart_at: float | None = None  # when one that has ended is started again
        self._start(at=time.monotonic())

    def _start(self, *, at: float) -> None:
        self._born, self.restart_at = at, None
        self.process = subprocess.Popen(
            [sys.executable, "-m", *self._arguments],
            cwd=self._folder,  # where -m finds our packages
            env={**self._env, PARENT_VARIABLE: str(os.getpid()), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C reaches `up` alone, which stops them in order
        )
        self._reader = threading.Thread(target=self._read, name=f"log-{self.name}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        file = _LogFile(self.log, maxBytes=LOG_BYTES, backupCount=1, encoding="utf-8")
        assert self.process.stdout is not None  # noqa: S101  (a pipe was asked for)
        for line in map(str.rstrip, self.process.stdout):
            if not self.first_line.done():
                self.first_line.set_result(line)
            self._last.append(line)
            file.emit(logging.makeLogRecord({"msg": line}))
            if ERROR.search(line):
                self._on_error(f"{self.name}: {line}")
        with contextlib.suppress(OSError):
            file.close()
        if not self.first_line.done():
            self.first_line.set_exception(ChildError("it said nothing"))

    def check(self) -> None:
        """ChildError when it has ended."""
        if self.process.poll() is not None:
            raise ChildError(f"The {self.name} {self._end()}. {self._last_words()}")

    def revive(self, *, at: float) -> None:
        """Start it again when it has ended, each time after a longer pause.

        `at` is of the monotonic clock. ChildError when it keeps ending soon after its start.
        """
        if self.restart_at is not None:
            if at >= self.restart_at:
                self._start(at=at)
        elif self._is_given_up:
            return
        elif self.process.poll() is not None:
            self._mourn(at)

    def restart_with(self, *arguments: str) -> None:
        """What it is started with from the next time on."""
        self._arguments = arguments

    def _mourn(self, at: float) -> None:
        self._deaths = self._deaths + 1 if at - self._born < QUICK_SECONDS else 0
        if self._deaths >= QUICK_DEATHS:
            self._give_up()
            return
        self._kill_group()  # what it left behind may hold its port
        self.restart_at = at + PAUSE_SECONDS * 2 ** max(0, self._deaths - 1)
        self._on_error(f"The {self.name} {self._end()}; it is started again. Log: {self.log}")

    def _give_up(self) -> None:
        what = (
            f"The {self.name} {self._end()} again, {QUICK_DEATHS} times in a row within "
            f"{QUICK_SECONDS} seconds of its start. {self._last_words()}"
        )
        if self._is_vital:
            raise ChildError(what)
        self._is_given_up = True
        self._on_error(f"{what}\nThe others go on without it.")

    def _end(self) -> str:
        status = self.process.returncode
        return f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"

    def _last_words(self) -> str:
        self._reader.join(timeout=2)
        said = "\n".join(f"  {line}" for line in self._last) or "  (nothing)"
        return f"Its last lines, from {self.log}:\n{said}"

    def stop(self, *, deadline: float) -> None:
        """SIGTERM, and at the deadline SIGKILL for it and all that it started."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill()
            self.process.wait()
        self._reader.join(timeout=2)

    def kill(self) -> None:
        if self.process.poll() is None:
            self._kill_group()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


class Children:
    """All of them, in the order of their start; they are stopped in the opposite order."""

    def __init__(
        self,
        *,
        env: Mapping[str, str],
        folder: Path,
        logs: Path,
        on_error: Callable[[str], None],
    ) -> None:
        logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._env, self._folder, self._logs, self._on_error = env, folder, logs, on_error
        self._started: list[Child] = []

    def start(self, name: str, *arguments: str, is_vital: bool = True) -> Child:
        """Run `python -m <arguments>` under a name that log and messages use.

        Without one that is not vital the others go on.
        """
        child = Child(
            name,
            arguments,
            env=self._env,
            folder=self._folder,
            logs=self._logs,
            on_error=self._on_error,
            is_vital=is_vital,
        )
        self._started.append(child)
        return child

    def check(self) -> None:
        """ChildError when one of them has ended."""
        for child in self._started:
            child.check()

    def revive(self, *, at: float) -> None:
        """Start again who has ended, as `Child.revive` says."""
        for child in self._started:
            child.revive(at=at)

    def watch(self, *, each_round: Callable[[], None]) -> None:
        """Keep them running until one cannot be kept; ChildError says which.

        Calls back a few times a second.
        """
        while True:
            self.revive(at=time.monotonic())
            each_round()
            time.sleep(0.2)

    def stop(self, *, told: Callable[[str], None] = lambda _name: None) -> None:
        """Stop the last started first; `told` hears each name. Who stays too long is killed."""
        for child in reversed(self._started):
            told(child.name)
            child.stop(deadline=time.monotonic() + GRACE_SECONDS)

    def kill(self) -> None:
        for child in self._started:
            child.kill()
