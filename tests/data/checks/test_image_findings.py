"""What the images of a data set show that is better known before a run: nothing, too many channels, few bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from domainclip.data.checks.check import check_data
from domainclip.data.splits import load_splits

RNG = np.random.default_rng(8)


def table(folder: Path) -> Path:
    files = sorted(path.name for path in folder.iterdir())
    rows = [f"{name},caption {index},{'pit' if index % 2 else 'ok'}" for index, name in enumerate(files)]
    (folder / "t.csv").write_text("\n".join(["image_path,caption,label", *rows]))
    return folder / "t.csv"


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (200, 30, 90)])
def test_blank_images_are_found_and_said_in_training(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    for index in range(6):
        Image.fromarray(RNG.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(tmp_path / f"a{index}.png")
    Image.new("RGB", (24, 24), colour).save(tmp_path / "b0.png")
    Image.new("RGB", (24, 24), colour).save(tmp_path / "b1.jpg")
    Image.new("RGBA", (24, 24), (*colour, 0)).save(tmp_path / "b2.png")
    path = table(tmp_path)
    found = check_data(path).named("blank-images")
    assert [(finding.count, finding.examples) for finding in found] == [(3, ["b0.png", "b1.jpg", "b2.png"])]
    assert any("3 of 9 images are of one colour" in note for note in load_splits(path).notes)


def test_channels_that_are_not_shown_are_told(tmp_path: Path) -> None:
    for index in range(5):
        values = RNG.integers(0, 40_000, (24, 24, 13), dtype=np.uint16)
        tifffile.imwrite(tmp_path / f"{index}.tif", values, photometric="minisblack", planarconfig="contig")
    path = table(tmp_path)
    found = check_data(path).named("many-channels")
    assert [(finding.count, finding.examples[0]) for finding in found] == [(5, "0.tif (13 channels)")]
    assert any("only the first 3 channels of 5 images are shown" in note for note in load_splits(path).notes)


@pytest.mark.parametrize(("largest", "severity"), [((4000, 3900), "info"), ((4000, 60_000), "warning")])
def test_few_bits_are_told_and_unlike_ones_warned_of(tmp_path: Path, largest: tuple[int, int], severity: str) -> None:
    for index in range(4):
        values = (RNG.random((24, 24)) * largest[index % 2]).astype(np.uint16)
        values[0, 0] = largest[index % 2]
        Image.fromarray(values).save(tmp_path / f"{index}.png")
    found = check_data(table(tmp_path)).named("few-bits")
    assert [finding.severity for finding in found] == [severity]
    assert found[0].count == (4 if severity == "info" else 2)
