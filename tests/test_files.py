"""Files are read and written so that nothing in them, and nothing about their names, does harm."""

from __future__ import annotations

import csv
import io
import json
import os

import pytest

from domainclip.files import csv_text, read_limited, write_json, write_text


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_a_cell_that_a_spreadsheet_would_compute_is_text(start) -> None:
    hostile = f'{start}HYPERLINK("http://x", "y")'
    header, row = csv.reader(io.StringIO(csv_text(["label", hostile], [[hostile, f"a{start}b"]]), newline=""))
    assert header == ["label", f"'{hostile}"]
    assert row == [f"'{hostile}", f"a{start}b"]


@pytest.mark.parametrize("cell", [-1, -0.5, "-0.500000", "+3", "-1e-05", "-inf", "", "a-b", "'=1"])
def test_numbers_and_plain_texts_stay(cell) -> None:
    assert csv_text(["cell", "other"], [[cell, None]]) == f"cell,other\n{cell},\n"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.mkdir(), "folder"),
        (os.mkfifo, "pipe or a device"),
        (lambda path: path.symlink_to("/dev/zero"), "pipe or a device"),
        (lambda path: path.write_bytes(b"12345"), "more than"),
        (lambda path: None, "No such file"),
    ],
)
def test_only_files_of_bounded_size_are_read(make, words, tmp_path) -> None:
    make(tmp_path / "file")
    with pytest.raises(OSError) as refusal:
        read_limited(tmp_path / "file", 4)
    assert words in str(refusal.value.strerror)
    (tmp_path / "small").write_bytes(b"1234")
    assert read_limited(tmp_path / "small", 4) == b"1234"


@pytest.mark.parametrize("name", ["a\0b", "half \ud800"])
def test_names_that_no_file_can_have(name) -> None:
    with pytest.raises(OSError, match="no file can have this name"):
        read_limited(name, 4)


def test_what_utf8_cannot_hold_is_escaped(tmp_path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    write_text(tmp_path / "text", name)
    assert (tmp_path / "text").read_text(encoding="utf-8") == "caf\\udce9.png"
    write_json(tmp_path / "json", [name])
    assert json.loads((tmp_path / "json").read_text(encoding="utf-8")) == [name]
