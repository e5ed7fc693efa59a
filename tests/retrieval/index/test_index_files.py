"""An index is written whole or not at all, and says when its files are not as they were written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from domainclip.errors import DamagedFileError, MissingFileError
from domainclip.files import read_record, write_record
from domainclip.retrieval.index import ExactIndex
from forked import start_python
from index_cases import build, vectors_of

FILES = ("vectors.bin", "codes.bin", "steps.bin", "tails.bin", "along.bin", "coder.npz", "index.json")
VECTORS = vectors_of("random", 200, 24, 0).astype(np.float16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build(tmp_path / "index", VECTORS).folder


def test_the_files(folder: Path) -> None:
    assert sorted(os.listdir(folder)) == sorted(FILES)
    ExactIndex.open(folder).verify()


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_said(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises((DamagedFileError, MissingFileError), match=rf"{file}.*[Bb]uild"):
        ExactIndex.open(folder)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("longer", [False, True])
def test_another_size_is_said(folder: Path, file: str, longer: bool) -> None:
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content + b"00" if longer else content[:-2])
    with pytest.raises(DamagedFileError, match=file):
        ExactIndex.open(folder)


@pytest.mark.parametrize("file", FILES)
def test_a_changed_byte_is_said(folder: Path, file: str) -> None:
    content = bytearray((folder / file).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / file).write_bytes(content)
    with pytest.raises(DamagedFileError, match=file):
        ExactIndex.open(folder).verify()


def test_another_version_is_refused(folder: Path) -> None:
    write_record(folder / "index.json", {**read_record(folder / "index.json"), "version": 0})
    with pytest.raises(DamagedFileError, match="another version"):
        ExactIndex.open(folder)
    (folder / "index.json").write_text(json.dumps({"version": 1}))
    with pytest.raises(DamagedFileError, match="checksum"):
        ExactIndex.open(folder)


def test_there_is_no_index(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no index in"):
        ExactIndex.open(tmp_path / "none")


def test_an_index_replaces_an_earlier_one(folder: Path) -> None:
    build(folder, VECTORS[:50])
    assert len(ExactIndex.open(folder)) == 50
    assert os.listdir(folder.parent) == ["index"]


def test_a_build_that_fails_leaves_the_earlier_index(folder: Path) -> None:
    def chunks() -> object:
        yield VECTORS[:50]
        raise RuntimeError("the reader failed")

    with pytest.raises(RuntimeError, match="reader"):
        ExactIndex.build(chunks(), folder)
    assert len(ExactIndex.open(folder)) == 200
    assert os.listdir(folder.parent) == ["index"]


@pytest.mark.parametrize("step", ["write", "code", "record"])
def test_a_killed_build_leaves_no_index(tmp_path: Path, step: str) -> None:
    """It dies while vectors are written, while they are coded, and before the record is."""
    code = """
import os, signal, sys
import numpy as np
from domainclip.retrieval.index import ExactIndex, codes, exact
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
def chunks():
    yield np.ones((10, 4), np.float16)
    if sys.argv[2] == "write":
        die()
if sys.argv[2] == "code":
    codes.Coder.code_rows = die
if sys.argv[2] == "record":
    exact.write_record = die
ExactIndex.build(chunks(), sys.argv[1])
"""
    process = start_python(code, str(tmp_path / "index"), step, output=tmp_path / "out")
    process.join(60)
    assert process.exitcode == -9
    assert not (tmp_path / "index").exists()
    with pytest.raises(MissingFileError):
        ExactIndex.open(tmp_path / "index")
    build(tmp_path / "index", VECTORS)
    assert len(ExactIndex.open(tmp_path / "index")) == 200
