"""Siblings of the usual tables and folders: what was lost, or taken for something else, without a word."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from domainclip.data.labels import all_labels
from domainclip.data.sources.cells import captions_in_cell, labels_in_cell
from domainclip.data.sources.loaders import DatasetLoader
from domainclip.data.sources.split_names import split_of
from domainclip.data.splits import load_splits
from domainclip.errors import DataError


def images(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names or ("0.png", "1.png", "2.png")):
        Image.new("RGB", (20, 20), (index * 40, 9, 200)).save(folder / name)


def table(folder: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    images(folder, *(str(row[0]) for row in rows))
    with open(folder / "t.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return folder / "t.csv"


@pytest.mark.parametrize(
    ("cell", "labels"),
    [
        ("{'rust', 'scab'}", ["rust", "scab"]),
        ('{"scab", "rust"}', ["scab", "rust"]),
        ("array(['rust', 'scab'], dtype=object)", ["rust", "scab"]),
        ("array(['rust'])", ["rust"]),
        ("{rust,scab}", ["rust", "scab"]),
        ("[]", []),
        ("()", []),
        ("set()", []),
        ({"name": "rust", "score": 1}, ["rust"]),
        ({"id": 3, "label": "scab"}, ["scab"]),
        ("{rust: 1}", ["{rust: 1}"]),
    ],
)
def test_labels_in_every_notation(cell: object, labels: list[str]) -> None:
    assert labels_in_cell(cell) == labels


def test_captions_as_numpy_shows_them() -> None:
    assert captions_in_cell("array(['a disc', \"it's red\"], dtype=object)") == ["a disc", "it's red"]
    assert captions_in_cell("{'a disc', 'a ring'}") == ["a disc", "a ring"]
    assert captions_in_cell("an array([1]) of discs") == ["an array([1]) of discs"]
    assert captions_in_cell("[]") == []


def test_zeros_and_ones_in_a_list_are_no_names(tmp_path: Path) -> None:
    rows = [("0.png", "[0, 1, 0]"), ("1.png", "[1, 0, 0]"), ("2.png", "[1.0, 1.0, 0.0]")]
    with pytest.raises(DataError, match=r"\[0, 1, 0\] holds 0 or 1 for each class: write the names"):
        DatasetLoader.load(table(tmp_path, ["image", "label"], rows))


@pytest.mark.parametrize(
    ("column", "train", "test"),
    [
        *(("is_test", "False", "True"), ("is_test", "0", "1"), ("IsTrain", "yes", "no")),
        *(("is_training_image", "1", "0"), ("dataset", "train", "test"), ("train_test", "Train", "Test")),
        *(("mode", "training", "testing"), ("split", "train_set", "test_set"), ("set", "set_train", "set_test")),
    ],
)
def test_columns_that_say_the_split(tmp_path: Path, column: str, train: str, test: str) -> None:
    rows = [(f"{i}.png", f"caption {i}", test if i % 4 == 0 else train) for i in range(12)]
    splits = load_splits(table(tmp_path, ["image", "caption", column], rows))
    assert {pair.caption for pair in splits.test} == {"caption 0", "caption 4", "caption 8"}
    other = load_splits(tmp_path / "t.csv", split_col=None)
    assert {pair.caption for pair in other.test} != {"caption 0", "caption 4", "caption 8"}


def test_a_column_of_such_a_name_without_splits_is_not_used(tmp_path: Path) -> None:
    rows = [(f"{i}.png", f"caption {i}", "coco" if i % 2 else "flickr") for i in range(12)]
    splits = load_splits(table(tmp_path, ["image", "caption", "dataset"], rows))
    assert any("'dataset' is not used to divide the rows" in note for note in splits.notes)
    assert len([*splits.train, *splits.val, *splits.test]) == 12


@pytest.mark.parametrize("column", ["pid", "lesion_id", "Accession Number", "exam", "visit_no"])
def test_more_columns_are_proposed_as_groups(tmp_path: Path, column: str) -> None:
    rows = [(f"{i}.png", f"caption {i}", f"x{i // 3}") for i in range(12)]
    assert DatasetLoader.load(table(tmp_path, ["image", "caption", column], rows)).proposed == {column: 4}


def test_the_name_of_a_class_goes_before_its_number(tmp_path: Path) -> None:
    rows = [(f"{i}.png", i % 2, ("cat", "dog")[i % 2]) for i in range(4)]
    pairs = DatasetLoader.load(table(tmp_path, ["image", "label", "class_name"], rows))
    assert [pair.label for pair in pairs] == ["cat", "dog", "cat", "dog"]
    assert any("'class_name' is read as the label, not 'label'" in note for note in pairs.notes)


def test_images_that_no_row_names_are_said(tmp_path: Path) -> None:
    images(tmp_path, *(f"{i}.png" for i in range(6)))
    entries = [{"file_name": f"{i}.png", "text": f"caption {i}"} for i in (0, 1, 2)]
    entries.append({"file_name": "3.png", "text": ""})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, entries)), encoding="utf-8")
    pairs = DatasetLoader.load(tmp_path)
    assert len(pairs) == 3
    assert any("no row of metadata.jsonl names 2 images in its folder (such as 4.png)" in note for note in pairs.notes)


def test_masks_of_every_usual_name(tmp_path: Path) -> None:
    for label in ("benign", "malignant"):
        for end in ("", "_mask", "_mask_1", "_Mask2", "_segmentation", "-gt"):
            images(tmp_path / label, f"{label} (1){end}.png")
        images(tmp_path / label, "other_mask.png")  # there is no other.png
    pairs = DatasetLoader.load(tmp_path)
    assert Counter(pair.label for pair in pairs) == {"benign": 2, "malignant": 2}
    assert Counter(row.kind for row in pairs.skipped) == {"mask": 10}


@pytest.mark.parametrize(
    "names", [("seg_train", "seg_test"), ("train_images", "test_images"), ("images_train", "images_test")]
)
@pytest.mark.parametrize("nested", [False, True])
def test_folders_of_splits_with_longer_names(tmp_path: Path, names: tuple[str, str], nested: bool) -> None:
    for name in names:
        for label in ("cat", "dog"):
            images(tmp_path / name / (name if nested else "") / label)
    splits = load_splits(tmp_path)
    assert {pair.label for pair in splits.train} == {"cat", "dog"} == {pair.label for pair in splits.test}
    assert all(names[1] in str(pair.image_path) for pair in splits.test)
    assert [split_of(word) for word in ("trainer", "seg_trainer", "dataset", "image", "train_labels")] == [None] * 5


def test_classes_that_hold_the_same_folders_are_said(tmp_path: Path) -> None:
    for outer in ("fold1", "fold2"):
        for label in ("cat", "dog"):
            images(tmp_path / outer / label)
    assert any("each class holds the same folders (cat, dog)" in note for note in DatasetLoader.load(tmp_path).notes)


def test_a_broken_link_to_a_folder_is_counted(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        images(tmp_path / label)
    (tmp_path / "cow").symlink_to(tmp_path / "elsewhere" / "cow")
    (row,) = DatasetLoader.load(tmp_path).skipped
    assert row.image_path == "cow" and row.reason.endswith("elsewhere/cow, which is not there")


@pytest.mark.parametrize("stray", ['{"exposure": 3}', "a licence"])
def test_files_beside_images_of_classes_that_are_no_captions(tmp_path: Path, stray: str) -> None:
    for label in ("cat", "dog"):
        images(tmp_path / label)
        suffix = ".json" if stray.startswith("{") else ".txt"
        for index in range(3 if suffix == ".json" else 1):
            (tmp_path / label / f"{index}{suffix}").write_text(stray, encoding="utf-8")
    pairs = DatasetLoader.load(tmp_path)
    assert Counter(all_labels(pair) for pair in pairs) == {("cat",): 3, ("dog",): 3}
    assert any("beside images" in note and "no captions" in note for note in pairs.notes)
    for index in range(3):  # as many as there are images: captions
        for label in ("cat", "dog"):
            (tmp_path / label / f"{index}.txt").write_text(f"caption {index}", encoding="utf-8")
    assert len({pair.caption for pair in DatasetLoader.load(tmp_path)}) == 3


def test_the_splits_of_a_saved_data_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    images(tmp_path, *(f"{i}.png" for i in range(10)))
    rows = [{"image": str(tmp_path / f"{i}.png"), "caption": f"caption {i}"} for i in range(10)]
    parts = {"train": rows[:6], "test": rows[6:9], "unsupervised": rows[9:]}
    saved = datasets.DatasetDict({name: datasets.Dataset.from_list(part) for name, part in parts.items()})
    saved.save_to_disk(tmp_path / "saved")
    splits = load_splits(tmp_path / "saved", train_split=0.5, val_split=0.5, test_split=0)
    assert [pair.caption for pair in splits.test] == ["caption 6", "caption 7", "caption 8"]
    assert len(splits.train) + len(splits.val) == 6
    assert any("further splits unsupervised are not used" in note for note in splits.notes)


def test_a_text_named_after_the_whole_name_of_its_image(tmp_path: Path) -> None:
    images(tmp_path, "0.png", "1.png")
    for index in range(2):
        (tmp_path / f"{index}.png.txt").write_text(f"caption {index}", encoding="utf-8")
    assert [pair.caption for pair in DatasetLoader.load(tmp_path)] == ["caption 0", "caption 1"]


def test_many_strays_are_counted(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        images(tmp_path / label)
    for index in range(7):
        (tmp_path / f"{index}_stats.json").write_text('{"count": 5}', encoding="utf-8")
    notes = DatasetLoader.load(tmp_path).notes
    assert sum("no column of images" in note for note in notes) == 3
    assert any("nor are 4 further files" in note for note in notes)
