"""The bundled images that the demo cuts its patches from, as ``sources.yaml`` lists them.

Training, validation and test patches come from disjoint blocks of an image, ``GAP`` pixels or more apart, so
no pixel is in two splits; where an image is uneven, the blocks are laid so that each split sees its kinds of
surface. Boxes are (left, top, right, bottom) in source pixels, right and bottom exclusive.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Any

from domainclip.config.located_yaml import yaml_value

GAP = 4
SPLITS = ("train", "val", "test")
Box = tuple[int, int, int, int]

# (column, row) in the 4 × 4 grid; a test block in every row and every column, so that uneven light, perspective
# and depth across an image are in the test as they are in training
_TEST_CELLS = {(1, 0), (3, 1), (0, 2), (2, 3)}
_VAL_CELLS = {(3, 0), (0, 3)}


@dataclass(frozen=True)
class Source:
    """One class: an image, its blocks per split, and the captions of its patches.

    ``sides`` bounds the side of a square crop in source pixels before it is resized. ``min_contrast`` is the least
    standard deviation of the grey values (0-255) that a patch must have not to be empty; ``max_dark`` the largest
    fraction of its pixels darker than 16. Every caption contains ``label`` and holds for any patch of the blocks.
    """

    label: str
    file: str
    image_size: tuple[int, int]
    shows: str
    origin: str
    licence: str
    sides: tuple[int, int]
    blocks: dict[str, list[Box]]
    captions: tuple[str, ...]
    min_contrast: float = 8.0
    max_dark: float = 1.0


def grid(area: Box) -> dict[str, list[Box]]:
    """An area as 4 × 4 blocks with ``GAP`` pixels between them.

    Args:
        area: Left, top, right and bottom, in source pixels.

    Returns:
        Blocks by split: ten to train on, two to validate, four to test.
    """
    left, top, right, bottom = area
    blocks: dict[str, list[Box]] = {split: [] for split in SPLITS}
    for row in range(4):
        for column in range(4):
            cell = (column, row)
            split = "test" if cell in _TEST_CELLS else "val" if cell in _VAL_CELLS else "train"
            blocks[split].append(
                (
                    left + column * (right - left) // 4,
                    top + row * (bottom - top) // 4,
                    left + (column + 1) * (right - left) // 4 - GAP,
                    top + (row + 1) * (bottom - top) // 4 - GAP,
                )
            )
    return blocks


def _source(entry: dict[str, Any]) -> Source:
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    return Source(**values | {"blocks": grid(values.pop("grid")) if "grid" in values else values["blocks"]})


SOURCES = tuple(
    map(_source, yaml_value(resources.files("domainclip.demo").joinpath("sources.yaml").read_text("utf-8")))
)
