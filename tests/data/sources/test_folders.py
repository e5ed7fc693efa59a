"""Folders as people have them: splits of any spelling, masks, links, other files among the images."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from domain_image_cases import write_dicom
from domainclip.data.checks.check import check_data
from domainclip.data.sources.folder_contents import FolderContents
from domainclip.data.sources.loaders import DatasetLoader
from domainclip.data.splits import DataSplits, load_splits
from domainclip.errors import DataError

_COLOURS = iter(range(10**6))


def image(path: Path) -> Path:
    """An image of its own: copies would be kept in one split."""
    number = next(_COLOURS) * 7919
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = Image.new("RGB", (24, 24), (number % 256, number // 256 % 256, number // 65536 % 256))
    drawn.paste((255 - number % 199, number % 151, number % 101), (number % 19, number % 17, 20, 21))
    drawn.save(path, "PNG" if path.suffix != ".jpg" else "JPEG")
    return path


def images(folder: Path, count: int = 4) -> None:
    for index in range(count):
        image(folder / f"{index:03}.png")


def labels(splits: DataSplits) -> dict[str, set[str | None]]:
    return {name: {pair.label for pair in getattr(splits, name)} for name in ("train", "val", "test")}


def skipped(splits: DataSplits) -> Counter[str]:
    return Counter(row.kind for name in ("train", "val", "test") for row in getattr(splits, name).skipped)


def mvtec(root: Path, train: str = "train", test: str = "test") -> Path:
    images(root / train / "good", 8)
    images(root / test / "good", 2)
    images(root / test / "broken_large", 3)
    for index in range(3):
        image(root / "ground_truth" / "broken_large" / f"{index:03}_mask.png")
    return root


@pytest.mark.parametrize(
    ("train", "test"), [("train", "test"), ("Training", "Testing"), ("TRAIN", "TEST"), ("train2017", "test_set")]
)
def test_splits_masks_and_classes_of_mvtec(tmp_path: Path, train: str, test: str) -> None:
    splits = load_splits(mvtec(tmp_path / "bottle", train, test))
    assert labels(splits) == {"train": {"good"}, "val": set(), "test": {"good", "broken large"}}
    assert (len(splits.train) + len(splits.val), len(splits.test)) == (8, 5)
    assert skipped(splits) == {"mask": 3}
    found = check_data(tmp_path / "bottle").named("masks")
    assert [(finding.severity, finding.count) for finding in found] == [("info", 3)]


def test_strict_minds_no_masks(tmp_path: Path) -> None:
    assert len(load_splits(mvtec(tmp_path / "bottle"), strict=True).test) == 5


@pytest.mark.parametrize("name", ["val", "valid", "Validation", "dev", "VAL"])
def test_every_usual_name_of_validation(tmp_path: Path, name: str) -> None:
    for split in ("train", name):
        for label in ("pit", "scratch"):
            images(tmp_path / split / label)
    assert labels(load_splits(tmp_path))["val"] == {"pit", "scratch"}
    assert len(load_splits(tmp_path).val) == 8


def test_folders_of_which_only_some_are_splits_are_an_error(tmp_path: Path) -> None:
    for split in ("Train", "test", "extra"):
        images(tmp_path / split / "pit")
    for ask in (load_splits, DatasetLoader.load, DatasetLoader.from_directory):
        with pytest.raises(DataError, match=r"Train/, test/ are named as splits and extra/ are not"):
            ask(tmp_path)
    with pytest.raises(DataError, match="are named as splits"):
        check_data(tmp_path)


def test_a_train_among_vehicles_is_a_class(tmp_path: Path) -> None:
    for label in ("train", "bus", "car"):
        images(tmp_path / label)
    assert {pair.label for pair in DatasetLoader.load(tmp_path)} == {"train", "bus", "car"}


def test_two_folders_of_one_split_are_an_error(tmp_path: Path) -> None:
    for split in ("train", "val", "Valid"):
        images(tmp_path / split / "pit")
    with pytest.raises(DataError, match=r"Valid and val|val and Valid"):
        load_splits(tmp_path)


def test_several_data_sets_in_one_folder_are_an_error_that_names_one(tmp_path: Path) -> None:
    mvtec(tmp_path / "bottle")
    with pytest.raises(DataError, match=r"a data set with its own splits: name one of them, such as .*bottle"):
        load_splits(tmp_path)
    mvtec(tmp_path / "cable")
    with pytest.raises(DataError, match=r"bottle/, cable/, data sets with splits of their own"):
        load_splits(tmp_path)


def test_masks_beside_images_are_left_out_and_a_class_of_that_name_is_not(tmp_path: Path) -> None:
    images(tmp_path / "tissue" / "benign")
    for index in range(4):
        image(tmp_path / "tissue" / "benign" / f"{index:03}_mask.png")
    images(tmp_path / "tissue" / "malignant")
    pairs = DatasetLoader.load(tmp_path / "tissue")
    assert (len(pairs), Counter(row.kind for row in pairs.skipped)) == (8, {"mask": 4})
    images(tmp_path / "parts" / "train" / "screw" / "images")
    images(tmp_path / "parts" / "train" / "screw" / "mask")
    assert len(DatasetLoader.load(tmp_path / "parts" / "train")) == 4
    for label in ("mask", "no_mask"):
        images(tmp_path / "faces" / label)
    assert {pair.label for pair in DatasetLoader.load(tmp_path / "faces")} == {"mask", "no mask"}


def test_linked_folders_and_files_are_read_and_loops_are_told(tmp_path: Path) -> None:
    for label in ("crack", "pit"):
        images(tmp_path / "store" / label)
    images(tmp_path / "set" / "scratch")
    for label in ("crack", "pit"):
        (tmp_path / "set" / label).symlink_to(tmp_path / "store" / label)
    (tmp_path / "set" / "scratch" / "linked.png").symlink_to(image(tmp_path / "store" / "one.png"))
    (tmp_path / "set" / "scratch" / "round").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "scratch" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    pairs = DatasetLoader.load(tmp_path / "set")
    assert Counter(pair.label for pair in pairs) == {"crack": 4, "pit": 4, "scratch": 5}
    reasons = " | ".join(row.reason for row in pairs.skipped)
    assert "leads back to a folder that it lies in" in reasons
    assert "gone.png is a broken link" in reasons


def test_a_link_that_git_wrote_as_text_is_told(tmp_path: Path) -> None:
    images(tmp_path / "store" / "pit")
    images(tmp_path / "set" / "scratch")
    (tmp_path / "set" / "pit").write_text("../store/pit")
    pairs = DatasetLoader.load(tmp_path / "set")
    assert [row.reason for row in pairs.skipped] == [
        "this is a link to ../store/pit, kept as text: copy what it leads to"
    ]


def test_what_is_not_taken_is_counted_by_kind(tmp_path: Path, without_heic: None) -> None:
    for label in ("rust", "weld"):
        images(tmp_path / label, 5)
    for index in range(3):
        (tmp_path / "rust" / f"IMG_{index}.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 40)
    (tmp_path / "rust" / "x.jxl").write_bytes(b"\xff\x0a" + b"\1" * 20)
    (tmp_path / "weld" / "clip.mp4").write_bytes(b"\0\0\0\x18ftypisom" + b"\0" * 40)
    (tmp_path / "weld" / "scan.xyz").write_bytes(os.urandom(2000))
    for junk in ("Thumbs.db", "._0.jpg", ".DS_Store", "notes.txt", "README", "sizes.json"):
        (tmp_path / "weld" / junk).write_bytes(b"just a text\n")
    for hidden in ("__MACOSX", ".ipynb_checkpoints", "@eaDir"):
        images(tmp_path / hidden)
    pairs = DatasetLoader.load(tmp_path)
    assert Counter(pair.label for pair in pairs) == {"rust": 5, "weld": 5}
    assert Counter(row.kind for row in pairs.skipped) == {
        "not an image that is read (.heic)": 3,
        "not an image that is read (.jxl)": 1,
        "not an image that is read (.mp4)": 1,
        "not an image that is read (.xyz)": 1,
    }
    assert any("pip install 'domainclip[heic]'" in row.reason for row in pairs.skipped)
    assert any("6 rows skipped (not an image that is read (.heic): 3" in note for note in load_splits(tmp_path).notes)
    found = check_data(tmp_path).named("files-not-read")
    assert {finding.count for finding in found} == {1, 3}
    assert any(".heic" in finding.detail for finding in found)
    with pytest.raises(DataError, match="HEIC"):
        DatasetLoader.load(tmp_path, strict=True)


def test_a_folder_without_any_image_says_what_is_in_it(tmp_path: Path, without_heic: None) -> None:
    (tmp_path / "rust").mkdir()
    for index in range(3):
        (tmp_path / "rust" / f"{index}.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 40)
    with pytest.raises(DataError, match=r"no images in it.*this is a HEIC image[^;]*\(3\)"):
        DatasetLoader.load(tmp_path)


def test_images_without_a_suffix_are_read(tmp_path: Path) -> None:
    images(tmp_path / "lesion")
    (tmp_path / "clear").mkdir()
    for index in range(3):
        write_dicom(tmp_path / "clear" / f"IM00000{index}", np.full((8, 8), 50 * index, np.uint16))
    write_dicom(tmp_path / "clear" / "1.2.840.113619", np.eye(8, dtype=np.uint16))
    assert Counter(pair.label for pair in DatasetLoader.load(tmp_path)) == {"clear": 4, "lesion": 4}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    images(tmp_path / "pit")
    images(tmp_path / "closed")
    (tmp_path / "closed").chmod(0)
    assert any("cannot be read" in reason for _, reason in FolderContents.of(tmp_path).left_out)
    (tmp_path / "closed").chmod(0o755)


def test_sidecars_of_img2dataset(tmp_path: Path) -> None:
    for index in range(6):
        name = tmp_path / "00000" / f"{index:09}"
        image(name.with_suffix(".jpg"))
        name.with_suffix(".json").write_text(json.dumps({"caption": f"view {index}", "status": "success"}))
        if index < 5:
            name.with_suffix(".txt").write_text(f"view {index}")
    (tmp_path / "00000_stats.json").write_text('{"count": 6}')
    pairs = DatasetLoader.load(tmp_path)
    assert [pair.caption for pair in pairs] == [f"view {index}" for index in range(6)]
    for path in (tmp_path / "00000").glob("*.txt"):
        path.unlink()
    assert [pair.caption for pair in DatasetLoader.load(tmp_path)] == [f"view {index}" for index in range(6)]


def test_stray_tables_do_not_take_a_folder_of_classes_over(tmp_path: Path) -> None:
    for label in ("ok", "defect"):
        images(tmp_path / label)
    (tmp_path / "dataset-metadata.json").write_text('{"title": "x", "licenses": [{"name": "CC0"}]}')
    (tmp_path / "classes.csv").write_text("id,colour\n0,red\n")
    assert {pair.label for pair in DatasetLoader.load(tmp_path)} == {"ok", "defect"}
    assert len(load_splits(tmp_path).train) == 8


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("parts", [("train", "test"), ()])
def test_metadata_of_a_hugging_face_image_folder(tmp_path: Path, kind: str, parts: tuple[str, ...]) -> None:
    for part in parts or (".",):
        images(tmp_path / part, 5)
        rows = [(f"{index:03}.png", f"view {index}") for index in range(5)]
        table = ["file_name,text", *(",".join(row) for row in rows)]
        if kind == "jsonl":
            table = [json.dumps({"file_name": name, "text": text}) for name, text in rows]
        (tmp_path / part / f"metadata.{kind}").write_text("\n".join(table))
    splits = load_splits(tmp_path)
    assert len(splits.train) + len(splits.val) + len(splits.test) == 5 * max(1, len(parts))
    if parts:
        assert len(splits.test) == 5


def test_numbered_folders_in_the_classes_are_groups(tmp_path: Path) -> None:
    for patient in range(12):
        images(tmp_path / ("benign" if patient % 2 else "malignant") / f"patient_{patient:03}", 3)
    splits = load_splits(tmp_path, seed=0)
    assert labels(splits)["train"] == {"benign", "malignant"}
    patients = {
        name: {pair.image_path.parent.name for pair in getattr(splits, name)} for name in ("train", "val", "test")
    }
    assert not patients["train"] & patients["test"] and not patients["train"] & patients["val"]
    assert any("12 folders in the classes' folders (patient_000, " in note for note in splits.notes)


@pytest.mark.parametrize("names", [("poodle", "husky"), ("images",), ("batch1",)])
def test_named_folders_in_the_classes_and_single_ones_are_no_groups(tmp_path: Path, names: tuple[str, ...]) -> None:
    for label in ("dog", "cat"):
        for name in names:
            images(tmp_path / label / name, 6)
    pairs = DatasetLoader.from_directory(tmp_path)
    assert {pair.group for pair in pairs} == {None} and {pair.label for pair in pairs} == {"dog", "cat"}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("photos.zip", b"PK\x03\x04", "an archive: unpack it"),
        ("photos.tar.gz", b"\x1f\x8b\x08", "an archive: unpack it"),
        ("pairs.pkl", b"\x80\x04", "a pickle, which runs code"),
        ("pairs.xlsx", b"PK\x03\x04", "a spreadsheet: save"),
        ("one.png", b"\x89PNG\r\n\x1a\n", "one image: give the folder"),
        ("arrays.npz", b"PK\x03\x04", "Invalid data file"),
        ("notes.docx2", b"words", "known formats are .csv"),
    ],
)
def test_a_file_that_is_no_table_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=r"Invalid data file") as caught:
        DatasetLoader.load(tmp_path / name)
    assert said in str(caught.value)


def test_images_that_captions_txt_does_not_name_are_counted(tmp_path: Path) -> None:
    images(tmp_path / "images", 5)
    (tmp_path / "captions.txt").write_text("000.png\ta red thing\n001.png\ta blue thing\n")
    pairs = DatasetLoader.load(tmp_path)
    assert len(pairs) == 2
    assert [note for note in pairs.notes if "no row of captions.txt names 3 images" in note]
