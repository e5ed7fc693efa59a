"""Cuts the demo's data set out of public-domain images that scikit-image ships; nothing is downloaded."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from domainclip.demo.sources import SOURCES, SPLITS, Box, Source
from domainclip.errors import DataError, MissingExtraError
from domainclip.files import csv_text, write_text

PATCHES_PER_CLASS = {"train": 80, "val": 12, "test": 25}
JPEG_QUALITY = 90
TRIES_PER_PATCH = 500
COLUMNS = ("image_path", "caption", "label", "group")
META_COLUMNS = ("image_path", "split", "image", "left", "top", "side")
README_TITLE = "# domainclip demo data"


def build_demo_data(folder: Path, seed: int = 0, size: int = 64) -> Path:
    """Write the demo's images and tables; an earlier build in the folder is replaced.

    ``images/`` holds square JPEG patches; ``train.csv``, ``val.csv`` and ``test.csv`` have the columns ``image_path``
    (relative to ``folder``), ``caption``, ``label`` and ``group`` (the block of the source image). ``patches.csv`` says
    which square of which image each patch is, and ``README.md`` where the images come from. The splits share no block
    and no pixel.

    Args:
        folder: Where they go.
        seed: The same one gives the same patches.
        size: Side of a patch in pixels, at least 16.

    Returns:
        The folder.

    Raises:
        DataError: The folder holds anything but such a build, ``size`` is below 16, or the bundled images are others
            than the expected ones.
        MissingExtraError: scikit-image is not installed.
    """
    folder = Path(folder)
    if size < 16:
        raise DataError(f"size must be 16 pixels or more for the patches to show anything: got {size}")
    _refuse_foreign_content(folder)
    bundled = _bundled_images()
    tables: dict[str, list[tuple[object, ...]]] = {split: [] for split in SPLITS}
    meta: list[tuple[object, ...]] = []
    images = [_open(bundled, source) for source in SOURCES]
    _clear(folder)
    write_text(folder / "README.md", _readme(seed, size))
    (folder / "images").mkdir()
    for position, (source, image) in enumerate(zip(SOURCES, images, strict=True)):
        name = source.label.replace(" ", "_")
        for split_index, split in enumerate(SPLITS):
            # a stream of its own for each class and split: a change to one leaves the others' patches alone
            rng = np.random.default_rng([seed, position, split_index])
            for index in range(PATCHES_PER_CLASS[split]):
                block = source.blocks[split][index % len(source.blocks[split])]
                patch, left, top, side = _cut(image, source, block, size, rng)
                path = f"images/{name}_{split}_{index:03d}.jpg"
                patch.save(folder / path, quality=JPEG_QUALITY)
                caption = source.captions[int(rng.integers(len(source.captions)))]
                tables[split].append((path, caption, source.label, f"{name}-{block[0]}-{block[1]}"))
                meta.append((path, split, source.file, left, top, side))
    write_text(folder / "patches.csv", csv_text(META_COLUMNS, meta))
    for split in SPLITS:
        write_text(folder / f"{split}.csv", csv_text(COLUMNS, tables[split]))
    return folder


def _refuse_foreign_content(folder: Path) -> None:
    """A new build deletes ``images/`` and the tables: only ever do that to a folder of our own making."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise DataError(f"{folder} is a file: name a new folder for the demo's data")
    readme = folder / "README.md"
    ours = readme.is_file() and readme.read_text(encoding="utf-8", errors="replace").startswith(README_TITLE)
    if not ours and any(folder.iterdir()):
        raise DataError(f"{folder} holds files that are not the demo's data: name a new or an empty folder")


def _clear(folder: Path) -> None:
    """Take away an earlier build, tables first: they are written last, so a ``test.csv`` there means a whole build.

    The images are not flushed to the disk one by one, which takes longer than cutting them again.
    """
    for name in (*(f"{split}.csv" for split in SPLITS), "patches.csv"):
        (folder / name).unlink(missing_ok=True)
    if (folder / "images").is_dir():
        shutil.rmtree(folder / "images")


def _bundled_images() -> Path:
    """The folder of images inside the installed scikit-image, read as files: its loaders may download."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise MissingExtraError("scikit-image", "demo", "The demo's data set")
    return Path(spec.origin).parent / "data"


def _open(bundled: Path, source: Source) -> Image.Image:
    path = bundled / source.file
    remedy = "install the version of scikit-image that constraints.txt names"
    if not path.is_file():
        raise DataError(f"the installed scikit-image has no image {path}: {remedy}")
    image = Image.open(path)
    if image.size != source.image_size:
        raise DataError(f"{path} measures {image.size}, expected {source.image_size}: {remedy}")
    return image.convert("L" if image.mode == "L" else "RGB")


def _cut(
    image: Image.Image, source: Source, block: Box, size: int, rng: np.random.Generator
) -> tuple[Image.Image, int, int, int]:
    """A random square of ``block`` that shows something, resized, with its left, top and side in source pixels."""
    left, top, right, bottom = block
    largest = min(source.sides[1], right - left, bottom - top)
    for _ in range(TRIES_PER_PATCH):
        side = int(rng.integers(min(source.sides[0], largest), largest + 1))
        x = int(rng.integers(left, right - side + 1))
        y = int(rng.integers(top, bottom - side + 1))
        crop = image.crop((x, y, x + side, y + side))
        grey = np.asarray(crop.convert("L"), dtype=np.float32)
        if grey.std() >= source.min_contrast and (grey < 16).mean() <= source.max_dark:
            return crop.resize((size, size), Image.Resampling.BICUBIC), x, y, side
    raise DataError(
        f"no patch of {source.file} in block {block} shows '{source.label}' after {TRIES_PER_PATCH} tries: "
        "install the version of scikit-image that constraints.txt names"
    )


def _readme(seed: int, size: int) -> str:
    counts = ", ".join(f"{PATCHES_PER_CLASS[split]} {split}" for split in SPLITS)
    lines = [
        README_TITLE,
        "",
        f"Patches of {size} × {size} pixels, cut by `domainclip demo` (seed {seed}) out of images that the package",
        f"scikit-image ships: {len(SOURCES)} classes, {counts} patches per class. Training, validation and test",
        "patches come from disjoint blocks of each image (`group`): no pixel is in two splits. `patches.csv` says",
        "which square of which image each patch is. One image per class makes this a demonstration, not a",
        "benchmark.",
        "",
        "| class | image | shows | from | licence |",
        "|---|---|---|---|---|",
    ]
    lines += [f"| {s.label} | {s.file} | {s.shows} | {s.origin} | {s.licence} |" for s in SOURCES]
    return "\n".join(lines) + "\n"
