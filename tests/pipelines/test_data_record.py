"""What a run's record of its data sees of changes since."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from domainclip.data.records import ImageTextPair
from domainclip.files import DamagedFileError
from domainclip.pipelines.data_record import DataRecord

Splits = dict[str, list[ImageTextPair]]


def made(folder: Path) -> Splits:
    rows = []
    for index in range(8):
        path = folder / ("red" if index % 2 else "blue") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"image %d" % index)
        rows.append(ImageTextPair(path, f"caption {index}", "red" if index % 2 else "blue"))
    return {"train": rows[:4], "val": rows[4:6], "test": rows[6:]}


def other_bytes(splits: Splits) -> None:
    path = splits["test"][0].image_path
    before = path.stat()
    path.write_bytes(b"IMAGE 6")  # of the same size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def more_bytes(splits: Splits) -> None:
    splits["val"][1].image_path.write_bytes(b"an image of another size")


def other_caption(splits: Splits) -> None:
    path, _ = splits["train"][1]
    splits["train"][1] = ImageTextPair(path, "another", "red")


def other_label(splits: Splits) -> None:
    path, caption = splits["val"][0]
    splits["val"][0] = ImageTextPair(path, caption, "green")


def one_less(splits: Splits) -> None:
    del splits["test"][1]


def one_more(splits: Splits) -> None:
    splits["train"].append(splits["train"][0])


def other_order(splits: Splits) -> None:
    splits["train"].reverse()


def gone(splits: Splits) -> None:
    splits["train"][3].image_path.unlink()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_bytes, "test: 1 image with other bytes (blue/6.png)"),
        (more_bytes, "val: 1 image with other bytes (red/5.png)"),
        (other_caption, "train: 1 row with another caption, label or group (red/1.png)"),
        (other_label, "val: 1 row with another caption, label or group (blue/4.png)"),
        (one_less, "test: 1 row gone (red/7.png)"),
        (one_more, "train: 1 row added (blue/0.png)"),
        (other_order, "train: the rows are in another order"),
        (gone, "train: 1 image with other bytes (red/3.png)"),
    ],
)
def test_what_has_changed_is_named(tmp_path: Path, change: Callable[[Splits], None], said: str) -> None:
    splits = made(tmp_path)
    before = DataRecord.of(splits)
    digests = {split: before.digest_of(split) for split in splits}
    before.write(tmp_path / "data.json")
    change(splits)
    now = DataRecord.of(splits, DataRecord.read(tmp_path / "data.json"))
    assert now.changes_since(before) == [said]
    assert [split for split in splits if now.digest_of(split) != digests[split]] == [said.partition(":")[0]]


def test_data_that_were_moved_or_only_touched_are_the_same(tmp_path: Path) -> None:
    before = DataRecord.of(made(tmp_path / "here"))
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    for path in (tmp_path / "there").rglob("*.png"):
        os.utime(path, (1, 1))
    here, there = made(tmp_path / "here"), tmp_path / "there"
    moved = {
        split: [ImageTextPair(there / row[0].relative_to(tmp_path / "here"), row[1], row.label) for row in rows]
        for split, rows in here.items()
    }
    now = DataRecord.of(moved, before)
    assert now.changes_since(before) == [] and now.digest_of("train") == before.digest_of("train")


def test_files_that_seem_the_same_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = made(tmp_path)
    before = DataRecord.of(splits)
    monkeypatch.setattr("builtins.open", None)
    assert DataRecord.of(splits, before) == before


def test_a_damaged_record_is_told(tmp_path: Path) -> None:
    DataRecord.of(made(tmp_path)).write(tmp_path / "data.json")
    content = (tmp_path / "data.json").read_text()
    (tmp_path / "data.json").write_text(content.replace("blue", "bluf", 1))
    with pytest.raises(DamagedFileError):
        DataRecord.read(tmp_path / "data.json")
