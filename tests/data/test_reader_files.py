"""The sockets of reader processes leave nothing behind: not where the program ends, nor, after the next start, where it
was killed."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from domainclip.data import reader_files
from domainclip.errors import ConfigurationError

PROGRAM = """
import os, signal, sys
import torch
from torch.utils.data import DataLoader, Dataset
from domainclip.data.readers import reader_processes

class Rows(Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, row):
        return torch.full((3,), row)

if __name__ == "__main__":
    loader = DataLoader(Rows(), num_workers=reader_processes(2, []))
    for number, batch in enumerate(loader):
        if number == 3:
            print(sorted(os.listdir(os.environ["TMPDIR"])), flush=True)
            if sys.argv[1] == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A temporary folder with a short path, as users have it."""
    folder = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def run(folder: Path, temporary: Path, how: str) -> subprocess.CompletedProcess[str]:
    (folder / "program.py").write_text(PROGRAM)
    return subprocess.run(
        [sys.executable, "program.py", how],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such sockets")
def test_what_a_killed_process_leaves_the_next_one_removes(tmp_path: Path, temporary: Path) -> None:
    alive = temporary / "domainclip-alive"
    alive.mkdir()
    users = temporary / "domainclip-notes"  # without a lock it is nobody's business
    users.mkdir()
    lock = os.open(alive / "lock", os.O_RDWR | os.O_CREAT)
    pytest.importorskip("fcntl").flock(lock, 2)  # LOCK_EX
    try:
        killed = run(tmp_path, temporary, "killed")
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert len(list(temporary.iterdir())) == 3 and "pymp" not in killed.stdout
        ended = run(tmp_path, temporary, "to the end")
        assert ended.returncode == 0, ended.stderr
        assert sorted(temporary.iterdir()) == [alive, users]
    finally:
        os.close(lock)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such sockets")
def test_a_temporary_folder_with_a_long_path_hangs_no_reader(tmp_path: Path) -> None:
    temporary = tmp_path / ("long" * 20)
    temporary.mkdir()
    ended = run(tmp_path, temporary, "to the end")
    assert ended.returncode == 0, ended.stderr
    assert not list(temporary.iterdir())


def test_a_temporary_folder_that_cannot_be_written_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(reader_files, "_made", [])
    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with pytest.raises(ConfigurationError, match=r"No space left.*TMPDIR.*num_workers=0"):
        reader_files.hold_reader_files()
