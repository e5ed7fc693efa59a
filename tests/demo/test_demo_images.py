"""The demo's data set, checked against the source images themselves."""

from __future__ import annotations

import csv
import importlib.util
import socket
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from domainclip.demo import build_demo_data
from domainclip.errors import DataError, MissingExtraError

pytest.importorskip("skimage", reason="the demo's images come with scikit-image")

SPLITS = ("train", "val", "test")
# licence notes in the docstrings of skimage.data; images with a vaguer note must not slip in
FREE_IMAGES = {
    *("retina.jpg", "hubble_deep_field.jpg", "brick.png", "grass.png", "gravel.png", "text.png"),
    *("chelsea.png", "coffee.png", "rocket.jpg"),
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_demo_data(tmp_path_factory.mktemp("demo") / "data")


def rows(folder: Path, table: str) -> list[dict[str, str]]:
    with open(folder / f"{table}.csv", encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def source_image(name: str) -> Image.Image:
    spec = importlib.util.find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    return Image.open(Path(spec.origin).parent / "data" / name)


def test_every_class_has_its_fraction_of_patches_in_every_split(demo: Path) -> None:
    for split, count in (("train", 80), ("val", 12), ("test", 25)):
        table = rows(demo, split)
        assert list(table[0]) == ["image_path", "caption", "label", "group"]
        labels = Counter(row["label"] for row in table)
        assert len(labels) == 10
        assert set(labels.values()) == {count}
    listed = {row["image_path"] for split in SPLITS for row in rows(demo, split)}
    assert listed == {f"images/{path.name}" for path in (demo / "images").iterdir()}


def test_no_source_pixel_and_no_group_is_in_two_splits(demo: Path) -> None:
    taken: dict[tuple[str, str], np.ndarray] = {}
    for row in rows(demo, "patches"):
        width, height = source_image(row["image"]).size
        mask = taken.setdefault((row["image"], row["split"]), np.zeros((height, width), dtype=bool))
        left, top, side = int(row["left"]), int(row["top"]), int(row["side"])
        assert 0 <= left <= width - side
        assert 0 <= top <= height - side
        mask[top : top + side, left : left + side] = True
    for image in {image for image, _ in taken}:
        masks = [taken[image, split] for split in SPLITS]
        assert np.sum(masks, axis=0).max() == 1, image
    splits_of_group = defaultdict(set)
    for split in SPLITS:
        for row in rows(demo, split):
            splits_of_group[row["group"]].add(split)
    assert {len(splits) for splits in splits_of_group.values()} == {1}


def test_a_patch_is_the_square_the_table_names(demo: Path) -> None:
    for row in rows(demo, "patches")[::23]:
        left, top, side = int(row["left"]), int(row["top"]), int(row["side"])
        with Image.open(demo / row["image_path"]) as patch:
            assert patch.size == (64, 64)
            assert patch.format == "JPEG"
            # compared as 16 × 16 means: what resampling filter and JPEG coding do not change
            shown = np.asarray(patch.convert("RGB").resize((16, 16), Image.Resampling.BOX), dtype=float)
        square = source_image(row["image"]).convert("RGB").crop((left, top, left + side, top + side))
        expected = np.asarray(square.resize((16, 16), Image.Resampling.BOX), dtype=float)
        assert np.abs(shown - expected).mean() < 4.0, row["image_path"]


def test_no_patch_is_empty_or_in_the_black_surround(demo: Path) -> None:
    for row in rows(demo, "patches"):
        with Image.open(demo / row["image_path"]) as patch:
            grey = np.asarray(patch.convert("L"), dtype=float)
        assert grey.std() > 1.5, row["image_path"]
        if row["image"] == "retina.jpg":
            assert grey.min() > 10, row["image_path"]


def test_captions_name_the_class_in_several_wordings(demo: Path) -> None:
    wordings = defaultdict(set)
    for row in rows(demo, "train"):
        assert row["label"] in row["caption"]
        wordings[row["label"]].add(row["caption"])
    assert all(4 <= len(captions) <= 6 for captions in wordings.values())
    everything = [caption for captions in wordings.values() for caption in captions]
    assert len(set(everything)) == len(everything)


def test_only_images_with_a_free_licence_are_used_and_named(demo: Path) -> None:
    assert {row["image"] for row in rows(demo, "patches")} == FREE_IMAGES
    readme = (demo / "README.md").read_text(encoding="utf-8")
    for image in FREE_IMAGES:
        lines = [line for line in readme.splitlines() if f"| {image} |" in line]
        assert lines
        assert all(line.endswith(("| CC0 1.0 |", "| public domain |")) for line in lines)


def test_simple_statistics_tell_the_held_out_classes_apart(demo: Path) -> None:
    """Classes that colour and texture separate are within reach of a small model; 10 % would be chance."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def statistics(path: Path) -> list[float]:
        with Image.open(path) as patch:
            pixels = np.asarray(patch.convert("RGB"), dtype=float) / 255
        grey = pixels.mean(axis=2)
        across, down = np.abs(np.diff(grey, axis=1)).mean(), np.abs(np.diff(grey, axis=0)).mean()
        coarse = np.abs(grey[:, 8:] - grey[:, :-8]).mean(), np.abs(grey[8:] - grey[:-8]).mean()
        return [*pixels.mean(axis=(0, 1)), *pixels.std(axis=(0, 1)), across, down, *coarse]

    known, asked = rows(demo, "train"), rows(demo, "test")
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    model.fit([statistics(demo / row["image_path"]) for row in known], [row["label"] for row in known])
    accuracy = model.score([statistics(demo / row["image_path"]) for row in asked], [row["label"] for row in asked])
    assert accuracy >= 0.9


def test_the_seed_fixes_every_byte_and_another_seed_moves_the_crops(demo: Path, tmp_path: Path) -> None:
    again = build_demo_data(tmp_path / "again")
    assert content(again) == content(demo)
    build_demo_data(again, seed=1, size=32)  # over an earlier build
    assert set(content(again)) == set(content(demo))
    crops = [[row["left"] + row["top"] for row in rows(folder, "patches")] for folder in (demo, again)]
    assert np.mean([a == b for a, b in zip(*crops, strict=True)]) < 0.1
    with Image.open(again / "images/grass_test_000.jpg") as patch:
        assert patch.size == (32, 32)


def test_nothing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the demo's data set must not reach for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert (build_demo_data(tmp_path / "data") / "train.csv").is_file()


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "mine.jpg").write_bytes(b"precious")
    with pytest.raises(DataError, match="name a new or an empty folder"):
        build_demo_data(tmp_path)
    assert (tmp_path / "images" / "mine.jpg").read_bytes() == b"precious"


def test_too_small_patches_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="got 8"):
        build_demo_data(tmp_path / "data", size=8)
    assert not (tmp_path / "data").exists()


def test_without_scikit_image_the_message_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(MissingExtraError, match=r"domainclip\[demo\]"):
        build_demo_data(tmp_path / "data")


def test_a_changed_image_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import domainclip.demo.images as images

    original = images._bundled_images()
    for name in FREE_IMAGES:
        (tmp_path / name).write_bytes((original / name).read_bytes())
    Image.new("L", (300, 300)).save(tmp_path / "grass.png")
    monkeypatch.setattr(images, "_bundled_images", lambda: tmp_path)
    with pytest.raises(DataError, match=r"grass\.png measures \(300, 300\), expected \(512, 512\)"):
        build_demo_data(tmp_path / "data")
