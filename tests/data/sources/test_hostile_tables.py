"""Tables and folders with what no text, number or file can be: an error, or a row that is skipped with its reason."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from domainclip.data import DatasetLoader
from domainclip.data.splits import load_splits
from domainclip.errors import DataError
from domainclip.files import write_json


@pytest.fixture
def folder(tmp_path) -> Path:
    for index in range(4):
        Image.new("RGB", (8, 8), (index * 50, 0, 0)).save(tmp_path / f"{index}.png")
    return tmp_path


def rows(**changes: object) -> list[dict]:
    found = [{"image": f"{index}.png", "caption": f"number {index}", "label": "some"} for index in range(4)]
    found[2].update(changes)
    return found


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet", "/captions.txt"])
@pytest.mark.parametrize("kind", ["pipe", "device", "2 GB"])
def test_what_is_no_table_is_not_read(folder, suffix, kind) -> None:
    path = folder / f"hostile{suffix}"
    path.parent.mkdir(exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with open(path, "wb") as handle:
            handle.truncate(2_000_000_000)
    with pytest.raises(DataError, match="hostile"):
        DatasetLoader.load(path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"caption": "half a \ud800 character"}, "caption .* is no Unicode text"),
        ({"label": "half a \ud800 character"}, "label .* is no Unicode text"),
        ({"group": "half a \ud800 character"}, "group .* is no Unicode text"),
        ({"image": "\ud800.png"}, "is not there"),
        ({"image": "a\0b.png"}, "is not there"),
        ({"image": "x" * 5000 + ".png"}, "is not there"),
        ({"image": "x/" * 2500 + "a.png"}, "is not there"),
        ({"label": float("inf")}, "label is an infinite number"),
        ({"caption": float("inf")}, "caption is float"),
    ],
    ids=lambda value: str(value).encode("ascii", "backslashreplace").decode()[:40],
)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_one_hostile_row_is_skipped(folder, changes, reason, suffix) -> None:
    table = folder / f"table{suffix}"
    lines = [json.dumps(row) for row in rows(**changes)]
    table.write_text("\n".join(lines) if suffix == ".jsonl" else f"[{','.join(lines)}]")
    pairs = DatasetLoader.load(table)
    assert [pair.caption for pair in pairs] == ["number 0", "number 1", "number 3"]
    (skipped,) = pairs.skipped
    assert skipped.where.endswith(" 3")
    with pytest.raises(DataError, match=f"(?s){reason}"):
        DatasetLoader.load(table, strict=True)


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("text", ["[" * 200_000, "9" * 6000], ids=["deep", "digits"])
def test_json_that_no_parser_takes(folder, suffix, text) -> None:
    table = folder / f"table{suffix}"
    text = json.dumps(rows(label="HERE")).replace('"HERE"', text)
    table.write_text(text if suffix == ".json" else text[1:-1].replace("}, {", "}\n{"))
    with pytest.raises(DataError, match=r"Malformed JSON in .*table\.json"):
        DatasetLoader.load(table)


def test_damaged_and_non_utf8_parquet(folder) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    captions = pyarrow.array([b"number", b"caf\xe9", b"a", b"b"]).cast(pyarrow.string(), safe=False)
    content = pyarrow.table({"image_path": [f"{index}.png" for index in range(4)], "caption": captions})
    parquet.write_table(content, folder / "latin.parquet", compression="none")
    with pytest.raises(DataError, match=r"latin\.parquet"):
        DatasetLoader.load(folder / "latin.parquet")
    data = bytearray((folder / "latin.parquet").read_bytes())
    data[4:60] = b"\xff" * 56
    (folder / "damaged.parquet").write_bytes(data)
    with pytest.raises(DataError, match=r"damaged\.parquet"):
        DatasetLoader.load(folder / "damaged.parquet")


def test_a_hostile_caption_file_costs_its_image_alone(folder) -> None:
    for index in range(4):
        (folder / f"{index}.txt").write_text(f"number {index}")
    (folder / "1.txt").write_bytes("caf\xe9".encode("latin-1"))
    with open(folder / "2.txt", "wb") as handle:
        handle.truncate(2_000_000_000)
    (folder / "3.txt").unlink()
    os.mkfifo(folder / "3.txt")
    pairs = DatasetLoader.load(folder)
    assert [pair.caption for pair in pairs] == ["number 0"]
    assert len(pairs.skipped) == 3


def test_names_of_files_that_are_no_utf8(folder, tmp_path) -> None:
    for label in ("a", "b"):
        (tmp_path / "classes" / label).mkdir(parents=True)
        for index in range(10):
            with open(os.fsencode(tmp_path / "classes" / label) + b"/\xe9%d.png" % index, "wb") as handle:
                Image.new("RGB", (8, 8), (index * 9, 0, 9)).save(handle, "PNG")
    splits = load_splits(tmp_path / "classes")
    names = [str(pair.image_path) for part in (splits.train, splits.val, splits.test) for pair in part]
    assert len(names) == 20
    write_json(tmp_path / "names.json", names)
    assert json.loads((tmp_path / "names.json").read_text(encoding="utf-8")) == names
    os.rename(tmp_path / "classes" / "b", os.fsencode(tmp_path / "classes") + b"/caf\xe9")
    pairs = DatasetLoader.load(tmp_path / "classes")
    assert {pair.label for pair in pairs} == {"a"}
    assert len(pairs.skipped) == 10
