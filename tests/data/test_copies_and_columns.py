"""Splits that a column says, and copies of images, which no split may separate."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from domainclip.data import copies as copies_module
from domainclip.data.copies import find_copies
from domainclip.data.group_split import image_key
from domainclip.data.records import ImageTextPair
from domainclip.data.splits import load_splits, split_pairs
from domainclip.errors import DataError
from domainclip.pipelines.data_record import DataRecord


def drawn(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)
    Image.fromarray(pixels).resize((48, 48), Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(12):
        drawn(tmp_path / f"{i}.png", i)
    return tmp_path


def table(folder: Path, splits: list[str], column: str = "split") -> Path:
    lines = [f"{i}.png,caption {i},{split}\n" for i, split in enumerate(splits)]
    (folder / "t.csv").write_text(f"image_path,caption,{column}\n" + "".join(lines))
    return folder / "t.csv"


@pytest.mark.parametrize("column", ["split", "subset", "set", "Partition", "fold"])
@pytest.mark.parametrize(
    "words",
    [
        ("train", "val", "test"),
        ("Training", "dev", "TESTING"),
        ("train", "validation", "eval"),
        ("train2017", "val2017", "test2017"),
    ],
)
def test_a_column_says_the_split(folder: Path, column: str, words: tuple[str, str, str]) -> None:
    order = [words[0]] * 7 + [words[1]] * 2 + [words[2]] * 3
    splits = load_splits(table(folder, order, column))
    found = [[pair.image_path.stem for pair in part] for part in (splits.train, splits.val, splits.test)]
    assert found == [[*"0123456"], ["7", "8"], ["9", "10", "11"]]
    assert any(f"column {column!r} says the split" in note for note in splits.notes)


def test_validation_is_made_where_the_column_has_none(folder: Path) -> None:
    splits = load_splits(table(folder, ["train"] * 9 + ["test"] * 3), train_split=0.7, val_split=0.2, test_split=0.1)
    assert {pair.image_path.stem for pair in splits.test} == {"9", "10", "11"}
    assert len(splits.val) == 2 and any("cut from t.csv" in note for note in splits.notes)
    assert len(load_splits(table(folder, ["test"] * 12)).test) == 12


def test_values_that_name_no_split(folder: Path) -> None:
    with pytest.raises(DataError, match=r"column 'split' .* 'trian' \(2 rows\).*split_col=null"):
        load_splits(table(folder, ["trian"] * 2 + ["train"] * 10))
    assert len(load_splits(table(folder, ["trian"] * 2 + ["train"] * 10), split_col=None).train) == 12
    splits = load_splits(table(folder, ["0", "1", "2"] * 4, "fold"))
    assert any("'fold' is not used" in note for note in splits.notes)
    splits = load_splits(table(folder, ["train"] * 8 + ["test"] * 2 + ["", "nan"]))
    assert len(splits.train + splits.val + splits.test) == 10
    assert len(splits.train.skipped) == 2


def test_a_column_within_files_of_splits(folder: Path) -> None:
    (folder / "train.csv").write_text("image_path,caption,split\n0.png,a,train\n1.png,b,val\n2.png,c,train\n")
    (folder / "test.csv").write_text("image_path,caption\n3.png,d\n")
    splits = load_splits(folder)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [2, 1, 1]


def copied(folder: Path) -> Path:
    """Twelve images, each with one copy equal to the byte and one that was scaled and saved as JPEG."""
    lines = []
    for i in range(12):
        content = (folder / f"{i}.png").read_bytes()
        (folder / f"equal_{i}.png").write_bytes(content)
        Image.open(folder / f"{i}.png").resize((96, 96)).save(folder / f"scaled_{i}.jpg", quality=90)
        lines += [f"{name},caption {name}\n" for name in (f"{i}.png", f"equal_{i}.png", f"scaled_{i}.jpg")]
    (folder / "t.csv").write_text("image_path,caption\n" + "".join(lines))
    return folder / "t.csv"


def places(parts: tuple) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for index, part in enumerate(parts):
        for pair in part:
            found.setdefault(pair.image_path.stem.split("_")[-1], set()).add(index)
    return found


def test_copies_are_in_one_split(folder: Path) -> None:
    splits = load_splits(copied(folder), train_split=0.5, val_split=0.25, test_split=0.25)
    assert all(len(found) == 1 for found in places((splits.train, splits.val, splits.test)).values())
    note = next(note for note in splits.notes if note.startswith("copies"))
    assert "24 images in 12 groups are equal to the byte" in note and "one split" in note
    pairs = [*splits.train, *splits.val, *splits.test]
    assert all(len(found) == 1 for found in places(split_pairs(pairs, 0.5, 0.25, 0.25)).values())


def test_only_equal_files_of_many(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copied(folder)
    monkeypatch.setattr(copies_module, "NEAR_IMAGES", 5)
    splits = load_splits(path, train_split=0.5, val_split=0.25, test_split=0.25)
    assert len(splits.copies.exact) == 12 and not splits.copies.near
    assert any("too many to look for near copies" in note for note in splits.notes)


def test_copies_in_given_splits_are_told(folder: Path) -> None:
    path = copied(folder)
    lines = path.read_text().splitlines()[1:]
    for name, start in (("equal", "equal_"), ("near", "scaled_")):
        test = [line for line in lines if line.startswith(start)]
        train = [line for line in lines if line[0].isdigit()]
        (folder / name).mkdir()
        for split, rows in (("train", train), ("test", test)):
            text = "image_path,caption\n" + "\n".join(f"../{row}" for row in rows)
            (folder / name / f"{split}.csv").write_text(text)
        notes = load_splits(folder / name).notes
        wanted = "copied images in both train and test" if name == "equal" else "in both train and test look alike"
        assert any(wanted in note for note in notes), notes


def test_images_that_differ_change_no_split(folder: Path) -> None:
    pairs = [ImageTextPair(folder / f"{i}.png", f"caption {i}") for i in range(12)]
    gone = [ImageTextPair(f"/elsewhere/{i}.png", f"caption {i}") for i in range(12)]
    assert find_copies(pairs).of == {} and find_copies(gone).of == {}
    assert [[p.caption for p in part] for part in split_pairs(pairs)] == [
        [p.caption for p in part] for part in split_pairs(gone)
    ]


def test_a_chain_of_images_that_look_alike_is_no_group(tmp_path: Path) -> None:
    pairs = []
    for i in range(30):
        Image.new("L", (16, 16), i).save(tmp_path / f"{i}.png")
        pairs.append(ImageTextPair(tmp_path / f"{i}.png", f"caption {i}"))
    found = find_copies(pairs)
    assert found.of == {} and "30 images look alike" in found.notes[0]
    assert image_key(pairs[0]) not in found.of


def test_a_split_of_one_image_is_trained_on(folder: Path) -> None:
    splits = load_splits(table(folder, [""] * 12))
    assert (len(splits.train), len(splits.val), len(splits.test)) == (12, 0, 0)
    assert sum("would have one image" in note for note in splits.notes) == 2
    splits = load_splits(table(folder, ["train"] * 9 + ["test"] * 3))
    assert (len(splits.train), len(splits.val), len(splits.test)) == (9, 0, 3)
    assert any(note.startswith("validation would have one image") for note in splits.notes)


def test_copies_in_tars_are_found(folder: Path) -> None:
    for name, images in (("00000.tar", [0, 1, 2, 3]), ("00001.tar", [4, 5, 2, 3])):
        with tarfile.open(folder / name, "w") as tar:
            for place, image in enumerate(images):
                tar.add(folder / f"{image}.png", f"{place}.png")
    pairs = [ImageTextPair(folder / name / f"{i}.png", "a") for name in ("00000.tar", "00001.tar") for i in range(4)]
    found = find_copies(pairs)
    assert [{path.name for path in group} for group in found.exact] == [{"2.png"}, {"3.png"}]
    assert len(found.files) == 8


def test_a_file_is_digested_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [ImageTextPair(folder / f"{i}.png", f"caption {i}") for i in range(12)]
    read: list[str] = []
    digest = hashlib.blake2b

    def counting(*content: bytes, digest_size: int = 64) -> Any:
        if digest_size == 16:  # of files
            read.append("x")
        return digest(*content, digest_size=digest_size)

    monkeypatch.setattr(hashlib, "blake2b", counting)
    copies = find_copies(pairs)
    record = DataRecord.of({"train": pairs}, files=copies.files)
    assert len(read) == 12 and len(record.images) == 12
    drawn(folder / "3.png", 99)  # what has changed since is looked at again
    assert DataRecord.of({"train": pairs}, files=copies.files).images["3.png"] != record.images["3.png"]
    assert len(read) == 13
