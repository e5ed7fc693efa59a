"""WebDataset: shards are read where they are, by pattern, folder or one by one, as any other source."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from domainclip import CLIPFinetuningConfig
from domainclip.data.checks.check import check_data
from domainclip.data.dataset import CLIPDataset
from domainclip.data.images.reader import image_header, read_image
from domainclip.data.sources.loaders import DatasetLoader
from domainclip.data.splits import load_splits
from domainclip.errors import DataError, ImageError
from domainclip.inference import EmbeddingEngine
from domainclip.models import make_tiny_clip


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (24, 24, 3), dtype=np.uint8)


def encoded(number: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(number)).save(buffer, kind)
    return buffer.getvalue()


def shard(path: Path, files: dict[str, bytes], **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def records(first: int, count: int) -> dict[str, bytes]:
    files = {}
    for number in range(first, first + count):
        files[f"{number:06}.png"] = encoded(number)
        files[f"{number:06}.txt"] = f"view {number}".encode()
        files[f"{number:06}.cls"] = b"pit" if number % 2 else b"ok"
    return files


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for index in range(3):
        shard(tmp_path / "shards" / f"{index:05}.tar", records(4 * index, 4))
    return tmp_path / "shards"


@pytest.mark.parametrize("name", ["", "{00000..00002}.tar", "{00000,00001,00002}.tar", "0000{0..2}.tar"])
def test_shards_by_folder_and_by_pattern(shards: Path, name: str) -> None:
    pairs = DatasetLoader.load(shards / name)
    assert [(pair.caption, pair.label) for pair in pairs] == [
        (f"view {number}", "pit" if number % 2 else "ok") for number in range(12)
    ]
    for number, pair in enumerate(pairs):
        assert np.array_equal(read_image(pair.image_path), picture(number))
        assert image_header(pair.image_path).width == 24
    splits = load_splits(str(shards / name))
    assert len(splits.train) + len(splits.val) + len(splits.test) == 12


def test_shards_go_through_data_set_check_and_engine(shards: Path) -> None:
    pairs = DatasetLoader.load(shards)
    encoder = make_tiny_clip()
    data = CLIPDataset(pairs, encoder.processor, CLIPFinetuningConfig(num_workers=0))
    again = pickle.loads(pickle.dumps(data))  # as a spawned worker gets it
    assert np.array_equal(again.pixels(5).numpy(), data.pixels(5).numpy())
    engine = EmbeddingEngine(encoder)
    same = engine.encode_images([pairs[3].image_path]), engine.encode_images([Image.fromarray(picture(3))])
    assert np.array_equal(same[0].numpy(), same[1].numpy())
    report = check_data(shards)
    assert (report.images, report.named("broken-images")) == (12, [])
    assert check_data(str(shards / "{00000..00001}.tar")).images == 8


def test_nothing_is_unpacked_and_only_the_asked_member_is_read(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("unpacked")

    monkeypatch.setattr(tarfile.TarFile, "extractfile", forbidden)
    monkeypatch.setattr(tarfile.TarFile, "extractall", forbidden)
    before = sorted(shards.parent.rglob("*"))
    pairs = DatasetLoader.load(shards)
    assert read_image(pairs[7].image_path).shape == (24, 24, 3)
    assert sorted(shards.parent.rglob("*")) == before


@pytest.mark.parametrize("options", [{"format": tarfile.USTAR_FORMAT}, {"format": tarfile.GNU_FORMAT}, {}])
def test_long_names_folders_and_names_with_dots(tmp_path: Path, options: dict[str, object]) -> None:
    deep = "/".join(["folder"] * 12) + "/"
    files = {f"./{deep}a.b.jpg": encoded(1, "JPEG"), f"./{deep}a.b.txt": b"not of a.b: the key ends at the first dot"}
    files |= {f"{deep}größe.png": encoded(2), f"{deep}größe.json": json.dumps({"caption": "two", "width": 24}).encode()}
    pairs = DatasetLoader.load(shard(tmp_path / "x.tar", files, **options))
    assert pairs[-1].caption == "two"
    assert np.array_equal(read_image(pairs[-1].image_path), picture(2))


def test_splits_by_the_shards_names_and_by_folders(tmp_path: Path) -> None:
    for number, name in enumerate(["set-train-000", "set-train-001", "set-test-000"]):
        shard(tmp_path / "named" / f"{name}.tar", records(4 * number, 4))
    splits = load_splits(tmp_path / "named", val_split=0.0, train_split=0.8, test_split=0.2)
    assert (len(splits.train), len(splits.test)) == (8, 4)
    for number, name in enumerate(["train", "validation"]):
        shard(tmp_path / "folders" / name / "0.tar", records(4 * number, 4))
    assert len(load_splits(tmp_path / "folders").val) == 4


def test_records_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    files = records(0, 3) | {
        "9.txt": b"no image",
        "b.png": encoded(7),
        "c.png": b"broken",
        "c.txt": b"a broken one",
        "d.png": b"",
        "d.txt": b"an empty one",
    }
    pairs = DatasetLoader.load(shard(tmp_path / "x.tar", files))
    assert [pair.caption for pair in pairs] == ["view 0", "view 1", "view 2", "a broken one", "an empty one"]
    reasons = {row.reason for row in pairs.skipped}
    assert len(pairs.skipped) == 2
    assert "has no image that is read" in reasons
    assert check_data(tmp_path / "x.tar").named("broken-images")[0].count == 2
    with pytest.raises(ImageError, match=r"x\.tar/gone\.png: no such file in the tar"):
        read_image(tmp_path / "x.tar" / "gone.png")


def test_what_is_no_tar_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"just a text")
    with pytest.raises(DataError, match=r"x\.tar: this tar cannot be read"):
        DatasetLoader.load(tmp_path / "x.tar")
    shard(tmp_path / "cut.tar", records(0, 4))
    (tmp_path / "cut.tar").write_bytes((tmp_path / "cut.tar").read_bytes()[:6000])
    with pytest.raises(DataError, match=r"cut\.tar: this tar cannot be read"):
        DatasetLoader.load(tmp_path / "cut.tar")
    with pytest.raises(DataError, match=r"Data file not found: .*00003\.tar"):
        DatasetLoader.load(tmp_path / "{00003..00004}.tar")
    with pytest.raises(DataError, match="more than 100,000 shards"):
        DatasetLoader.load("{0..999999999}.tar")
