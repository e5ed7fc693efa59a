"""A small drawn data set for examples and first tries: nothing is downloaded, and Pillow is all it needs."""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path

from PIL import Image, ImageDraw

from domainclip.files import write_bytes, write_text

COLOURS = {"red": (200, 50, 40), "green": (50, 150, 60), "blue": (50, 80, 200)}
SHAPES = ("disc", "square", "triangle")
PER_CLASS = {"train": 6, "val": 2, "test": 2}
COLUMNS = ("image_path", "caption", "label", "group")


def draw_demo_data(folder: str | Path, seed: int = 0, size: int = 64) -> Path:
    """Draw 90 images of nine classes (a red disc, a blue square …) and write their tables.

    ``train.csv``, ``val.csv`` and ``test.csv`` have the columns ``image_path``, ``caption``, ``label`` and ``group``
    (each image is a group of its own). Files of an earlier drawing are replaced.

    Args:
        folder: Where they go; made where it is not there.
        seed: The same one draws the same images.
        size: Side of an image in pixels.

    Returns:
        The folder, ready to be given as ``data_path``.

    Raises:
        OSError: It cannot be written.
    """
    folder, draws = Path(folder), random.Random(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for split, count in PER_CLASS.items():
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(COLUMNS)
        for colour, rgb in COLOURS.items():
            for shape in SHAPES:
                for number in range(count):
                    name = f"{split}_{colour}_{shape}_{number}"
                    buffer = io.BytesIO()
                    _drawn(rgb, shape, size, draws).save(buffer, format="PNG")
                    write_bytes(folder / "images" / f"{name}.png", buffer.getvalue())
                    where = draws.choice(("on paper", "on a wall", "in the sun", "in the shade"))
                    writer.writerow((f"images/{name}.png", f"a {colour} {shape} {where}", f"{colour} {shape}", name))
        write_text(folder / f"{split}.csv", table.getvalue())
    return folder


def _drawn(colour: tuple[int, int, int], shape: str, size: int, draws: random.Random) -> Image.Image:
    ground = draws.randint(180, 240)
    image = Image.new("RGB", (size, size), (ground, ground, ground - draws.randint(0, 30)))
    pen, side = ImageDraw.Draw(image), draws.randint(size // 3, size // 2)
    left, top = draws.randint(2, size - side - 2), draws.randint(2, size - side - 2)
    right, bottom = left + side, top + side
    paint = tuple(max(0, min(255, level + draws.randint(-25, 25))) for level in colour)
    if shape == "disc":
        pen.ellipse((left, top, right, bottom), fill=paint)
    elif shape == "square":
        pen.rectangle((left, top, right, bottom), fill=paint)
    else:
        pen.polygon(((left, bottom), (right, bottom), ((left + right) // 2, top)), fill=paint)
    return image
