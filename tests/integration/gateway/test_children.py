"""Child processes: their log, their end, and that none survives its parent."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gateway.children import PAUSE_SECONDS, QUICK_DEATHS, QUICK_SECONDS, ChildError, Children

MODULE = "import sys, time\nprint('hello')\n"


class Family:
    """Children whose modules are written by the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.errors: list[str] = []
        self.children = Children(
            env=dict(os.environ),
            folder=folder,
            logs=folder / "logs",
            on_error=self.errors.append,
        )

    def start(self, name: str, code: str, *, is_vital: bool = True):
        (self.folder / f"mod_{name}.py").write_text(MODULE + code)
        child = self.children.start(name, f"mod_{name}", is_vital=is_vital)
        assert child.first_line.result(timeout=10) == "hello"
        return child


@pytest.fixture
def family(tmp_path: Path):
    made = Family(tmp_path)
    yield made
    made.children.kill()


def test_output_goes_to_the_log_and_errors_are_told(family: Family) -> None:
    code = "print('fine'); print('[ERROR] broken', file=sys.stderr); print('errors: 0')"
    child = family.start("talker", code)
    child.process.wait(timeout=10)
    with pytest.raises(ChildError):
        family.children.check()  # also waits until all is read
    assert child.log.read_text() == "hello\nfine\n[ERROR] broken\nerrors: 0\n"
    assert family.errors == ["talker: [ERROR] broken"]


def test_who_ended_is_named_with_its_last_words(family: Family) -> None:
    family.start("sleeper", "time.sleep(60)")
    breaker = family.start("breaker", "sys.exit('no disk')")
    breaker.process.wait(timeout=10)
    with pytest.raises(ChildError, match=r"(?s)The breaker ended with status 1\..*no disk"):
        family.children.check()


def test_who_was_killed_is_started_again_after_a_pause(family: Family) -> None:
    child = family.start("sleeper", "time.sleep(60)")
    first, at = child.process, time.monotonic()
    family.children.revive(at=at)
    assert child.process is first
    os.kill(first.pid, signal.SIGKILL)
    first.wait(timeout=10)
    family.children.revive(at=at)
    assert family.errors == [
        f"The sleeper was ended by signal 9; it is started again. Log: {child.log}"
    ]
    family.children.revive(at=at + PAUSE_SECONDS / 2)
    assert child.process is first
    family.children.revive(at=at + PAUSE_SECONDS)
    assert child.process is not first
    family.children.check()
    assert len(family.errors) == 1


def test_what_a_killed_one_left_behind_is_ended_before_it_starts_again(family: Family) -> None:
    code = (
        "import subprocess\n"
        "left = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(left.pid); time.sleep(60)"
    )
    child = family.start("parent", code)
    while not (said := child.log.read_text().splitlines()[1:]):
        time.sleep(0.01)
    os.kill(child.process.pid, signal.SIGKILL)
    child.process.wait(timeout=10)
    family.children.revive(at=time.monotonic())
    child._reader.join(timeout=10)  # the pipe closes when nobody holds it any more
    assert not child._reader.is_alive(), f"process {said[0]} lives on"


def test_who_keeps_ending_is_given_up_with_its_last_words(family: Family) -> None:
    child = family.start("breaker", "sys.exit('no disk')")
    at, pauses = time.monotonic(), []
    for _ in range(QUICK_DEATHS - 1):
        child.process.wait(timeout=10)
        family.children.revive(at=at)  # sees its end
        pauses.append(child.restart_at - at)
        at = child.restart_at
        family.children.revive(at=at)  # starts it
    assert pauses == [PAUSE_SECONDS, 2 * PAUSE_SECONDS, 4 * PAUSE_SECONDS]
    child.process.wait(timeout=10)
    with pytest.raises(ChildError, match=r"(?s)The breaker ended with status 1 again.*no disk"):
        family.children.revive(at=at)


