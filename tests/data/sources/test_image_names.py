"""Names in tables that are spelled otherwise than the files."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from domainclip.data.sources.image_folders import ImageFolders
from domainclip.data.sources.loaders import DatasetLoader


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    (root / "Images").mkdir(parents=True)
    for name in ("ok.png", "Part A.JPG", "part b.png", "50%.png", "two.png", "two.jpg", "Images/x_01.png"):
        (root / name).touch()
    (root / unicodedata.normalize("NFD", "größe.png")).touch()
    (root / "folder.png").mkdir()
    os.mkfifo(root / "pipe.png")
    (root / "case.png").touch()
    (root / "CASE.png").touch()
    return root


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("ok.png", "ok.png"),
        (" ok.png ", "ok.png"),
        ('"ok.png"', "ok.png"),
        ("./ok.png", "ok.png"),
        ("/ok.png", "ok.png"),
        ("ok", "ok.png"),
        ("OK", "ok.png"),
        ("part a.jpg", "Part A.JPG"),
        ("Part%20A.jpg", "Part A.JPG"),
        ("part%20b.png", "part b.png"),
        ("50%.png", "50%.png"),
        (unicodedata.normalize("NFC", "größe.png"), unicodedata.normalize("NFD", "größe.png")),
        (unicodedata.normalize("NFC", "Größe"), unicodedata.normalize("NFD", "größe.png")),
        ("Images\\x_01.png", "Images/x_01.png"),
        ("images/X_01.PNG", "Images/x_01.png"),
        (r"C:\data\set\Images\x_01.png", "Images/x_01.png"),
        ("/home/somebody/set/Images/x_01.png", "Images/x_01.png"),
        ("set/ok.png", "ok.png"),
        ("./set/ok.png", "ok.png"),
        ("../input/set/Images/x_01.png", None),
        ("file://HERE/ok.png", "ok.png"),
        ("case.png", "case.png"),
        ("Case.png", None),
        ("two", None),
        ("folder.png", None),
        ("pipe.png", None),
        ("https://example.org/ok.png", None),
        ("nul\0.png", None),
        ("x" * 5000, None),
        ("", None),
        ("/", None),
    ],
)
def test_a_name_is_found_where_one_file_can_be_meant(root: Path, name: str, file: str | None) -> None:
    assert ImageFolders(root).find(name) == (None if file is None else root / file)


def test_absolute_names_and_addresses_of_files(root: Path) -> None:
    for name in (str(root / "ok.png"), f"file://{root}/ok.png", f"file://localhost{root}/part%20b.png"):
        assert ImageFolders(root.parent).find(name) is not None


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("part_b.png", "the nearest name is part b.png"),
        ("Case.png", "may be CASE.png or case.png"),
        ("two", "may be two.jpg or two.png"),
        ("folder.png", "is a folder, not a file"),
        ("pipe.png", "is a pipe, socket or device, not a file"),
        ("https://example.org/ok.png", "is an address: download it first"),
        ("zzzzzz.png", "zzzzzz.png is not there"),
    ],
)
def test_what_is_not_found_is_told_with_the_nearest(root: Path, name: str, says: str) -> None:
    folders = ImageFolders(root)
    assert folders.find(name) is None
    assert says in folders.reason(name)


def test_two_names_that_end_in_one_file_are_neither_of_them_it(root: Path, tmp_path: Path) -> None:
    table = root / "t.csv"
    table.write_text("image_path,caption\nleft/ok.png,a\nright/ok.png,b\npart b.png,c\nset/50%.png,d\n")
    pairs = DatasetLoader.load(table)
    assert sorted(pair.image_path.name for pair in pairs) == ["50%.png", "part b.png"]
    assert len(pairs.skipped) == 2
    assert any("found under a name that is spelled otherwise" in note for note in pairs.notes)


def test_files_are_listed_and_not_asked_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(os.path, "isfile", lambda path: calls.append(path) or False)
    listed: list[str] = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(str(path)) or scan(path))
    folders = ImageFolders(root)
    for index in range(200):
        for name in (f"{index}.png", "PART A.jpg", f"images/{index}", "ok", f"/other/machine/{index}.png"):
            folders.find(name)
    assert not calls
    assert len(listed) < 15


@pytest.mark.parametrize("name", ["scan_1.jpg", "SCAN_1.JPEG", "scan_1.tiff", "  scan_1.jpg ", "./scan_1.bmp"])
def test_another_suffix_is_found_where_one_file_can_be_meant(tmp_path: Path, name: str) -> None:
    for index in range(3):
        Image.new("RGB", (9, 9), (index, 0, 0)).save(tmp_path / f"scan_{index}.png")
    (tmp_path / "t.csv").write_text(f"image,caption\n{name},b\nscan_0.png,a\n")
    pairs = DatasetLoader.load(tmp_path / "t.csv")
    assert [(pair.image_path.name, pair.caption) for pair in pairs] == [("scan_1.png", "b"), ("scan_0.png", "a")]
    assert any("another suffix: 1" in note for note in pairs.notes)


def test_another_suffix_is_no_guess(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "b.webp", "c.png", "d.png"):
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    (tmp_path / "a.txt").write_text("no image")
    rows = ["b.jpg,which?", "c.jpg,another that is gone", "c.png,own", "d.jpg,one", "d.bmp,two", "a.json,no suffix"]
    (tmp_path / "t.csv").write_text("image,caption\n" + "\n".join(rows) + "\n")
    pairs = DatasetLoader.load(tmp_path / "t.csv")
    assert [pair.caption for pair in pairs] == ["own"]
    reasons = {row.image_path: row.reason for row in pairs.skipped}
    assert set(reasons) == {"b.jpg", "c.jpg", "d.jpg", "d.bmp", "a.json"}
    assert "may be b.png or b.webp" in reasons["b.jpg"]
    assert "c.png, the nearest name, is another row's" in reasons["c.jpg"]
