"""A small data set of three classes that colour and pattern tell apart."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from domainclip.data.records import ImageTextPair


@dataclass(frozen=True)
class TinyData:
    """A folder of 30 small images of three classes that colour and pattern tell apart, with captions."""

    folder: Path

    def table(self, split: str) -> Path:
        return self.folder / f"{split}.csv"

    def pairs(self, split: str = "train") -> list[ImageTextPair]:
        with open(self.table(split), encoding="utf-8", newline="") as handle:
            return [
                ImageTextPair(self.folder / row["image_path"], row["caption"], row["label"])
                for row in csv.DictReader(handle)
            ]


KINDS = {"brick": ((180, 60, 50), "stripes"), "grass": ((50, 160, 60), "noise"), "sky": ((70, 110, 210), "plain")}


def write_tiny_data(folder: Path, kinds: dict[str, tuple[tuple[int, int, int], str]] = KINDS) -> TinyData:
    """18 rows for training, 6 for validation, 6 for the test, as ``train.csv``, ``val.csv``, ``test.csv``.

    Columns ``image_path,caption,label``. PNG and JPEG, not square, of several sizes. Every class has one caption
    that several rows share and others of different lengths that are a single row's own.
    """
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows: dict[str, list[tuple[str, str, str]]] = {"train": [], "val": [], "test": []}
    for label, (colour, pattern) in kinds.items():
        for index in range(10):
            height, width = 40 + 4 * (index % 3), 44 + 2 * (index % 4)
            image = np.broadcast_to(np.array(colour, dtype=float), (height, width, 3)).copy()
            if pattern == "stripes":
                image[:: 6 + index % 2] *= 0.4
            image += rng.normal(0, 30 if pattern == "noise" else 6, image.shape)
            name = f"images/{label}_{index}.{'png' if index % 2 else 'jpg'}"
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / name)
            own = f"a photo of {label}, sample {index}" + " seen from far above" * (index % 3)
            caption = f"a texture of {label}" if index % 3 == 0 else own
            split = "train" if index < 6 else "val" if index < 8 else "test"
            rows[split].append((name, caption, label))
    for split, lines in rows.items():
        with open(folder / f"{split}.csv", "w", encoding="utf-8", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerows([("image_path", "caption", "label"), *lines])
    return TinyData(folder)