def test_without_who_is_not_vital_the_others_go_on(family: Family) -> None:
    child = family.start("sample", "sys.exit('port taken')", is_vital=False)
    at = time.monotonic()
    for _ in range(QUICK_DEATHS + 2):
        child.process.wait(timeout=10)
        family.children.revive(at=at)
        at = child.restart_at or at
        family.children.revive(at=at)
    assert child.restart_at is None
    assert "port taken" in family.errors[-1]
    assert family.errors[-1].endswith("The others go on without it.")


def test_lines_that_a_full_disk_has_no_room_for_are_gone_without(
    family: Family, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("logging.StreamHandler.flush", write)
    child = family.start("talker", "print('more'); print('CRITICAL: heard all the same')")
    child.process.wait(timeout=10)
    child._reader.join(timeout=10)
    assert family.errors == ["talker: CRITICAL: heard all the same"]
    assert "Traceback" not in capsys.readouterr().err


def test_a_long_life_is_none_of_the_quick_deaths(family: Family) -> None:
    child = family.start("sleeper", "time.sleep(60)")
    at, pauses = time.monotonic() + QUICK_SECONDS, []
    for _ in range(QUICK_DEATHS):
        child.process.kill()
        child.process.wait(timeout=10)
        family.children.revive(at=at)
        pauses.append(child.restart_at - at)
        at = child.restart_at
        family.children.revive(at=at)
    assert pauses == [PAUSE_SECONDS, PAUSE_SECONDS, 2 * PAUSE_SECONDS, 4 * PAUSE_SECONDS]
    family.children.check()


def test_who_is_started_again_is_told_what_it_chose(family: Family) -> None:
    child = family.start("first", "time.sleep(60)")
    child.restart_with("platform")
    child.process.kill()
    child.process.wait(timeout=10)
    at = time.monotonic()
    family.children.revive(at=at)
    family.children.revive(at=at + PAUSE_SECONDS)
    assert child.process.wait(timeout=10) == 0
    child._reader.join(timeout=10)
    assert platform.platform() in child.log.read_text()


def test_who_lived_long_is_never_given_up(family: Family) -> None:
    child = family.start("sleeper", "time.sleep(60)")
    at = time.monotonic()
    for _ in range(QUICK_DEATHS + 1):
        at += QUICK_SECONDS
        child.process.kill()
        child.process.wait(timeout=10)
        family.children.revive(at=at)
        at += PAUSE_SECONDS
        family.children.revive(at=at)
    family.children.check()


def test_they_stop_last_started_first(family: Family) -> None:
    note = (
        "import signal\n"
        "def end(*_):\n"
        "    open('order', 'a').write('{}'); sys.exit()\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "print('ready'); time.sleep(60)"
    )
    for name in "abc":
        child = family.start(name, note.format(name))
        while "ready" not in child.log.read_text():
            time.sleep(0.01)
    family.children.stop()
    assert (family.folder / "order").read_text() == "cba"


def test_who_does_not_listen_is_killed_at_the_deadline(family: Family) -> None:
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf')\n"
    child = family.start("deaf", code + "time.sleep(60)")
    while "deaf" not in child.log.read_text():
        time.sleep(0.01)
    child.stop(deadline=time.monotonic() + 0.3)
    assert child.process.returncode == -signal.SIGKILL


def test_a_child_ends_when_its_parent_is_killed() -> None:
    child = (
        "import time; from gateway.lifeline import die_with_named_parent\n"
        "die_with_named_parent(); print('up', flush=True); time.sleep(60)"
    )
    parent = (
        "import os, subprocess, sys, time\n"
        "env = {**os.environ, 'GATEWAY_PARENT_PID': str(os.getpid())}\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}], env=env); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True
    ) as killed:
        assert killed.stdout.readline() == "up\n"
        killed.kill()
        started = time.monotonic()
        # The child holds the pipe's other end: it closes when the child has ended.
        assert killed.stdout.read() == ""
        assert time.monotonic() - started < 10
