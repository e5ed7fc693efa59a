"""Two processes never write to one output, and a killed one leaves it free."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from domainclip.errors import ConfigurationError
from domainclip.output_record import LOCK_FILE
from domainclip.pipelines import output_lock
from domainclip.pipelines.output_lock import locked_output
from forked import start_python

HOLD = """
import os, sys, time
from pathlib import Path
os.setsid()
from domainclip.pipelines.output_lock import locked_output
with locked_output(Path(sys.argv[1]), "--output", print, is_file=sys.argv[2] == "file"):
    if sys.argv[3] == "fork":
        if not os.fork():
            time.sleep(60)
    print("held", flush=True)
    time.sleep(60)
"""


def holder(path: Path, kind: str, how: str, output: Path) -> BaseProcess:
    process = start_python(HOLD, str(path), kind, how, output=output)
    while not (output.is_file() and output.read_text() == "held\n"):
        assert process.is_alive()
        time.sleep(0.005)
    return process


@pytest.mark.parametrize(("kind", "how"), [("folder", "plain"), ("file", "plain"), ("folder", "fork")])
def test_the_second_is_told_whose_it_is_and_a_kill_lets_go(tmp_path: Path, kind: str, how: str) -> None:
    path, is_file = tmp_path / "out", kind == "file"
    process = holder(path, kind, how, tmp_path.with_suffix(".said"))
    assert process.pid is not None
    try:
        with (
            pytest.raises(ConfigurationError, match=rf"another process \(process {process.pid} on .*, since \d{{4}}-"),
            locked_output(path, "--output", print, is_file=is_file),
        ):
            pass
        os.kill(process.pid, signal.SIGKILL)  # a process that it had forked lives on
        process.join()
        with locked_output(path, "--output", print, is_file=is_file):
            pass
        assert not [name for name in os.listdir(tmp_path) if "lock" in name]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_one_process_does_not_write_there_twice_either(tmp_path: Path) -> None:
    with locked_output(tmp_path, "--output", print):
        with pytest.raises(ConfigurationError, match=str(os.getpid())), locked_output(tmp_path, "--output", print):
            pass
        with locked_output(tmp_path / "beside", "--output", print):
            pass
    assert os.listdir(tmp_path) == []


def test_a_link_to_a_folder_is_that_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    link = locked_output(tmp_path / "link", "--output", print)
    with locked_output(tmp_path / "real", "--output", print), pytest.raises(ConfigurationError, match="another"), link:
        pass


def test_what_was_made_for_the_lock_goes_with_it(tmp_path: Path) -> None:
    with locked_output(tmp_path / "a" / "b", "--output", print):
        assert (tmp_path / "a" / "b" / LOCK_FILE).exists()
    assert os.listdir(tmp_path) == []
    with locked_output(tmp_path / "a" / "b", "--output", print):
        (tmp_path / "a" / "b" / "kept").touch()
    assert os.listdir(tmp_path / "a" / "b") == ["kept"]


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(output_lock.fcntl, "flock", refuse)
    said: list[str] = []
    with locked_output(tmp_path, "--output", said.append):
        pass
    assert "knows no locks (No locks available)" in said[0]


def test_a_device_needs_no_lock() -> None:
    with locked_output(Path("/dev/null"), "--output", print, is_file=True):
        pass


def _races(path: Path, at_once: multiprocessing.sharedctypes.Synchronized[int], most: int) -> None:
    done = 0
    while done < most:
        try:
            with locked_output(path, "--output", print):
                with at_once.get_lock():
                    at_once.value += 1
                    assert at_once.value == 1
                with at_once.get_lock():
                    at_once.value -= 1
                done += 1
        except ConfigurationError:
            continue


def test_the_lock_holds_while_its_file_comes_and_goes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    at_once = context.Value("i", 0)
    processes = [context.Process(target=_races, args=(tmp_path / "out", at_once, 200)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
