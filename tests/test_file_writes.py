"""Writes that are whole or not at all, and where the target is no file that could be replaced."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from domainclip.errors import ConfigurationError
from domainclip.files import replaced_directory, require_writable, write_bytes, write_json, write_text

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX files")
Write = Callable[[Path], None]
WRITERS: dict[str, Write] = {
    "bytes": lambda path: write_bytes(path, b'{"a": 1}'),
    "text": lambda path: write_text(path, '{"a": 1}'),
    "json": lambda path: write_json(path, {"a": 1}),
}


@posix
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("links", [1, 2])
def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path, write: Write, there: bool, links: int) -> None:
    target = tmp_path / "other" / "target.json"
    target.parent.mkdir()
    if there:
        target.write_text("before")
    link = tmp_path / "link.json"
    if links == 2:
        (tmp_path / "between.json").symlink_to(Path("other") / "target.json")
        link.symlink_to(tmp_path / "between.json")
    else:
        link.symlink_to(target)
    require_writable(link, "--output", is_file=True)
    write(link)
    assert link.is_symlink()
    assert json.loads(target.read_text()) == {"a": 1}
    assert not target.is_symlink()
    assert os.listdir(target.parent) == ["target.json"]


@posix
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_pipe_is_written_to(tmp_path: Path, write: Write) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    require_writable(pipe, "--output", is_file=True)
    write(pipe)
    reader.join(10)
    assert json.loads(read[0]) == {"a": 1}
    assert pipe.is_fifo()
    assert os.listdir(tmp_path) == ["pipe"]


@posix
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
@pytest.mark.parametrize("into", ["file", "pipe"])
def test_standard_output_gets_what_is_written_in_its_place(tmp_path: Path, name: str, into: str) -> None:
    if not Path(name).exists():
        pytest.skip(f"no {name} here")
    code = (
        "import sys; from pathlib import Path; from domainclip.files import require_writable, write_text\n"
        "print('before'); require_writable(Path(sys.argv[1]), '--output', is_file=True)\n"
        "write_text(Path(sys.argv[1]), 'middle\\n'); print('after')"
    )
    if into == "pipe":
        done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, check=True)
        found = done.stdout
    else:
        with open(tmp_path / "out", "w") as handle:
            subprocess.run([sys.executable, "-c", code, name], stdout=handle, check=True)
        found = (tmp_path / "out").read_text()
    assert found == "before\nmiddle\nafter\n"


@posix
def test_a_device_is_no_file_to_replace() -> None:
    require_writable(Path("/dev/null"), "--output", is_file=True)
    write_text(Path("/dev/null"), "nothing")
    assert Path("/dev/null").is_char_device()
    with pytest.raises(OSError, match="No space left"):
        write_text(Path("/dev/full"), "nothing")


@posix
def test_a_linked_folder_is_replaced_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "disk" / "model").mkdir(parents=True)
    (tmp_path / "disk" / "model" / "old").write_text("old")
    (tmp_path / "model").symlink_to(tmp_path / "disk" / "model")
    with replaced_directory(tmp_path / "model") as temporary:
        (temporary / "new").write_text("new")
    assert (tmp_path / "model").is_symlink()
    assert os.listdir(tmp_path / "disk" / "model") == ["new"]
    assert sorted(os.listdir(tmp_path)) == ["disk", "model"]


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "figures.json").mkdir()
    with pytest.raises(IsADirectoryError, match="a folder is where a file has to be written"):
        write_json(tmp_path / "figures.json", {})
    with pytest.raises(ConfigurationError, match="is a directory: give the name of a file"):
        require_writable(tmp_path / "figures.json", "--output", is_file=True)
